"""Dumps of many new blocks against a C program that creates, writes, closes and renames the same files."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...types import U8
from ..measure import Contestant, Finding, Sample, alternate
from ..setting import Setting, Shape, dump_once, numbered_ids, prepare_blocks

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["measure"]

_GOAL: Final = 0.9
_CONTESTANTS: Final = 3
_GOAL_BLOCK_BYTES: Final = 1 << 20  # the promise is made of blocks of this size and above


async def measure(setting: Setting) -> list[Finding]:
    """Dump every shape."""
    return [finding for shape in setting.shapes for finding in await _measure_shape(setting, shape)]


async def _measure_shape(setting: Setting, shape: Shape) -> list[Finding]:
    memory = await prepare_blocks(numbered_ids(0, shape.blocks), shape.block_bytes)
    need = _CONTESTANTS * (setting.rounds + 1) * shape.total_bytes
    async with (
        setting.folder(f"dump-{shape.block_bytes}", need) as folder,
        setting.open_store(folder / "store", shape.block_bytes) as store,
    ):
        contestants = _stores(setting, shape, store, memory)
        if setting.creator is not None:
            contestants["C program"] = _creator(setting, shape, folder)
        measured = await alternate(contestants, setting.rounds)
    found = []
    for name in ("registered", "unregistered"):
        rate = measured.gb_per_s(name, shape.block_bytes)
        goal = (">=", _GOAL) if shape.block_bytes >= _GOAL_BLOCK_BYTES else None
        finding = Finding("dump", f"{shape}, {name}", rate, "GB/s", "C program", goal=goal)
        if "C program" in measured:
            other, ratio = measured.gb_per_s("C program", shape.block_bytes), measured.speed_ratio(name, "C program")
            finding = Finding("dump", f"{shape}, {name}", rate, "GB/s", "C program", other, ratio, goal)
        found.append(finding)
    return found


def _stores(setting: Setting, shape: Shape, store: Store, memory: U8) -> dict[str, Contestant]:
    starts = itertools.count(0, shape.blocks)  # new ids each time: a block that is stored is not written again

    async def registered(_round: int) -> Sample:
        ids = numbered_ids(next(starts), shape.blocks)
        with store.register(memory):
            return await dump_once(setting, store, ids, memory)

    async def unregistered(_round: int) -> Sample:
        return await dump_once(setting, store, numbered_ids(next(starts), shape.blocks), memory)

    return {"registered": registered, "unregistered": unregistered}


def _creator(setting: Setting, shape: Shape, folder: Path) -> Contestant:
    async def create(round_number: int) -> Sample:
        assert setting.creator is not None
        # Nothing is deleted between rounds: creating right after many deletes is slow on ext4 (see places).
        target = folder / f"files{round_number}"
        await asyncio.to_thread(target.mkdir)
        return await setting.creator.create(target, shape.block_bytes, shape.blocks, threads=setting.create_threads)

    return create
