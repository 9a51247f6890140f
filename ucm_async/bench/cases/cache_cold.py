"""A cold load through the Cache against the same load without one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from ...types import U8
from ..blocks import verify
from ..cache import CacheSetting
from ..measure import Contestant, Finding, Sample, alternate
from ..setting import BenchError, Shape, load_once, numbered_ids, prepare_blocks, require_ok

__all__ = ["measure"]

_GOAL: Final = 0.9


async def measure(setting: CacheSetting) -> list[Finding]:
    """Load every shape from disk, through stores that were opened just before and have not seen a block."""
    return [finding for shape in setting.shapes for finding in await _measure_shape(setting, shape)]


async def _measure_shape(setting: CacheSetting, shape: Shape) -> list[Finding]:
    ids = numbered_ids(0, shape.blocks)
    memory = await prepare_blocks(ids, shape.block_bytes)
    async with setting.folder(f"cold-{shape.block_bytes}", shape.total_bytes) as folder:
        async with setting.open_store(folder, shape.block_bytes) as store:
            require_ok("dump", [await store.dump(ids, None, memory, durability="synced")])
        memory.fill(0)
        contestants = {
            f"{pipeline}, {kind}": _loading(setting, shape, folder, ids, memory, pipeline, kind == "registered")
            for kind in ("unregistered", "registered")
            for pipeline in ("Cache|Posix", "Posix")
        }
        measured = await alternate(contestants, setting.rounds)
        if not (await asyncio.to_thread(verify, memory, ids)).all():
            raise BenchError("cold load: wrong bytes")
    found = []
    for kind in ("unregistered", "registered"):
        ours, other = f"Cache|Posix, {kind}", f"Posix, {kind}"
        rate, reference = (measured.gb_per_s(name, shape.block_bytes) for name in (ours, other))
        ratio = measured.speed_ratio(ours, other)
        what = f"{shape}, cold, {kind}"
        found.append(Finding("cold", what, rate, "GB/s", "Posix", reference, ratio, (">=", _GOAL)))
    return found


def _loading(
    setting: CacheSetting, shape: Shape, folder: Path, ids: U8, memory: U8, pipeline: str, registered: bool
) -> Contestant:
    async def load(_round: int) -> Sample:
        if pipeline == "Posix":
            opening = setting.open_store(folder, shape.block_bytes)
        else:
            opening = setting.open_cache(folder, shape.block_bytes, 2 * shape.blocks)
        async with opening as store:
            if not registered:
                return await load_once(setting, store, ids, memory)
            with store.register(memory):
                return await load_once(setting, store, ids, memory)

    return load
