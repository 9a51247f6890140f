"""Dumps into slots, against a C program that writes the same slots, and against the Posix stage.

Slots that were never written, and slots that are used again, are measured apart: the first write of an extent costs the
file system more, the C program as well.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...types import U8
from ..measure import Contestant, Finding, Measured, Sample, Spread, alternate
from ..setting import Shape, dump_once, numbered_ids, prepare_blocks
from ..slab import SlabSetting, slot_bytes

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["measure"]

_GOAL: Final = 0.9
_POSIX_GOALS: Final = (1.2, 3.0)  # at 1 MiB and more, and below
_USED_ROOM: Final = 1.25
"""A store whose slots are used again has room for so many times the blocks of a round."""


async def measure(setting: SlabSetting) -> list[Finding]:
    """Dump every shape."""
    return [finding for shape in setting.shapes for finding in await _measure_shape(setting, shape)]


async def _measure_shape(setting: SlabSetting, shape: Shape) -> list[Finding]:
    memory = await prepare_blocks(numbered_ids(0, shape.blocks), shape.block_bytes)
    need = (4 * (setting.rounds + 1) + 3) * shape.blocks * slot_bytes(shape.block_bytes)
    room_gb = _USED_ROOM * shape.blocks * slot_bytes(shape.block_bytes) / (1 << 30)
    async with (
        setting.folder(f"slab-dump-{shape.block_bytes}", need) as folder,
        setting.open_store(folder / "slab", shape.block_bytes, "Slab") as new,
        setting.open_store(folder / "used", shape.block_bytes, "Slab", posix_capacity_gb=room_gb) as used,
        setting.open_store(folder / "posix", shape.block_bytes) as posix,
    ):
        contestants = {
            "registered, new slots": _dumping(setting, shape, new, memory, registered=True),
            "unregistered, new slots": _dumping(setting, shape, new, memory, start=1 << 24),
            "registered, used slots": _dumping(setting, shape, used, memory, registered=True),
            "Posix": _dumping(setting, shape, posix, memory, registered=True),
        }
        for number in range(2):  # until every slot has been written
            await dump_once(setting, used, numbered_ids((2 + number) << 24, shape.blocks), memory)
        if setting.program is not None:
            contestants["C program, new slots"] = _program(setting, shape, folder, again=False)
            contestants["C program, used slots"] = _program(setting, shape, folder, again=True)
        measured = await alternate(contestants, setting.rounds)
    return _findings(shape, measured)


def _dumping(
    setting: SlabSetting, shape: Shape, store: Store, memory: U8, *, registered: bool = False, start: int = 0
) -> Contestant:
    starts = itertools.count(start, shape.blocks)  # new ids each time: a block that is stored is not written again

    async def dump(_round: int) -> Sample:
        ids = numbered_ids(next(starts), shape.blocks)
        if not registered:
            return await dump_once(setting, store, ids, memory)
        with store.register(memory):
            return await dump_once(setting, store, ids, memory)

    return dump


def _program(setting: SlabSetting, shape: Shape, folder: Path, *, again: bool) -> Contestant:
    async def write(round_number: int) -> Sample:
        assert setting.program is not None
        path = folder / ("again" if again else f"slab{round_number}")
        return await setting.program.write_slab(path, slot_bytes(shape.block_bytes), shape.blocks, depth=setting.depth)

    return write


def _findings(shape: Shape, measured: Measured) -> list[Finding]:
    found = []
    goal = _POSIX_GOALS[shape.block_bytes < 1 << 20]
    for name in ("registered, new slots", "unregistered, new slots", "registered, used slots"):
        rate, what = measured.gb_per_s(name, shape.block_bytes), f"{shape}, {name}"
        program = f"C program, {name.partition(', ')[2]}"
        if program in measured:
            other, ratio = measured.gb_per_s(program, shape.block_bytes), measured.speed_ratio(name, program)
            found.append(Finding("dump", what, rate, "GB/s", program, other, ratio, (">=", _GOAL)))
        other, ratio = measured.gb_per_s("Posix", shape.block_bytes), measured.speed_ratio(name, "Posix")
        found.append(Finding("dump", what, rate, "GB/s", "Posix", other, ratio, (">=", goal)))
        found.append(_cpu(measured, what, name))
    return found


def _cpu(measured: Measured, what: str, name: str) -> Finding:
    pairs = zip(measured.samples[name], measured.samples["Posix"], strict=True)
    ratio = Spread.of([one.cpu_us_per_block / other.cpu_us_per_block for one, other in pairs])
    value, other = measured.cpu_us(name), measured.cpu_us("Posix")
    return Finding("dump", f"{what}: CPU a block", value, "µs", "Posix", other, ratio, ("<=", 1.0))
