"""Which blocks are wanted and which are cold: a number each, that accesses raise and time lowers. One loop's.

An access at time t counts 2^(t / half-life) times its weight, and a block's number is the binary logarithm of the sum
of its accesses. So all numbers decay together without being touched, and the order of blocks that nobody asks for never
changes (forward decay: Cormode, Shkapenyuk, Srivastava and Xu, ICDE 2009; with a half-life between zero and infinity it
goes from LRU to LFU: Lee et al., LRFU, IEEE Transactions on Computers 50(12), 2001).

Times are the system's clock, not a monotonic one: the numbers are kept over restarts, and compared between processes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from ..native import IdTable
from ..types import BLOCK_ID_BYTES, I64, U8, Bools

__all__ = ["F64", "HALF_LIFE_S", "WEIGHT_DUMP", "WEIGHT_LOAD", "WEIGHT_LOOKUP", "Hotness"]

F64 = npt.NDArray[np.float64]

HALF_LIFE_S: Final = 600.0
WEIGHT_LOAD: Final = 1.0
WEIGHT_DUMP: Final = 1.0
WEIGHT_LOOKUP: Final = 0.25
"""A lookup that found a block is often followed by its load."""

PLAN_SHARE: Final = 16
"""A plan holds one block in so many: choosing n/16 of n numbers and putting them in order costs each block that goes
about 16 looks at a number and a logarithm's worth of comparisons."""

PLAN_MIN: Final = 4096
SAMPLE: Final = 8
"""Of so many blocks, drawn at random, the coldest is forgotten when there is no room for another."""

ROOM_MIN: Final = 1 << 16
"""Blocks that there is room for at first; then it grows, four times as much at a time."""

POSITION_STEP: Final = 1e-8
"""By so many half-lives a block of a batch is colder than the one before it: as if it was asked for 6 µs earlier."""

EPOCH_S: Final = 1_735_689_600.0
"""Times are counted from the beginning of 2025, so that a float64 still tells such steps apart."""

GONE: Final = np.inf
"""The number of a slot that holds no block: never cold."""


def access_number(at: float, weight: float) -> float:
    """Return what one access at time `at` (seconds since the epoch) counts, as a logarithm."""
    return (at - EPOCH_S) / HALF_LIFE_S + math.log2(weight)


class Hotness:
    """The order in which blocks may go. Bounded: of more blocks than `capacity` it forgets some of the cold ones.

    It is a hint. A block that is gone may stay in it (the table of ids loses some when it is full), and one that is
    there may be missing: who removes the coldest must expect the first, and look at the disk for the second.

    An access costs a look-up and a sum; no order is kept up. Who asks for the coldest gets them from a plan, made in a
    thread when the last one is used up. A number that has not changed since the plan was made is still colder than all
    that are not in it, since numbers only grow; a block whose number has changed was asked for, and is passed over.

    Parameters
    ----------
    capacity
        How many blocks are remembered at most.
    clock
        Seconds since the epoch.

    Attributes
    ----------
    clock
        As it was given.
    room
        How many are remembered before it grows: until then, it forgets. Some 64 bytes each.
    """

    def __init__(self, capacity: int, clock: Callable[[], float] = time.time) -> None:
        self.capacity = capacity
        self.clock = clock
        self.room = min(capacity, ROOM_MIN)
        self._table = IdTable(self.room)  # id -> slot + 1
        self._ids: U8 = np.empty((capacity, BLOCK_ID_BYTES), dtype=np.uint8)  # memory comes with use
        self._number: F64 = np.empty(capacity)
        self._end = 0  # slots from here on were never used
        self._free: list[I64] = []
        self._length = 0
        self._changes: list[tuple[U8, I64 | None]] | None = None  # while the table is copied
        self._taken: tuple[U8, I64] = _NO_IDS, _NO_SLOTS  # what was returned last
        self._plan: tuple[I64, F64] = _NO_PLAN
        self._generator = np.random.default_rng(0)

    def __len__(self) -> int:
        return self._length

    # ---- accesses

    def touch(self, ids: U8, weight: float, at: float | None = None) -> None:
        """Count an access to each of `ids`, uint8 (n, 16), at time `at` (seconds since the epoch; default now).

        Costs some 0.1 µs an id; ids that are not known yet are added. Of blocks that were asked for together the last
        go first: often they are a prefix, which is worth nothing without its beginning. What stages call is
        `SpaceManager.touch`, which only notes it.
        """
        when = self.clock() if at is None else at
        steps: F64 = POSITION_STEP * np.arange(len(ids), dtype=np.float64)
        self.merge(ids, access_number(when, weight) - steps, np.logaddexp2)

    def merge(self, ids: U8, numbers: F64, how: np.ufunc = np.maximum) -> None:
        """Take over numbers, (n,), of blocks: what another process knows (the larger number counts), or accesses."""
        slots = self._slots(ids)
        if (slots < 0).any():
            unknown = np.flatnonzero(slots < 0)
            _, first = np.unique(ids[unknown].view(_ID).ravel(), return_index=True)
            new = unknown[np.sort(first)]
            for start in range(0, len(new), self.room):
                rows = new[start : start + self.room]
                self._add(ids[rows], numbers[rows])
            again = np.ones(len(ids), dtype=np.bool_)
            again[new] = False
            ids, numbers = ids[again], numbers[again]
            slots = self._slots(ids)
            numbers, slots = numbers[slots >= 0], slots[slots >= 0]  # there may be no room for all
        how.at(self._number, slots, numbers)

    def _slots(self, ids: U8) -> I64:
        """Return the slot of each id, -1 where it is not known."""
        out = np.empty(len(ids), dtype=np.uint64)
        self._table.get(np.ascontiguousarray(ids), out)
        return out.astype(np.int64) - 1

    def _add(self, ids: U8, numbers: F64) -> None:
        slots = self._take_slots(len(ids))
        ids, numbers = ids[: len(slots)], numbers[: len(slots)]
        self._ids[slots] = ids
        self._number[slots] = numbers
        self._change(self._table, np.ascontiguousarray(ids), slots)
        self._length += len(slots)

    def _change(self, table: IdTable, ids: U8, slots: I64 | None) -> None:
        """Put ids into the table, or out of it if they have no slots."""
        if slots is None:
            table.discard(ids)
        else:
            table.put(ids, (slots + 1).astype(np.uint64))
        if self._changes is not None:
            self._changes.append((ids, slots))

    def _take_slots(self, count: int) -> I64:
        """Return `count` slots that hold nothing; fewer if so many cannot be found at random."""
        taken: list[I64] = []
        while self._free and count:
            last = self._free.pop()
            if len(last) > count:
                self._free.append(last[count:])
            taken.append(last[:count])
            count -= len(taken[-1])
        fresh = min(count, self.room - self._end)
        taken.append(np.arange(self._end, self._end + fresh))
        self._end += fresh
        if count > fresh:
            victims = self._sample(count - fresh)
            self._drop(victims)
            taken.append(victims)
        return np.concatenate(taken)

    def _sample(self, count: int) -> I64:
        drawn = self._generator.integers(0, self._end, (count, SAMPLE))
        numbers = np.where(np.isfinite(self._number[drawn]), self._number[drawn], np.inf)
        victims: I64 = np.unique(drawn[np.arange(count), numbers.argmin(axis=1)])
        return np.asarray(victims[np.isfinite(self._number[victims])])

    def _drop(self, slots: I64) -> None:
        """Empty slots; a table that is full has forgotten some of their ids, or knows them by another slot."""
        ids = self._ids[slots]
        mine = self._slots(ids) == slots
        self._change(self._table, np.ascontiguousarray(ids[mine]), None)
        self._number[slots] = GONE
        self._length -= len(slots)

    def forget(self, ids: U8) -> None:
        """Forget blocks that were removed."""
        slots = self._slots(ids)
        lost = slots < 0
        if lost.any():  # a full table forgets some ids; their slots are known here if they were just returned
            taken, where = self._taken
            same = np.isin(taken.view(_ID).ravel(), np.ascontiguousarray(ids[lost]).view(_ID).ravel())
            same &= (self._ids[where] == taken).all(axis=1)
            slots = np.concatenate((slots, where[same]))
        slots = np.unique(slots[slots >= 0])
        slots = slots[np.isfinite(self._number[slots])]
        if len(slots):
            self._drop(slots)
            self._free.append(slots)

    def unknown(self, ids: U8) -> Bools:
        """Tell which blocks are not known: bool, shape (n,)."""
        return np.asarray(self._slots(ids) < 0)

    async def grow(self, blocks: int) -> None:
        """Make room for so many blocks, within `capacity`; accesses go on meanwhile. One at a time."""
        while self.room < min(blocks, self.capacity):
            room = min(4 * self.room, self.capacity)
            self._changes = []
            try:
                table = await asyncio.to_thread(self._copy_table, room)
            finally:
                changes, self._changes = self._changes, None
            for ids, slots in changes:
                self._change(table, ids, slots)
            self._table, self.room = table, room

    def _copy_table(self, room: int) -> IdTable:
        table = IdTable(room)
        numbers = self._number[: self._end].copy()
        slots = np.flatnonzero(np.isfinite(numbers))
        table.put(self._ids[slots], (slots + 1).astype(np.uint64))
        return table

    # ---- the order

    async def coldest(self, count: int, keep: Callable[[U8], Bools] | None = None) -> U8:
        """Return up to `count` of the coldest blocks, the coldest first: uint8 (m, 16), m <= count.

        Parameters
        ----------
        count
            How many are wanted.
        keep
            Told some ids, says which must stay (bool, their shape); they are passed over.

        Returns
        -------
        numpy.ndarray
            Fewer than `count` only if there are not more, or the others must stay or were just asked for. They stay
            known until `forget`; what was returned and not forgotten comes again when all others have had their turn.
        """
        out, passed, missing, plans = [_NO_SLOTS], [_NO_SLOTS], count, 0
        while missing > 0:
            slots, numbers = self._plan
            if not len(slots):
                if plans == 2:
                    break
                # If the usual plan was all passed over, the whole of the order is worth its price.
                share = PLAN_SHARE if plans == 0 else 1
                self._plan = await asyncio.to_thread(self._make_plan, share, np.concatenate(passed))
                plans += 1
                continue
            step = min(len(slots), missing)
            self._plan = slots[step:], numbers[step:]
            passed.append(slots[:step])
            slots = slots[:step][self._number[slots[:step]] == numbers[:step]]
            slots = slots[self._is_current(slots)]
            if keep is not None and len(slots):
                slots = slots[~keep(self._ids[slots])]
            out.append(slots)
            missing -= len(slots)
        taken = np.concatenate(out)
        ids = self._ids[taken]
        self._taken = ids, taken
        return ids

    def _is_current(self, slots: I64) -> Bools:
        """Tell which slots speak for their blocks: a block that the table forgot may have got another slot since."""
        found = self._slots(self._ids[slots])
        stale = (found >= 0) & (found != slots)
        if stale.any():
            self._number[slots[stale]] = GONE
            self._length -= int(stale.sum())
            self._free.append(slots[stale])
        return np.asarray(~stale)

    def _make_plan(self, share: int, without: I64) -> tuple[I64, F64]:
        """Choose the coldest and put them in order. Runs in a thread, beside accesses: so from a copy."""
        numbers = self._number[: self._end].copy()
        numbers[without] = GONE
        there = int(np.isfinite(numbers).sum())
        size = min(there, max(PLAN_MIN, there // share))
        if not size:
            return _NO_PLAN
        chosen = np.argpartition(numbers, size - 1)[:size]
        order = chosen[np.argsort(numbers[chosen], kind="stable")]
        return order, numbers[order]

    # ---- what is kept over a restart

    def snapshot(self) -> tuple[U8, F64]:
        """Return the blocks and their numbers. May run in a thread, beside accesses."""
        numbers = self._number[: self._end].copy()
        ids = self._ids[: len(numbers)].copy()
        there = np.isfinite(numbers)
        return ids[there], numbers[there]


_ID: Final = np.dtype(("V", BLOCK_ID_BYTES))
_NO_IDS: Final = np.zeros((0, BLOCK_ID_BYTES), dtype=np.uint8)
_NO_SLOTS: Final = np.zeros(0, dtype=np.int64)
_NO_PLAN: Final = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float64))
