"""One hit on an idle store against a memcpy of the same slot, on each event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...types import U8
from ..cache import CacheSetting, slot_addresses
from ..measure import Finding, Spread, percentiles
from ..setting import numbered_ids, prepare_blocks, require_ok, size_name

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["measure"]

_SIZES: Final = (1 << 20, 64 << 10)
_BLOCKS: Final = 64
_GOAL_US: Final = 20.0


async def measure(setting: CacheSetting) -> list[Finding]:
    """Load block after block on asyncio's loop and on uvloop's, each in a thread of its own."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop  # noqa: PLC0415  (optional)

        loops["uvloop"] = uvloop.new_event_loop
    found = []
    for block_bytes in _SIZES:
        ids = numbered_ids(0, _BLOCKS)
        memory = await prepare_blocks(ids, block_bytes)
        for name, factory in loops.items():
            async with setting.folder("latency", 2 * memory.nbytes) as folder:
                found.append(await asyncio.to_thread(_measure_on, name, factory, setting, folder, ids, memory))
    return found


def _measure_on(
    name: str,
    factory: Callable[[], asyncio.AbstractEventLoop],
    setting: CacheSetting,
    folder: Path,
    ids: U8,
    memory: U8,
) -> Finding:
    with asyncio.Runner(loop_factory=factory) as runner:
        rounds = runner.run(_measure(setting, folder, ids, memory))
    medians = [{which: percentiles(times)["p50"] for which, times in one.items()} for one in rounds]
    later = Spread.of([one["load"] - one["memcpy"] for one in medians])
    detail = {
        which: {key: round(us, 1) for key, us in percentiles([us for one in rounds for us in one[which]]).items()}
        for which in ("load", "memcpy")
    }
    what = f"one hit of {size_name(memory.shape[1])}, {name}: p50"
    return Finding("latency", what, later, "µs after memcpy", goal=("<=", _GOAL_US), detail=detail)


async def _measure(setting: CacheSetting, folder: Path, ids: U8, memory: U8) -> list[dict[str, list[float]]]:
    async with setting.open_cache(folder, memory.shape[1], 2 * len(ids)) as store:
        require_ok("dump", [await store.dump(ids, None, memory)])
        async with store.lease(ids) as views:
            slots = slot_addresses(views)
            with _no_collector():
                return [await _round(setting, store, ids, memory[:1], slots) for _ in range(setting.rounds + 1)][1:]


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Keep the collector's pauses out of single measurements of some microseconds."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _round(setting: CacheSetting, store: Store, ids: U8, row: U8, slots: list[int]) -> dict[str, list[float]]:
    """Load and copy in turns; another block each time, so that it does not come from the processor's cache."""
    times: dict[str, list[float]] = {"load": [], "memcpy": []}
    for number in range(setting.latency_loads):
        at = number % len(ids)
        one, other = (at, (at + len(ids) // 2) % len(ids))
        if number // len(ids) % 2:
            times["memcpy"].append(_copy_us(row, slots[one]))
            times["load"].append(await _load_us(store, ids[other : other + 1], row))
        else:
            times["load"].append(await _load_us(store, ids[one : one + 1], row))
            times["memcpy"].append(_copy_us(row, slots[other]))
    return times


async def _load_us(store: Store, block_id: U8, row: U8) -> float:
    started = time.perf_counter()
    result = await store.load(block_id, None, row)
    took = time.perf_counter() - started
    require_ok("load", [result])
    return took * 1e6


def _copy_us(row: U8, slot: int) -> float:
    address, size = row.ctypes.data, row.shape[1]
    started = time.perf_counter()
    ctypes.memmove(address, slot, size)
    return (time.perf_counter() - started) * 1e6
