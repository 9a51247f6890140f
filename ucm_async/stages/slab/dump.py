"""Dumping into slots: take a slot, write header and data in one request, publish; nothing is created or renamed."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import ClassVar

import numpy as np

from ...blocks.dumping import AGAIN, NO_ROOM, BlockDumper, Writing
from ...blocks.layout import BlockLayout
from ...blocks.transfer import Transfer
from ...blocks.writes import BlockWrites
from ...engines import requests as rq
from ...space import WEIGHT_DUMP
from ...types import I64, U8, U64, Bools
from .doubts import Doubts
from .load import SetAside, Touch
from .slabs import ELSEWHERE, PUBLISHED, Place, Slabs, stamp_now
from .syncing import Syncs

__all__ = ["Dumper", "TakeSlots"]

TakeSlots = Callable[[int, int, int, float], Awaitable[tuple[I64, int]]]
"""See `Room.take`."""


class Dumper(BlockDumper[Place]):
    """Takes batches into the slots of several backends."""

    lead: ClassVar[int] = 1  # the mark of a slot that will hold half a block for a while

    def __init__(
        self,
        layout: BlockLayout,
        namespace: bytes,
        slabs: Slabs,
        touch: Touch,
        take: TakeSlots,
        set_aside: SetAside,
        transfer: Transfer,
        writes: BlockWrites,
    ) -> None:
        super().__init__(layout, namespace, transfer, writes)
        self._slabs = slabs
        self._touch = touch
        self._take = take
        self._set_aside = set_aside
        self._doubts = Doubts(namespace, slabs, transfer)
        self._syncs = Syncs(slabs)
        self._turn = asyncio.Lock()

    # ---- blocks that are there

    async def find_stored(self, ids: U8) -> Bools:
        """See `BlockDumper.find_stored`."""
        slots, _ = self._slabs.find(ids, self._slabs.choose(ids), stamp_now())
        stored: Bools = slots >= 0
        self._touch(np.ascontiguousarray(ids[stored]), WEIGHT_DUMP)
        return stored

    async def confirm_stored(self, ids: U8) -> I64:
        """See `BlockDumper.confirm_stored`: a power cut may have torn slots that are older than the machine's start."""
        if not self._doubts:
            return np.zeros(len(ids), dtype=np.int64)
        backend = self._slabs.choose(ids)
        slots, words = self._slabs.find(ids, backend)
        result = np.where(slots >= 0, 0, -errno.ENOENT)
        there = np.flatnonzero(slots >= 0)
        result[there], torn = await self._doubts.look(ids[there], backend[there], slots[there], words[there])
        for g in there[torn].tolist():
            await self._set_aside(int(backend[g]), int(slots[g]), int(words[g]), ids[g : g + 1])
        return result

    def _known_stored(self, ids: U8) -> Bools:
        return np.asarray(self._slabs.find(ids, self._slabs.choose(ids))[0] >= 0)

    async def _sync_stored(self, ids: U8) -> I64:
        slabs = self._slabs
        await slabs.refresh()
        backend = slabs.choose(ids)
        slots, words = slabs.find(ids, backend)
        result = np.full(len(ids), -errno.ENOENT)
        lost = self._slabs.distrusted(backend, slots)
        there = np.flatnonzero((slots >= 0) & ~lost)  # the others are written anew, and replaced then
        result[there] = await self._syncs.sync(backend[there], slots[there], self.transfer.pool)
        bad, good = there[result[there] < 0], there[result[there] == 0]
        self._drop(backend[bad], slots[bad], words[bad])
        moved = self._slabs.words(backend[good], slots[good]) != words[good]
        result[good[moved]] = -errno.ENOENT
        return result

    def _drop(self, backend: I64, slots: I64, words: U64) -> None:
        """Take blocks out of sight of which it is not known whether they can be read for long."""
        mine = self._slabs.withdraw(backend, slots, words)
        self._slabs.spoil(backend[mine], slots[mine])

    # ---- room

    def _locate(self, ids: U8) -> Place:
        return self._slabs.place_to_write(ids)

    async def _make_room(self, writing: Writing[Place]) -> None:
        """Take slots; blocks that are begun have theirs. Of two batches of one block, only one takes a slot."""
        async with nullcontext() if writing.completes.all() else self._turn:
            await self._take_slots(writing)
        await self._slabs.refresh()
        fine = np.flatnonzero(writing.failed == 0)
        room = self._slabs.lengths(writing.place.backend[fine], self._slots(writing, fine))
        needed = self._writes.file_bytes[writing.entries[fine]]
        # Shards that come one at a time have the largest slot from the first on, so no block outgrows its slot.
        assert (room >= needed).all(), "a block would be written over its neighbour"

    async def _take_slots(self, writing: Writing[Place]) -> None:
        backend = writing.place.backend
        kinds = self._slabs.kinds_for(self._writes.file_bytes[writing.entries])
        new = self._writes.slot[writing.entries] < 0
        writing.failed[self._slabs.dead[backend]] = errno.EIO
        new &= writing.failed == 0
        for position, kind in sorted(set(zip(backend[new].tolist(), kinds[new].tolist(), strict=True))):
            groups = np.flatnonzero(new & (backend == position) & (kinds == kind))
            taken, why = await self._take(position, kind, len(groups), writing.batch.patience_s())
            self._writes.slot[writing.entries[groups[: len(taken)]]] = np.sort(taken)  # neighbours become one write
            writing.failed[groups[len(taken) :]] = why
            self.transfer.counts["refused"] += len(groups) - len(taken)

    def _slots(self, writing: Writing[Place], groups: I64) -> I64:
        return np.asarray(self._writes.slot[writing.entries[groups]])

    # ---- chains

    def _aim(self, writing: Writing[Place], writes: rq.Requests, owner: I64) -> None:
        backend, slots = writing.place.backend[owner], self._slots(writing, owner)
        writes["fd"] = self._slabs.descriptors(backend, slots, self._fits_direct(writing, owner))
        writes["offset"] += self._slabs.offsets(backend, slots)
        writing.place.several |= np.bincount(owner, minlength=len(writing.ids)) > 1

    def _put_ends(self, writing: Writing[Place], fine: I64, table: rq.Requests) -> object:
        """Mark slots that will hold half a block: what is in them begins with the header of one that was evicted."""
        begins = ~self._writes.done[writing.entries[fine]].any(axis=1)
        rows = np.flatnonzero(begins & (writing.place.several[fine] | ~writing.completes[fine]))
        if len(rows):
            groups = fine[rows]
            marks = rq.new_requests(len(rows))
            self._slabs.put_mark(marks, writing.place.backend[groups], self._slots(writing, groups))
            table[rows, 0] = marks
        return None

    # ---- the end

    async def _commit(self, writing: Writing[Place]) -> None:
        """Make blocks findable, after they are on the medium if that was asked for."""
        whole = np.flatnonzero(writing.completes & (writing.failed == 0))
        if len(whole) and writing.batch.durability == "synced":
            backend, slots = writing.place.backend[whole], self._slots(writing, whole)
            result = await self._syncs.sync(backend, slots, self.transfer.pool)
            writing.failed[whole] = -result
            writing.lost[whole] = result < 0
            whole = whole[result == 0]
        if len(whole):
            await self._publish(writing, whole)

    async def _publish(self, writing: Writing[Place], whole: I64) -> None:
        ids, backend, slots = writing.ids[whole], writing.place.backend[whole], self._slots(writing, whole)
        outcome = self._slabs.publish(backend, slots, ids)
        there = np.flatnonzero(outcome == ELSEWHERE)
        if len(there) and writing.batch.durability == "synced":
            outcome[there] = self._replace_distrusted(backend[there], slots[there], ids[there])
        done, lost = outcome == PUBLISHED, outcome == ELSEWHERE
        writing.lost[whole] = True
        writing.failed[whole[~done & ~lost]] = NO_ROOM
        self._writes.slot[writing.entries[whole[done]]] = -1
        self.transfer.counts["commits"] += int(done.sum())
        self._touch(np.ascontiguousarray(ids[done | lost]), WEIGHT_DUMP)
        if not lost.any():
            return
        self.transfer.counts["commits_lost"] += int(lost.sum())  # another writer's copy is as good
        await self._give_slots(writing.entries[whole[lost]], backend[lost])
        if writing.batch.durability == "synced":
            result = await self._sync_stored(np.ascontiguousarray(ids[lost]))
            writing.failed[whole[lost]] = np.where(result == -errno.ENOENT, AGAIN, -result)

    def _replace_distrusted(self, backend: I64, slots: I64, ids: U8) -> U8:
        """Publish synced blocks in the place of copies that cannot be synced any more; others' copies stay."""
        old, words = self._slabs.find(ids, backend)
        lost = self._slabs.distrusted(backend, old)
        self._drop(backend[lost], old[lost], words[lost])
        outcome = np.full(len(ids), ELSEWHERE, dtype=np.uint8)
        outcome[lost] = self._slabs.publish(backend[lost], slots[lost], ids[lost])
        return outcome

    async def _clear(self, ids: U8, entries: I64) -> None:
        await self._give_slots(entries, self._slabs.choose(ids))

    async def _give_slots(self, entries: I64, backend: I64) -> None:
        """Give back the slots of blocks that are given up."""
        slots = self._writes.slot[entries]
        self._writes.slot[entries] = -1
        begun = slots >= 0
        bad = self._slabs.distrusted(backend, slots)
        self._slabs.spoil(backend[bad], slots[bad])
        good = begun & ~bad
        if good.any():
            await self._slabs.give_marked(backend[good], slots[good], self.transfer.engine)
