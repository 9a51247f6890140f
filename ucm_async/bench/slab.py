"""The Slab benchmark: its cases, by name, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..blocks.layout import BlockLayout
from . import running
from .limit import LimitProgram
from .setting import Setting

if TYPE_CHECKING:
    from .measure import Finding

__all__ = ["CASES", "SlabSetting", "run_cases", "slot_bytes"]

CASES: Final[Mapping[str, str]] = {
    "dump": "slab_dump",
    "load": "slab_load",
    "latency": "slab_latency",
    "restart": "slab_restart",
}
"""Each case, and its module in `ucm_async.bench.cases`."""


@dataclass(frozen=True, slots=True)
class SlabSetting(Setting):
    """One run of the benchmark.

    Attributes
    ----------
    program
        C program that writes and reads slabs; None where there is no compiler.
    depth
        Its requests in flight.
    restart_blocks, restart_block_bytes
        What a store holds that is opened again.
    """

    program: LimitProgram | None = None
    depth: int = 64
    restart_blocks: int = 100_000
    restart_block_bytes: int = 4096


def slot_bytes(block_bytes: int) -> int:
    """Return the bytes of a slot: a block and its header."""
    return BlockLayout.of(block_bytes, block_bytes).file_bytes


async def run_cases(
    setting: SlabSetting, names: Sequence[str], on_case: Callable[[str], None] = lambda _name: None
) -> list[Finding]:
    """See `running.run_cases`."""
    return await running.run_cases(CASES, setting, names, on_case)
