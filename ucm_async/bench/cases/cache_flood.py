"""How long loads take while dumps flood the same store: with two queues, with one for both, and without the flood."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...types import U8
from ..cache import CacheSetting
from ..measure import Finding, Spread, percentiles
from ..setting import numbered_ids, prepare_blocks, require_ok

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["measure"]

_BLOCK_BYTES: Final = 1 << 20
_LOADED: Final = 64  # blocks that are loaded again and again
_CALL_BLOCKS: Final = 4
_PAUSE_S: Final = 0.002
_DUMP_BLOCKS: Final = 16
_DUMPS: Final = 8  # calls under way
_DISK_BYTES_MAX: Final = 4 << 30  # what a flood of a round may write, roughly
_GOAL: Final = 2.7
_FIRST_DUMPED: Final = 1_000_000


async def measure(setting: CacheSetting) -> list[Finding]:
    """Load hits at a steady pace in each of the three ways, in turns."""
    rounds: list[dict[str, dict[str, float]]] = []
    ids = numbered_ids(0, _LOADED)
    loaded = await prepare_blocks(ids, _BLOCK_BYTES)
    dumped = await prepare_blocks(numbered_ids(_FIRST_DUMPED, _DUMP_BLOCKS), _BLOCK_BYTES)
    starts = itertools.count(_FIRST_DUMPED, _DUMP_BLOCKS)
    for _ in range(setting.rounds + 1):
        one: dict[str, dict[str, float]] = {}
        for name, shared in (("two queues", False), ("one queue", True)):
            async with setting.folder("flood", _DISK_BYTES_MAX) as folder:
                one |= await _measure_one(setting, folder, name, shared, (ids, loaded), dumped, starts)
        rounds.append(one)
    return _findings(setting, rounds[1:])


async def _measure_one(
    setting: CacheSetting,
    folder: Path,
    name: str,
    shared: bool,
    hot: tuple[U8, U8],
    dumped: U8,
    starts: itertools.count[int],
) -> dict[str, dict[str, float]]:
    ids, memory = hot
    found = {}
    async with setting.open_cache(folder, _BLOCK_BYTES, setting.flood_blocks, cache_shared_queue=shared) as store:
        require_ok("dump", [await store.dump(ids, None, memory)])
        await _load_all(setting, store, ids, memory)  # what is used again and again stays
        if not shared:
            found["quiet"] = percentiles(await _load_all(setting, store, ids, memory))
        async with _flood(store, dumped, starts):
            await asyncio.sleep(_PAUSE_S * 20)
            found[name] = percentiles(await _load_all(setting, store, ids, memory))
    return found


async def _load_all(setting: CacheSetting, store: Store, ids: U8, memory: U8) -> list[float]:
    """Load a few blocks, pause, and so on; milliseconds of each load."""
    times = []
    for number in range(setting.flood_loads):
        at = number * _CALL_BLOCKS % len(ids)
        part = slice(at, at + _CALL_BLOCKS)
        started = time.perf_counter()
        result = await store.load(ids[part], None, memory[part])
        times.append((time.perf_counter() - started) * 1e3)
        require_ok("load", [result])
        await asyncio.sleep(_PAUSE_S)
    return times


@contextlib.asynccontextmanager
async def _flood(store: Store, dumped: U8, starts: itertools.count[int]) -> AsyncIterator[None]:
    """Keep dumps of new blocks under way inside the block."""
    stop = asyncio.Event()

    async def dump() -> None:
        left = _DISK_BYTES_MAX // _DUMPS
        while not stop.is_set() and left > 0:
            ids = numbered_ids(next(starts), len(dumped))
            require_ok("dump", [await store.dump(ids, None, dumped)])
            left -= dumped.nbytes

    async with asyncio.TaskGroup() as group:
        for _ in range(_DUMPS):
            group.create_task(dump())
        try:
            yield
        finally:
            stop.set()


def _findings(setting: CacheSetting, rounds: list[dict[str, dict[str, float]]]) -> list[Finding]:
    def p99(name: str) -> Spread:
        return Spread.of([one[name]["p99"] for one in rounds])

    def ratio(name: str, other: str) -> Spread:
        return Spread.of([one[name]["p99"] / one[other]["p99"] for one in rounds])

    detail = {
        name: {key: round(Spread.of([one[name][key] for one in rounds]).median, 3) for key in ("p50", "p99", "max")}
        for name in ("quiet", "two queues", "one queue")
    }
    what = f"p99 of {setting.flood_loads} loads of {_CALL_BLOCKS} MiB beside dumps"
    return [
        Finding(
            "flood", f"{what}: one queue for both", p99("one queue"), "ms", "two queues", p99("two queues"),
            ratio("one queue", "two queues"), (">=", _GOAL), detail,
        ),
        Finding(
            "flood", f"{what}: two queues", p99("two queues"), "ms", "quiet", p99("quiet"),
            ratio("two queues", "quiet"),
        ),
    ]  # fmt: skip
