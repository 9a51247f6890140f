"""One load of many hits against memcpy with as many threads, from the same slots into the same memory."""

from __future__ import annotations

import asyncio
import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from ...stages.cache.stage import POOL_THREADS
from ...types import U8
from ..blocks import verify
from ..cache import CacheSetting, slot_addresses
from ..measure import Contestant, Finding, Sample, alternate, stopwatch
from ..setting import BenchError, load_once, numbered_ids, prepare_blocks, require_ok, size_name

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["measure"]

_BLOCK_BYTES: Final = 1 << 20
_GOAL: Final = 0.9
_ROUNDS: Final = 8
"""Rounds are short here; so many for one of the others."""


async def measure(setting: CacheSetting) -> list[Finding]:
    """Load blocks that are all in the cache."""
    blocks = setting.hit_blocks
    ids = numbered_ids(0, blocks)
    source, target = [await prepare_blocks(ids, _BLOCK_BYTES) for _ in range(2)]
    async with (
        setting.folder("hits", 2 * source.nbytes) as folder,
        setting.open_cache(folder, _BLOCK_BYTES, 2 * blocks) as store,
    ):
        require_ok("dump", [await store.dump(ids, None, source)])
        target.fill(0)
        async with store.lease(ids) as views:
            slots = slot_addresses(views)
        with ThreadPoolExecutor(POOL_THREADS) as pool:
            contestants = {"store": _loading(setting, store, ids, target), "memcpy": _copying(pool, slots, target)}
            measured = await alternate(contestants, setting.rounds * _ROUNDS)
        if not (await asyncio.to_thread(verify, target, ids)).all():
            raise BenchError("load of hits: wrong bytes")
        _require_hits(store, blocks)
    rate, other = (measured.gb_per_s(name, _BLOCK_BYTES) for name in ("store", "memcpy"))
    what = f"{blocks} hits of {size_name(_BLOCK_BYTES)}"
    ratio, reference = measured.speed_ratio("store", "memcpy"), f"memcpy, {POOL_THREADS} threads"
    return [Finding("hits", what, rate, "GB/s", reference, other, ratio, (">=", _GOAL))]


def _require_hits(store: Store, blocks: int) -> None:
    evictions = store.statistics().pipeline["Cache"]["stage"]["buffer"]["evictions"]
    if evictions:
        raise BenchError(f"{evictions} of {blocks} blocks were evicted: those were no hits")


def _loading(setting: CacheSetting, store: Store, ids: U8, target: U8) -> Contestant:
    async def load(_round: int) -> Sample:
        return await load_once(setting, store, ids, target)

    return load


def _copying(pool: ThreadPoolExecutor, slots: list[int], target: U8) -> Contestant:
    """Each thread copies block after block; `ctypes` gives up the GIL for each, below a microsecond."""
    places = [target.ctypes.data + row * _BLOCK_BYTES for row in range(len(slots))]
    pairs = list(zip(places, slots, strict=True))

    def copy(part: list[tuple[int, int]]) -> None:
        for place, slot in part:
            ctypes.memmove(place, slot, _BLOCK_BYTES)

    async def run(_round: int) -> Sample:
        loop = asyncio.get_running_loop()
        with stopwatch() as watch:
            jobs = [loop.run_in_executor(pool, copy, pairs[at::POOL_THREADS]) for at in range(POOL_THREADS)]
            await asyncio.gather(*jobs)
        return Sample(len(slots), watch.wall_s, watch.cpu_s)

    return run
