"""Which segment a class of slots gives up for another class, when all space is taken.

Blocks of other lengths may come than those that are there: another codec was chosen, or other layers are stored. Within
its class each of them takes the slot of the coldest block. That is as good as one order of all blocks only as long as
the classes' coldest blocks are equally cold, so segments go over from a class that is colder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ...tasks import ids_among
from ...types import I64, U8, Bools
from .slab import STORED, TAKEN, Slab

__all__ = ["NEVER", "Exchange", "Segments", "colder_segments"]

LOOK_S: Final = 2
"""So long, in seconds, what was found out about all segments is good for."""

BUSY_S: Final = 2
"""A segment of which any process asked for a block so lately does not go, as long as there are others."""

NEVER: Final = -1.0
"""The time at which nothing was asked for last."""

SPARED_SHARE: Final = 4
"""A segment is as warm as the coldest of the warmest quarter of its slots. With their mean, a few blocks that are very
cold would take hot ones with them; and a single hot block would keep a cold segment from going if all were spared."""

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Segments:
    """When the blocks of segments were last asked for; stamps are as in `slabs.stamp_now`.

    Attributes
    ----------
    segments, kinds
        int64, shape (s,): segments that are there, and their classes.
    warmth
        float64, shape (s,): a stamp that only one in `SPARED_SHARE` of its slots exceeds; a free one's is `NEVER`.
    oldest, latest
        float64, shape (s,): of the stamps of what is stored in each; `NEVER` where nothing is.
    in_use
        Bool, shape (s,): whether somebody writes to it, or this store reads from it.
    """

    segments: I64
    kinds: I64
    warmth: F64
    oldest: F64
    latest: F64
    in_use: Bools


def coldest_of(there: Segments, kind: int, now: float) -> float:
    """Return the stamp of the coldest block of a class; `now` if it has none."""
    oldest = there.oldest[(there.kinds == kind) & (there.oldest != NEVER)]
    return float(oldest.min(initial=now))


def colder_segments(there: Segments, kind: int, bound: float, quiet_since: float) -> I64:
    """Return the segments of other classes whose blocks should go before the coldest ones of class `kind`.

    Those are the ones that are colder than `bound`, the stamp of these, and of which nothing was asked for since
    `quiet_since`: int64, shape (n,), the coldest first.
    """
    can = (there.kinds != kind) & ~there.in_use & (there.warmth < bound) & (there.latest < quiet_since)
    at = np.flatnonzero(can)
    return np.asarray(there.segments[at[np.argsort(there.warmth[at], kind="stable")]])


class Exchange:
    """Chooses segments of one backend. One call at a time.

    Parameters
    ----------
    slab
        The backend's slots.
    in_transfer
        Returns the ids of blocks that this store is reading or writing.
    now
        Tells the time as slots are stamped.
    """

    def __init__(self, slab: Slab, in_transfer: Callable[[], list[U8]], now: Callable[[], int]) -> None:
        self._slab = slab
        self._in_transfer = in_transfer
        self._now = now
        self._found: dict[int, tuple[int, float, list[int]]] = {}  # by class: when that was, bound, segments

    def worthwhile(self, kind: int) -> bool:
        """Tell whether there are segments of other classes than `kind`."""
        memory = self._slab.memory
        return bool((memory.kinds[memory.present != 0] != kind).any())

    async def choose(self, kind: int) -> int:
        """Choose a segment that should make way for one of class `kind`; -1 if none should."""
        now = self._now()
        since, bound, segments = self._found.get(kind, (now - LOOK_S, 0.0, []))
        quiet_since = now - BUSY_S
        if not 0 <= now - since < LOOK_S:
            every = await self._look()
            bound = coldest_of(every, kind, now)
            segments = colder_segments(every, kind, bound, quiet_since).tolist()
            self._found[kind] = now, bound, segments
        while segments:
            one = await self._look(segments.pop(0))  # somebody may have asked for it meanwhile
            for segment in colder_segments(one, kind, bound, quiet_since).tolist():
                return int(segment)
        return -1

    async def choose_any(self, kind: int) -> int:
        """Choose the coldest segment of another class that is not in use just now; -1 if there is none."""
        segments = colder_segments(await self._look(), kind, np.inf, np.inf)
        return int(segments[0]) if len(segments) else -1

    async def _look(self, segment: int = -1) -> Segments:
        """Look at the slots of a segment, or at all, which takes a hundred milliseconds where there are a million."""
        return await asyncio.to_thread(self._measure, segment, self._in_transfer())

    def _measure(self, segment: int, in_transfer: list[U8]) -> Segments:
        memory = self._slab.memory
        segments = np.flatnonzero(memory.present)
        if segment >= 0:
            segments = segments[segments == segment]
        times, in_use = np.full((len(segments), 3), NEVER), np.zeros(len(segments), dtype=np.bool_)
        for row, number in enumerate(segments.tolist()):
            states, ids, stamps = self._slab.scan(number)
            there = states == STORED
            if there.any():
                times[row] = _warmth_of(np.where(there, stamps, NEVER)), stamps[there].min(), stamps[there].max()
            in_use[row] = (states == TAKEN).any() or ids_among(np.ascontiguousarray(ids[there]), in_transfer).any()
        warmth, oldest, latest = times.T
        return Segments(segments, memory.kinds[segments].astype(np.int64), warmth, oldest, latest, in_use)


def _warmth_of(stamps: F64) -> float:
    spared = len(stamps) // SPARED_SHARE
    return float(np.sort(stamps)[-1 - spared])
