"""What the tests of the Cache share."""

from __future__ import annotations

import os
import uuid
from typing import Any

from ucm_async.testing.stores import BLOCK_BYTES, SHARD_BYTES

BLOCK_GB = BLOCK_BYTES / (1 << 30)
"""One block of the suites, in the unit of ``cache_buffer_capacity_gb``."""


def fresh_id() -> str:
    """A ``unique_id`` that nobody else uses."""
    return f"test-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def cache_keys(blocks: int = 400, **changes: Any) -> dict[str, Any]:
    """Keys of a small cache of its own, of so many blocks."""
    return {
        "block_size": BLOCK_BYTES,
        "shard_size": SHARD_BYTES,
        "namespace": "cache tests",
        "staging_buffer_gb": 0.002,
        "known_blocks_max": 4096,
        "cache_buffer_capacity_gb": blocks * BLOCK_GB,
        "unique_id": fresh_id(),
    } | changes
