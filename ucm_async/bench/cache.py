"""The Cache benchmark: its cases, by name, and what they share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from . import running
from .setting import BenchError, Setting

if TYPE_CHECKING:
    from ..store import Store
    from .measure import Finding

__all__ = ["CASES", "CacheSetting", "cache_keys", "run_cases", "slot_addresses"]

CASES: Final[Mapping[str, str]] = {
    "hits": "cache_hits",
    "latency": "cache_latency",
    "index": "cache_index",
    "together": "cache_together",
    "cold": "cache_cold",
    "flood": "cache_flood",
    "million": "cache_million",
}
"""Each case, and its module in `ucm_async.bench.cases`."""

_PAGE_BYTES: Final = 4096
_numbers: Final = itertools.count()


@dataclass(frozen=True, slots=True)
class CacheSetting(Setting):
    """One run of the benchmark; smaller numbers make it quicker, and the figures mean less.

    Attributes
    ----------
    hit_blocks
        1 MiB blocks of one load of hits.
    latency_loads
        Loads of one block, of each size on each loop, a round.
    index_slots
        Of the table that is probed.
    index_batches
        Batches of 1000 blocks in the store whose prefixes are looked up.
    prefix_blocks, processes
        1 MiB blocks that so many processes load at once.
    flood_loads, flood_blocks
        Loads beside a flood of dumps, a round; and blocks that the cache holds then.
    entries
        Of the large table.
    """

    hit_blocks: int = 64
    latency_loads: int = 400
    index_slots: int = 1 << 18
    index_batches: int = 8
    prefix_blocks: int = 96
    processes: int = 4
    flood_loads: int = 200
    flood_blocks: int = 512
    entries: int = 1_000_000

    def open_cache(
        self, folder: Path, block_bytes: int, blocks: int, **keys: Any
    ) -> AbstractAsyncContextManager[Store]:
        """Open ``Cache|Posix`` of whole blocks in `folder`, with room for `blocks` blocks in memory of its own."""
        return self.open_store(folder, block_bytes, "Cache|Posix", **cache_keys(block_bytes, blocks), **keys)


def cache_keys(block_bytes: int, blocks: int) -> dict[str, Any]:
    """Return the keys of a new cache of `blocks` blocks that nobody else uses."""
    slot_bytes = -(-block_bytes // _PAGE_BYTES) * _PAGE_BYTES
    return {
        "cache_buffer_capacity_gb": blocks * slot_bytes / (1 << 30),
        "unique_id": f"bench-{os.getpid()}-{next(_numbers)}",
    }


def slot_addresses(views: Sequence[memoryview | None]) -> list[int]:
    """Return where leased blocks lie; there they stay while they are leased, or nothing evicts them.

    Raises
    ------
    BenchError
        One is not in the cache.
    """
    if None in views:
        raise BenchError("a block that was dumped is not in the cache")
    return [int(np.frombuffer(view, np.uint8).ctypes.data) for view in views if view is not None]


async def run_cases(
    setting: CacheSetting, names: Sequence[str], on_case: Callable[[str], None] = lambda _name: None
) -> list[Finding]:
    """See `running.run_cases`."""
    return await running.run_cases(CASES, setting, names, on_case)
