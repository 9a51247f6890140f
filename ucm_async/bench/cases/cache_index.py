"""The index: probes, prefixes and leases of blocks that are in the cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np

from ...types import U8
from ..cache import CacheSetting
from ..measure import Finding, Spread
from ..setting import BenchError, numbered_ids, require_ok
from ..table import FilledTable

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["measure"]

_BATCH: Final = 1000
_BLOCK_BYTES: Final = 4096
_REPEATS: Final = 200
_PROBE_GOAL_NS: Final = 40.0
_PREFIX_GOAL_US: Final = 25.0
_LEASE_GOALS_US: Final = {1: 10.0, 64: 40.0}


async def measure(setting: CacheSetting) -> list[Finding]:
    """Ask a large table, and a store through its public verbs."""
    found = await asyncio.to_thread(_probe, setting)
    ids = numbered_ids(0, _BATCH * setting.index_batches)
    async with (
        setting.folder("index", 4 * len(ids) * _BLOCK_BYTES) as folder,
        setting.open_cache(folder, _BLOCK_BYTES, 2 * len(ids)) as store,
    ):
        for at in range(0, len(ids), _BATCH):
            part = ids[at : at + _BATCH]
            require_ok("dump", [await store.dump(part, None, np.zeros((_BATCH, _BLOCK_BYTES), np.uint8))])
        found.append(await _prefix(setting, store, ids))
        for count, goal_us in _LEASE_GOALS_US.items():
            found.append(await _lease(setting, store, ids, count, goal_us))
    return found


def _probe(setting: CacheSetting) -> list[Finding]:
    table = FilledTable(setting.index_slots)
    times = [table.probe_ns(_BATCH) for _ in range(setting.rounds + 1)][1:]
    what = f"probe of {_BATCH} ids in {setting.index_slots} slots"
    return [Finding("index", what, Spread.of(times), "ns an id", goal=("<=", _PROBE_GOAL_NS))]


async def _rounds(setting: CacheSetting, run: Callable[[int], Awaitable[float]]) -> Spread:
    """Run `_REPEATS` times a round, after one to warm up; the medians of the rounds."""
    medians = [median([await run(number) for number in range(_REPEATS)]) for _ in range(setting.rounds + 1)]
    return Spread.of(medians[1:])


async def _prefix(setting: CacheSetting, store: Store, ids: U8) -> Finding:
    async def run(number: int) -> float:
        at = number * _BATCH % len(ids)
        part = ids[at : at + _BATCH]
        started = time.perf_counter()
        last = await store.lookup_on_prefix(part)
        took = time.perf_counter() - started
        if last != _BATCH - 1:
            raise BenchError("lookup_on_prefix: a block that was dumped is not in the cache")
        return took * 1e6

    what = f"lookup_on_prefix of {_BATCH} cached"
    return Finding("index", what, await _rounds(setting, run), "µs", goal=("<=", _PREFIX_GOAL_US))


async def _lease(setting: CacheSetting, store: Store, ids: U8, count: int, goal_us: float) -> Finding:
    """Time a lease from its call to its views, and back."""

    async def run(number: int) -> float:
        at = number * count % (len(ids) - count)
        part = ids[at : at + count]
        started = time.perf_counter()
        async with store.lease(part) as views:
            pass
        took = time.perf_counter() - started
        if len(views) != count or None in views:
            raise BenchError("lease: a block that was dumped is not in the cache")
        return took * 1e6

    what = f"lease of {count}, taken and given back"
    return Finding("index", what, await _rounds(setting, run), "µs", goal=("<=", goal_us))
