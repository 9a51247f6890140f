"""Slots for dumps: free ones, those of a new segment, those of the coldest blocks, and spoilt ones that work again.

A block takes a slot of the smallest class that holds it. Where that has none left, and there is no space for another
segment of it, a segment of a colder class makes way (see `exchange`); or a free slot of a larger class serves; or the
coldest block of the class goes.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from ...blocks.dumping import NO_ROOM
from ...blocks.transfer import Transfer
from ...engines.system import current_system
from ...space import SpaceManager
from ...tasks import ids_among
from ...types import BLOCK_ID_BYTES, I64, U8, U64, Bools
from .exchange import Exchange
from .memory import LOCK_PATIENCE_S
from .slab import BAD, STORED, Slab
from .slabs import Slabs, stamp_now

__all__ = ["Room"]

_log = logging.getLogger("ucm_async.slab")

PATIENCE_S: Final = 0.5
"""So long a dump waits for a slot where every block is busy."""

POLL_S: Final = 0.005
GROW_PAUSE_S: Final = 1.0
"""After a segment was refused, for want of space, none is asked for again for so long."""

RARE_SHARE: Final = 8
"""Of a class that has one segment in so many, or fewer, the coldest blocks are looked for among its own slots: in the
order of all blocks they are far between."""

BUSY_S: Final = 2
"""A block that any process asked for so lately is not evicted, as long as there are others."""


@dataclass(frozen=True, slots=True)
class Cold:
    """Slots of blocks that may go: slots, words, and ids, int64, uint64 (n,) and uint8 (n, 16)."""

    slots: I64
    words: U64
    ids: U8

    def part(self, which: slice) -> Cold:
        """Return some of them."""
        return Cold(self.slots[which], self.words[which], self.ids[which])


_NO_SLOTS: Final = np.zeros(0, dtype=np.int64)
_NOTHING: Final = Cold(_NO_SLOTS, np.zeros(0, dtype=np.uint64), np.zeros((0, BLOCK_ID_BYTES), dtype=np.uint8))


class Room:
    """Sees to it that dumps get slots, within what the store may occupy.

    Parameters
    ----------
    slabs
        The slots.
    manager
        Of the space; its places are the backends that could be opened.
    places
        Place of each backend, -1 for one that could not be opened.
    transfer
        That of dumps.
    drop
        Removes a segment of a place, with all that is in it; returns its bytes, or 0 if it could not.

    Attributes
    ----------
    evicted, grown, exchanged
        Blocks that made room; segments that were made; and those that went for one of another class.
    """

    def __init__(
        self,
        slabs: Slabs,
        manager: SpaceManager,
        places: list[int],
        transfer: Transfer,
        drop: Callable[[int, int], Awaitable[int]],
    ) -> None:
        self._slabs = slabs
        self._manager = manager
        self._places = places
        self._transfer = transfer
        self._drop = drop
        self._loop = asyncio.get_running_loop()
        self._turns = [asyncio.Lock() for _ in places]
        self._refused_until: dict[tuple[int, int], float] = {}  # by backend and class
        self._exchanges: dict[int, Exchange] = {}
        self._failed = [0] * len(places)
        self._mend_not_before = [0.0] * len(places)
        self._locked_out = [False] * len(places)  # somebody else has the lock, so there may be space for a segment
        self._oldest: dict[tuple[int, range], Cold] = {}
        self._system = current_system()
        self.evicted = self.grown = self.exchanged = 0

    async def take(self, backend: int, kind: int, count: int, patience_s: float) -> tuple[I64, int]:
        """Take up to `count` slots of a backend, int64 (n,): fewer if no more can be had for some time.

        They are of the class `kind`, or of a larger one. The second value says why there are no more: an errno, EBUSY
        if another process keeps the lock, or `NO_ROOM`.
        """
        taken = self._take(backend, kind, count)
        if len(taken) == count:
            return taken, 0
        now = self._loop.time()
        until, deadline = now + min(patience_s, PATIENCE_S), now + patience_s
        async with self._turns[backend]:
            try:
                while len(taken) < count:
                    more = await self._find(backend, kind, count - len(taken))
                    if not len(more) and self._loop.time() > (deadline if self._locked_out[backend] else until):
                        # Nobody is refused before the system was asked for him.
                        self._refused_until.pop((backend, kind), None)
                        more = await self._find(backend, kind, count - len(taken))
                        if not len(more):
                            break
                    if not len(more):
                        await asyncio.sleep(POLL_S)
                    taken = np.concatenate((taken, more))
            except BaseException:
                self._slabs.give(np.full(len(taken), backend), taken)
                raise
        return taken, errno.EBUSY if self._locked_out[backend] else self._failed[backend] or NO_ROOM

    async def _find(self, backend: int, kind: int, count: int) -> I64:
        """Take slots, wherever they come from; none if there are none just now."""
        for way in (self._grow, self._exchange, self._take_larger, self._evict, self._mend, self._exchange_any):
            taken = self._take(backend, kind, count)
            if not len(taken):
                taken = await way(backend, kind, count)
            if len(taken):
                break
        return taken

    def _slab(self, backend: int) -> Slab:
        slab = self._slabs.slabs[backend]
        assert slab is not None, "a backend that could not be opened has no slots"
        return slab

    def _take(self, backend: int, kind: int, count: int) -> I64:
        slots = np.zeros(count, dtype=np.int64)
        return slots[: self._slab(backend).table.take(slots, kind)]

    async def _take_larger(self, backend: int, kind: int, count: int) -> I64:
        """Take free slots of the next larger class that has any; none if no class has."""
        for larger in range(kind + 1, self._slab(backend).geometry.largest + 1):
            taken = self._take(backend, larger, count)
            if len(taken):
                return taken
        return _NO_SLOTS

    # ---- a new segment

    async def _grow(self, backend: int, kind: int, count: int) -> I64:
        """Take slots of a new segment, or of one that another process made; none if there is no space for one."""
        slab = self._slab(backend)
        if self._loop.time() < self._refused_until.get((backend, kind), 0.0):
            return _NO_SLOTS
        self._failed[backend] = 0
        self._locked_out[backend] = not await slab.memory.acquire(LOCK_PATIENCE_S)
        if self._locked_out[backend]:
            self._refused_until[backend, kind] = self._loop.time() + GROW_PAUSE_S
            return _NO_SLOTS
        try:
            made = True
            while made:  # others may take every slot of a new segment
                taken = self._take(backend, kind, count)
                if len(taken):
                    return taken
                absent = np.flatnonzero(slab.memory.present == 0)
                made = len(absent) > 0 and await self._make(backend, kind, int(absent[0]))
        finally:
            await asyncio.to_thread(slab.memory.release)
        self._refused_until[backend, kind] = self._loop.time() + GROW_PAUSE_S
        return _NO_SLOTS

    async def _make(self, backend: int, kind: int, number: int) -> bool:
        slab, place, manager = self._slab(backend), self._places[backend], self._manager
        geometry, nbytes = slab.geometry, slab.geometry.segment_bytes(kind)
        self._failed[backend] = 0
        if not manager.reserve(place, nbytes):
            return False
        failed = errno.EIO
        try:
            async with manager.changing():
                await self._remove_stray(slab, place, number)
                failed = await slab.files.create(geometry, kind, number, self._transfer.pool)
                if not failed:
                    manager.commit(place, nbytes)
        finally:
            if failed:
                manager.release(place, nbytes)
        if failed:
            full = failed in (errno.ENOSPC, errno.EDQUOT)
            self._failed[backend] = 0 if full else failed
            level = logging.INFO if full else logging.WARNING
            _log.log(level, "%s: no new segment: %s", slab.backend.home, os.strerror(failed))
            return False
        slab.memory.came(number, kind)
        await asyncio.to_thread(slab.table.add, geometry.first(number), geometry.slots, kind)
        self.grown += 1
        return True

    async def _remove_stray(self, slab: Slab, place: int, number: int) -> None:
        """Remove a file that has the name of a segment and is none: who made it died before it told the others."""
        about = await asyncio.to_thread(slab.backend.system.size_and_time, slab.files.path(number))
        if about is not None and not await slab.files.remove(number, self._transfer.pool):
            self._manager.removed(place, about[0])

    # ---- a segment of another class

    async def _exchange(self, backend: int, kind: int, count: int, *, at_any_price: bool = False) -> I64:
        """Take slots of a segment for which one of a colder class, or several, made way; none if none should."""
        slab = self._slab(backend)
        exchange = self._exchanges.setdefault(backend, Exchange(slab, self._slabs.in_transfer, stamp_now))
        if self._locked_out[backend] or self._failed[backend] or not exchange.worthwhile(kind):
            return _NO_SLOTS
        choose = exchange.choose_any if at_any_price else exchange.choose
        freed, needed = 0, slab.geometry.segment_bytes(kind)
        while freed < needed and (segment := await choose(kind)) >= 0:
            more = await self._drop(self._places[backend], segment)
            if not more:
                break
            freed += more
            self.exchanged += 1
            self._refused_until.pop((backend, kind), None)
            taken = await self._grow(backend, kind, count)
            if len(taken):
                return taken
        return _NO_SLOTS

    async def _exchange_any(self, backend: int, kind: int, count: int) -> I64:
        """Take slots as `_exchange` does, for the coldest segment that there is: else the class could store nothing."""
        return await self._exchange(backend, kind, count, at_any_price=True)

    # ---- the coldest blocks

    async def _evict(self, backend: int, kind: int, count: int) -> I64:
        """Take slots of blocks that are cold and not busy; the blocks cannot be found from then on.

        They are of the class, or, where it has none to give, of any larger one.
        """
        slab, cold = self._slab(backend), _NOTHING
        there = slab.memory.kinds[slab.memory.present != 0]
        for kinds in (range(kind, kind + 1), range(kind, slab.geometry.largest + 1)):
            alike = int(np.count_nonzero((there >= kinds.start) & (there < kinds.stop)))
            if alike * RARE_SHARE > len(there):
                cold = await self._coldest(backend, kinds, count, mixed=alike < len(there))
            if alike and not len(cold.slots):
                cold = await self._oldest_slots(backend, kinds, count)
            if len(cold.slots):
                break
        if not len(cold.slots):
            return _NO_SLOTS
        with self._system.collecting(cold.ids):
            got = cold.slots[self._slabs.withdraw(np.full(len(cold.slots), backend), cold.slots, cold.words)]
        self.evicted += len(got)
        return got

    async def _coldest(self, backend: int, kinds: range, count: int, *, mixed: bool) -> Cold:
        """Return slots of some classes, beside which there are others if `mixed`, with the coldest known blocks."""
        slabs = self._slabs

        def keep(ids: U8) -> Bools:
            away = self.busy(ids) | (slabs.choose(ids) != backend)
            if mixed:
                slots = slabs.find(ids, np.full(len(ids), backend))[0]
                away |= (slots >= 0) & ~self._are_of(backend, slots, kinds)
            return np.asarray(away)

        ids = await self._manager.coldest(count, keep)
        slots, words = slabs.find(ids, np.full(len(ids), backend))
        self._manager.forget(ids)
        there = (slots >= 0) & self._are_of(backend, slots, kinds)  # a block may have moved meanwhile
        return Cold(slots[there], words[there], np.ascontiguousarray(ids[there]))

    def _are_of(self, backend: int, slots: I64, kinds: range) -> Bools:
        """Tell which slots, -1 for none, belong to some classes: bool, shape (n,)."""
        slab = self._slab(backend)
        found = slab.memory.kinds[np.maximum(slots, 0) // slab.geometry.slots]
        return np.asarray((found >= kinds.start) & (found < kinds.stop))

    # ---- what was spoilt

    async def _mend(self, backend: int, kind: int, count: int) -> I64:
        """Take slots that were out of use, after a write that went well; else errors that are over would cost them."""
        slab = self._slab(backend)
        if self._loop.time() < self._mend_not_before[backend] or not slab.table.counts()["bad"]:
            return _NO_SLOTS
        self._mend_not_before[backend] = self._loop.time() + GROW_PAUSE_S
        if not await slab.memory.acquire(LOCK_PATIENCE_S):
            return _NO_SLOTS
        try:
            bad = await asyncio.to_thread(self._seize_bad, slab, kind, count)
        finally:
            await asyncio.to_thread(slab.memory.release)
        where, marked = np.full(len(bad), backend), np.zeros(len(bad), dtype=np.bool_)
        try:
            await self._slabs.refresh()
            marked = await self._slabs.mark(where, bad, self._transfer.engine)
        finally:
            self._slabs.spoil(where[~marked], bad[~marked])
        return np.asarray(bad[marked])

    def _seize_bad(self, slab: Slab, kind: int, count: int) -> I64:
        """Take up to `count` slots out of use, of a class or a larger one. Only who holds the lock does so. Blocks."""
        found: list[int] = []
        for segment in np.flatnonzero((slab.memory.present != 0) & (slab.memory.kinds >= kind)).tolist():
            states, _, _ = slab.scan(segment)
            for slot in (slab.geometry.first(segment) + np.flatnonzero(states == BAD)).tolist():
                if len(found) < count and slab.table.seize(slot, 1) == 0:
                    found.append(slot)
        return np.array(found, dtype=np.int64)

    def busy(self, ids: U8) -> Bools:
        """Tell which blocks this store is reading or writing: bool, shape (n,)."""
        return ids_among(ids, self._slabs.in_transfer())

    async def _oldest_slots(self, backend: int, kinds: range, count: int) -> Cold:
        """Return stored slots that were not asked for for the longest time: what only other processes know of."""
        cold = self._oldest.get((backend, kinds), _NOTHING)
        if not len(cold.slots):
            cold = await asyncio.to_thread(
                self._find_oldest, backend, kinds, stamp_now() - BUSY_S, self._slabs.in_transfer()
            )
        self._oldest[backend, kinds] = cold.part(slice(count, None))
        return cold.part(slice(count))

    def _find_oldest(self, backend: int, kinds: range, quiet_since: int, in_transfer: list[U8]) -> Cold:
        """Look at all slots of some classes. In a thread, so what belongs to the loop is given."""
        slab, per = self._slab(backend), self._slabs.geometry(backend).slots
        here = (slab.memory.kinds >= kinds.start) & (slab.memory.kinds < kinds.stop)
        segments = np.flatnonzero((slab.memory.present != 0) & here).tolist()
        scans = [slab.scan(segment) for segment in segments]
        if not scans:
            return _NOTHING
        states, ids, stamps = (np.concatenate(column) for column in zip(*scans, strict=True))
        numbers = np.concatenate([slab.geometry.first(segment) + np.arange(per) for segment in segments])
        words = self._slabs.words(np.full(len(numbers), backend), numbers)
        there = (states == STORED) & (stamps < quiet_since) & ~ids_among(ids, in_transfer)
        order = np.flatnonzero(there)[np.argsort(stamps[there], kind="stable")]
        order = order[: max(1, len(order) // 16)]
        return Cold(numbers[order], words[order], ids[order])
