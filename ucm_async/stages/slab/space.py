"""What the Slab stage tells about its segments: see `ucm_async.space.SpaceUser`."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from typing import Final

import numpy as np

from ...blocks.transfer import Transfer
from ...space import F64, SpaceManager
from ...space.hotness import EPOCH_S
from ...types import I64, U8, Bools
from .aside import copy_to_quarantine
from .backend import QUARANTINE
from .layout import segment_number
from .memory import LOCK_PATIENCE_S, SlabMemory
from .room import Room
from .segments import NEW_NAME
from .slab import STORED, TAKEN, Slab
from .slabs import Slabs

__all__ = ["SlabSpace"]

SEIZE_S: Final = 0.2
"""So long a segment that is to go waits for blocks that are being written into it."""

POLL_S: Final = 0.005
TRIED_MAX: Final = 3
"""So many segments are tried at a time; trying one costs what is in it."""


class SlabSpace:
    """The space of one store's slots: `ucm_async.space.SpaceUser`, and what removes single blocks.

    Blocks that go free no bytes: files of segments are what is accounted for. So when space is short, whole segments
    go, those first that hold the coldest blocks.

    Parameters
    ----------
    slabs
        The slots.
    places
        Place of each backend, -1 for one that could not be opened.
    transfer
        That of dumps.

    Attributes
    ----------
    manager, room
        Set by the stage: they know this object, and it knows them.
    """

    manager: SpaceManager
    room: Room

    def __init__(self, slabs: Slabs, places: list[int], transfer: Transfer) -> None:
        self._slabs = slabs
        self._place = np.array(places)
        self._transfer = transfer
        self._by_place = [slab for slab in slabs.slabs if slab is not None]
        self._stuck = False
        self.dropped = 0

    # ---- single blocks

    async def remove_blocks(self, ids: U8) -> None:
        """Remove blocks, so that they do not come back even if every header is read."""
        slabs = self._slabs
        await slabs.refresh()
        backend = slabs.choose(ids)
        while True:  # a block may be in two slots, if two processes stored it at once
            slots, words = slabs.find(ids, backend)
            there = np.flatnonzero(slots >= 0)
            if not len(there):
                return
            mine = there[slabs.withdraw(backend[there], slots[there], words[there])]
            await slabs.give_marked(backend[mine], slots[mine], self._transfer.engine)

    async def set_aside(self, backend: int, slot: int, word: int, ids: U8) -> str:
        """Take a bad block out of sight, with a copy in quarantine where there is room; returns why copying failed."""
        where, slots = np.array([backend]), np.array([slot])
        if not self._slabs.withdraw(where, slots, np.array([word], dtype=np.uint64)).all():
            return ""  # somebody else was quicker
        self.manager.forget(ids)
        try:
            failed = await self._copy(backend, slot, ids[0].tobytes())
        finally:
            await self._slabs.mark(where, slots, self._transfer.engine)
            self._slabs.spoil(where, slots)
        return "" if failed in (0, errno.EEXIST, errno.ENOSPC) else os.strerror(failed)

    async def _copy(self, backend: int, slot: int, block_id: bytes) -> int:
        slab, place = self._slabs.slabs[backend], int(self._place[backend])
        assert slab is not None, "a backend that could not be opened has no blocks"
        nbytes = int(self._slabs.lengths(np.array([backend]), np.array([slot]))[0])
        if not self.manager.reserve(place, nbytes):
            return errno.ENOSPC
        where, slots, failed = np.array([backend]), np.array([slot]), errno.EIO
        fd, offset = int(self._slabs.descriptors(where, slots)[0]), int(self._slabs.offsets(where, slots)[0])
        try:
            async with self.manager.changing():
                failed = await copy_to_quarantine(slab.backend, fd, offset, nbytes, block_id, self._transfer)
                if not failed:
                    self.manager.commit(place, nbytes)
        finally:
            if failed:
                self.manager.release(place, nbytes)
        return failed

    # ---- ucm_async.space.SpaceUser

    def busy(self, ids: U8) -> Bools:
        """See `SpaceUser.busy`; all of them where no segment can go just now."""
        if self._stuck:
            self._stuck = False
            return np.ones(len(ids), dtype=np.bool_)
        return np.asarray(self.room.busy(ids) | (self.places(ids) < 0))

    def places(self, ids: U8) -> I64:
        """See `SpaceUser.places`."""
        return np.asarray(self._place[self._slabs.choose(ids)])

    def shortage(self) -> int:
        """See `SpaceUser.shortage`: dumps make room for themselves."""
        return 0

    async def remove(self, ids: U8) -> int:
        """See `SpaceUser.remove`: a segment goes, of the place of the coldest block; 0 if none could."""
        if not len(ids):
            return 0
        place = int(self.places(ids[:1])[0])
        for segment in (await asyncio.to_thread(_coldest_segments, self._by_place[place]))[:TRIED_MAX]:
            if freed := await self.drop(place, segment):
                return freed
        self._stuck = True
        return 0

    async def drop(self, place: int, segment: int) -> int:
        """Remove a segment and all that is in it; returns its bytes.

        0 if something in it is being written for long, or somebody else has the lock for long.
        """
        memory = self._by_place[place].memory
        if not await memory.acquire(LOCK_PATIENCE_S):
            return 0
        try:
            if not memory.present[segment]:
                return 0
            slab = self._by_place[place]
            with slab.backend.system.collecting((await asyncio.to_thread(slab.stored, [segment]))[1]):
                seized = await self._seize(memory, segment)
                return await self._remove_segment(place, segment) if seized else 0
        finally:
            await asyncio.to_thread(memory.release)

    @staticmethod
    async def _seize(memory: SlabMemory, segment: int) -> bool:
        """Take every slot of a segment; False, and none is taken, if some are being written."""
        loop = asyncio.get_running_loop()
        until = loop.time() + SEIZE_S
        while await asyncio.to_thread(memory.seize, segment):
            if loop.time() > until:
                await asyncio.to_thread(memory.unseize)
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def _remove_segment(self, place: int, segment: int) -> int:
        """Remove a segment of which every slot is taken.

        Whoever dies before the slots are cleared leaves them to be given back; after that, a segment that nobody uses,
        or a file that is none.
        """
        slab = self._by_place[place]
        nbytes = slab.geometry.segment_bytes(int(slab.memory.kinds[segment]))
        async with self.manager.changing():
            await asyncio.to_thread(slab.memory.clear, segment)
            failed = await slab.files.remove(segment, self._transfer.pool)
            if not failed:
                self.manager.removed(place, nbytes)
        self.dropped += 1
        return 0 if failed else nbytes

    async def purge(self) -> int:
        """See `SpaceUser.purge`: what is in quarantine."""
        freed = 0
        for place, slab in enumerate(self._by_place):
            async with self.manager.changing():
                nbytes = await asyncio.to_thread(_remove_quarantine, slab)
                self.manager.removed(place, nbytes)
            freed += nbytes
        return freed

    async def count(self, place: int, owners: frozenset[str]) -> tuple[int, int]:
        """See `SpaceUser.count`."""
        return await asyncio.to_thread(_count, self._by_place[place]), 0

    def walk(self, place: int) -> Iterator[tuple[U8, F64]]:
        """See `SpaceUser.walk`: what is stored, and when it was last asked for."""
        slab = self._by_place[place]
        for segment in np.flatnonzero(slab.memory.present).tolist():
            states, ids, stamps = slab.scan(segment)
            there = states == STORED
            yield np.ascontiguousarray(ids[there]), EPOCH_S + stamps[there].astype(np.float64)


def _coldest_segments(slab: Slab) -> list[int]:
    """Return the segments, those first that nobody writes to, and of these the ones that were asked for the least."""
    order: list[tuple[bool, float, int]] = []
    for segment in np.flatnonzero(slab.memory.present).tolist():
        states, _, stamps = slab.scan(segment)
        warmth = float(stamps[states == STORED].sum(dtype=np.float64))
        order.append((bool((states == TAKEN).any()), warmth, segment))
    return [segment for _, _, segment in sorted(order)]


def _count(slab: Slab) -> int:
    """Return the bytes of the files of a directory, after removing one that was not finished."""
    system, home, quarantine = slab.backend.system, slab.backend.home, slab.backend.root / QUARANTINE
    system.unlink(home / NEW_NAME)
    paths = [home / name for name in system.names(home) if segment_number(name) >= 0]
    paths += [quarantine / name for name in system.names(quarantine)]
    found = [system.size_and_time(path) for path in paths]
    return sum(one[0] for one in found if one is not None)


def _remove_quarantine(slab: Slab) -> int:
    """Remove what was set aside; returns its bytes."""
    system, directory, freed = slab.backend.system, slab.backend.root / QUARANTINE, 0
    for name in system.names(directory):
        about = system.size_and_time(directory / name)
        if about is not None:
            system.unlink(directory / name)
            freed += about[0]
    return freed
