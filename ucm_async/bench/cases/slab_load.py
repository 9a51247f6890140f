"""Loads out of slots, against the Posix stage and against a C program that reads the same slots."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from ...types import U8
from ..blocks import verify
from ..measure import Contestant, Finding, Measured, Sample, alternate
from ..setting import BenchError, Shape, load_once, numbered_ids, prepare_blocks, require_ok
from ..slab import SlabSetting, slot_bytes

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["measure"]


async def measure(setting: SlabSetting) -> list[Finding]:
    """Load every shape."""
    return [finding for shape in setting.shapes for finding in await _measure_shape(setting, shape)]


async def _measure_shape(setting: SlabSetting, shape: Shape) -> list[Finding]:
    ids = numbered_ids(0, shape.blocks)
    memory = await prepare_blocks(ids, shape.block_bytes)
    async with (
        setting.folder(f"slab-load-{shape.block_bytes}", 4 * shape.total_bytes) as folder,
        setting.open_store(folder / "slab", shape.block_bytes, "Slab") as slab,
        setting.open_store(folder / "posix", shape.block_bytes) as posix,
    ):
        for store in (slab, posix):
            require_ok("dump", [await store.dump(ids, None, memory, durability="synced")])
        contestants = {
            "registered": _loading(setting, slab, ids, memory, registered=True),
            "unregistered": _loading(setting, slab, ids, memory),
            "Posix, registered": _loading(setting, posix, ids, memory, registered=True),
            "Posix, unregistered": _loading(setting, posix, ids, memory),
        }
        if setting.program is not None:
            contestants["C program"] = await _program(setting, shape, folder)
        memory.fill(0)
        measured = await alternate(contestants, setting.rounds)
    if not (await asyncio.to_thread(verify, memory, ids)).all():
        raise BenchError("load: wrong bytes")
    return _findings(shape, measured)


def _loading(setting: SlabSetting, store: Store, ids: U8, memory: U8, *, registered: bool = False) -> Contestant:
    async def load(_round: int) -> Sample:
        if not registered:
            return await load_once(setting, store, ids, memory)
        with store.register(memory):
            return await load_once(setting, store, ids, memory)

    return load


async def _program(setting: SlabSetting, shape: Shape, folder: Path) -> Contestant:
    assert setting.program is not None
    program, slot = setting.program, slot_bytes(shape.block_bytes)
    await program.write_slab(folder / "program", slot, shape.blocks, depth=setting.depth)

    async def read(_round: int) -> Sample:
        return await program.read_slab(folder / "program", slot, shape.blocks, depth=setting.depth)

    return read


def _findings(shape: Shape, measured: Measured) -> list[Finding]:
    found = []
    for name in ("registered", "unregistered"):
        rate, what = measured.gb_per_s(name, shape.block_bytes), f"{shape}, {name}"
        for reference, goal in ((f"Posix, {name}", (">=", 1.0)), ("C program", None)):
            if reference in measured:
                other, ratio = measured.gb_per_s(reference, shape.block_bytes), measured.speed_ratio(name, reference)
                found.append(Finding("load", what, rate, "GB/s", reference, other, ratio, goal))
    return found
