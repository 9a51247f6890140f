"""What the parts of the store suite share: a small geometry, stores of it, and bytes to put into them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import pytest
import pytest_asyncio

from ..store import Store, _Opening, open_store
from ..types import I64, U8, Status, block_ids

__all__ = [
    "BLOCK_BYTES",
    "SHARDS",
    "SHARD_BYTES",
    "Opener",
    "StoreCase",
    "all_ok",
    "make_blocks",
    "statuses",
    "to_shards",
]

SHARD_BYTES: Final = 16 << 10
SHARDS: Final = 4
BLOCK_BYTES: Final = SHARDS * SHARD_BYTES

Opener: TypeAlias = Callable[..., _Opening]


def make_blocks(count: int, seed: int = 0) -> tuple[U8, U8]:
    """Return ids, uint8 (count, 16), and random bytes, uint8 (count, BLOCK_BYTES). Another seed, other ids.

    Their last shard is noise; the others can be made smaller, like bfloat16, of which every other byte is an exponent.
    """
    ids = block_ids(range(seed << 32, (seed << 32) + count))
    data = np.random.default_rng(seed).integers(0, 256, (count, BLOCK_BYTES), dtype=np.uint8)
    exponents = data[:, 1 : BLOCK_BYTES - SHARD_BYTES : 2]
    exponents &= 0x83
    exponents |= 0x3C
    return ids, data


def to_shards(ids: U8, data: U8) -> tuple[U8, I64, U8]:
    """Return ids, shard indexes and bytes of every shard of some blocks, shapes (m, 16), (m,) and (m, SHARD_BYTES)."""
    shards = np.tile(np.arange(SHARDS, dtype=np.int64), len(ids))
    return np.repeat(ids, SHARDS, axis=0), shards, data.reshape(-1, SHARD_BYTES)


def statuses(result: Any) -> list[Status]:
    """Return the statuses of a result by name."""
    return [Status(one) for one in result.status.tolist()]


def all_ok(result: Any) -> bool:
    """Tell whether every row made it, and say which did not where pytest shows it."""
    assert not result.failures, dict(result.failures)
    return bool(result.ok.all())


class StoreCase:
    """One small store a test.

    Attributes
    ----------
    pipeline
        The composition under test; override it.
    """

    pipeline: ClassVar[str]

    @pytest.fixture
    def store_keys(self, tmp_path: Path) -> dict[str, Any]:
        """Configuration keys that the composition needs, ``storage_backends`` for instance; override it."""
        return {}

    @pytest.fixture
    def opener(self, store_keys: dict[str, Any]) -> Opener:
        """A function that opens a store; its keywords are configuration keys, over those of `store_keys`."""
        geometry: dict[str, Any] = {"block_size": BLOCK_BYTES, "shard_size": SHARD_BYTES, "namespace": "suite"}
        small = {"staging_buffer_gb": 0.002, "known_blocks_max": 4096}  # quickly made

        def opening(**changes: Any) -> _Opening:
            return open_store(self.pipeline, **(geometry | small | store_keys | changes))

        return opening

    @pytest_asyncio.fixture
    async def store(self, opener: Opener) -> AsyncIterator[Store]:
        """An open store, closed after the test."""
        async with opener() as store:
            yield store
