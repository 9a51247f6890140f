"""What the two lanes of the stage have in common: threads, slots, and parts of a batch that are under way together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ...abc import Batch, Lower
from ...engines.arena import Arena
from ...types import I64, Status
from .units import Geometry
from .workers import Workers

__all__ = ["DUMP_PART_BYTES_MAX", "LOAD_PART_BYTES_MAX", "LaneMeans", "live_rows"]

PART_BYTES_MIN: Final = 2 << 20
"""What a part costs on the loop, here and below, must be little beside what the threads do meanwhile."""

LOAD_PART_BYTES_MAX: Final = 16 << 20
DUMP_PART_BYTES_MAX: Final = 8 << 20
"""So that the first bytes of a large batch are soon with the disk, or with the caller. What a part costs on the loop
keeps a processor from coding, and more so for loads, where decoding is the shorter half."""


@dataclass(slots=True)
class LaneMeans:
    """What one lane works with. Loads and dumps have one each, so that neither waits for the other.

    Attributes
    ----------
    lower
        The stage below.
    workers
        Threads and contexts.
    slots
        Blocks as they are stored; and on the raw side, where the caller has them in pieces. What a lane has under way
        is bounded by them.
    part_bytes_max
        Of a batch that goes together.
    counts
        Plain counters, by name.
    """

    lower: Lower
    geometry: Geometry
    workers: Workers
    threads: int
    slots: Arena
    part_bytes_max: int
    counts: Counter[str] = field(default_factory=Counter)

    def part_blocks(self, blocks: int, slots_a_block: int) -> int:
        """Return how many blocks of a batch go together: half at most, so that threads and disk are busy at a time."""
        block_bytes = self.geometry.slot_bytes
        wanted = -(-blocks // 2)
        wanted = min(max(wanted, PART_BYTES_MIN // block_bytes), max(1, self.part_bytes_max // block_bytes))
        most = self.slots.slots // 2 // slots_a_block  # others wait for slots, too
        return max(1, min(wanted, most))

    async def aclose(self) -> None:
        """Free threads and memory; nothing is under way."""
        await self.workers.aclose()
        self.slots.close()

    def statistics(self) -> Mapping[str, Any]:
        """Return plain counters."""
        return {
            "counts": dict(self.counts),
            "contexts": dict(self.workers.statistics()),
            "slots": dict(self.slots.statistics()),
        }


def live_rows(batch: Batch) -> I64:
    """Return the rows that are still wanted, and settle the others, of which nobody sees anything."""
    live = batch.live()
    if not live.all():
        batch.report(~live, Status.CANCELLED)
    return np.flatnonzero(live)
