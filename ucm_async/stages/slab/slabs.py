"""The slots of all backends of a store, for arrays of blocks: found, aimed at, published, taken back, marked."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from ...abc import Engine
from ...blocks.spread import choose_backend
from ...engines import requests as rq
from ...engines.arena import Arena
from ...engines.system import current_system
from ...engines.waits import completed
from ...space.hotness import EPOCH_S
from ...types import I64, U8, U64, Bools
from .layout import GONE, PAGE_BYTES, SlabGeometry
from .slab import Slab

__all__ = ["ELSEWHERE", "PUBLISHED", "Place", "Slabs", "stamp_now"]

_log = logging.getLogger("ucm_async.slab")

PUBLISHED: Final = 0
ELSEWHERE: Final = 1
"""What `SlotTable.publish` says of a slot: it holds the block now; another one does already."""


def stamp_now() -> int:
    """Return the time as slots have it: seconds since the beginning of 2025, never 0."""
    return max(1, int(current_system().now() - EPOCH_S))


_NO_SLOTS: Final[I64] = np.zeros(0, dtype=np.int64)
_NO_WORDS: Final = np.zeros(0, dtype=np.uint64)
_NO_FDS: Final = np.zeros(0, dtype=np.int32)
_NO_BOOLS: Final = np.zeros(0, dtype=np.bool_)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Place:
    """Where blocks of a batch lie, or go; as long as there is one of these, its blocks are in transfer.

    Attributes
    ----------
    ids
        uint8, shape (g, 16).
    backend
        int64, shape (g,).
    slots, words
        int64 and uint64, shape (g,): slot and word of each, -1 and 0 where there is none; for loads.
    fds
        int32, shape (g,): descriptors of their segments, -1 where that is not open; for loads.
    offsets, lengths
        uint64 and int64, shape (g,): where the slots begin in their segments, and their bytes; for loads.
    several
        Bool, shape (g,): blocks that are not written with one request; for dumps.
    epoch
        Which descriptors it was made with.
    """

    ids: U8
    backend: I64
    epoch: int
    slots: I64 = field(default_factory=lambda: _NO_SLOTS)
    words: U64 = field(default_factory=lambda: _NO_WORDS)
    fds: npt.NDArray[np.int32] = field(default_factory=lambda: _NO_FDS)
    offsets: U64 = field(default_factory=lambda: _NO_WORDS)
    lengths: I64 = field(default_factory=lambda: _NO_SLOTS)
    several: Bools = field(default_factory=lambda: _NO_BOOLS)


class Slabs:
    """The slots of one store.

    Every array of slots goes with one of positions of backends, int64 of the same shape.

    Parameters
    ----------
    slabs
        By position; None for a backend that could not be opened.
    seeds
        Of the backends.
    buffered
        Whether descriptors without O_DIRECT are needed, too: for shards that are not whole pages.

    Attributes
    ----------
    slabs
        As given.
    dead
        Bool, shape (backends,): those that could not be opened.
    """

    def __init__(self, slabs: list[Slab | None], seeds: U64, *, buffered: bool) -> None:
        self.slabs = slabs
        self.dead: Bools = np.array([slab is None for slab in slabs], dtype=np.bool_)
        self._seeds = seeds
        self._alone = slabs[0] if len(slabs) == 1 else None
        widest = max(slab.memory.segments_max for slab in slabs if slab is not None)
        some = next(slab for slab in slabs if slab is not None)
        self._geometry = [slab.geometry if slab is not None else some.geometry for slab in slabs]
        self._slots = np.array([geometry.slots for geometry in self._geometry])
        self._sizes: I64 = np.array(some.geometry.sizes)  # of one layout, so the same everywhere
        self._one_slot, self._one_word = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.uint64)
        self._needs_buffered = buffered
        self._direct = np.full((len(slabs), widest), -1, dtype=np.int32)
        self._buffered = self._direct.copy() if buffered else self._direct
        self._opened = np.zeros((len(slabs), widest), dtype=np.uint64)  # as `SlabMemory.present`
        self._slot_bytes: I64 = np.full((len(slabs), widest), self._sizes[-1])
        self._seen = [-1] * len(slabs)
        self._epoch = 0
        self._retired: list[tuple[int, int, Slab]] = []
        self._opening = asyncio.Lock()
        self._places: WeakSet[Place] = WeakSet()
        self._gone: Arena

    async def open(self) -> None:
        """Make the page that marks slots, and open the segments.

        Raises
        ------
        OSError
            There is no memory, or a segment cannot be opened.
        """
        self._gone = await Arena.create(PAGE_BYTES, 1)
        self._gone.view()[0, : len(GONE)] = np.frombuffer(GONE, dtype=np.uint8)
        await self.refresh()

    def geometry(self, backend: int) -> SlabGeometry:
        """Return how the segments of a backend are cut."""
        return self._geometry[backend]

    def kinds_for(self, nbytes: I64) -> I64:
        """Return the smallest class of slots for blocks of so many bytes, header and all: int64, their shape."""
        return next(slab for slab in self.slabs if slab is not None).geometry.kinds_for(nbytes)

    def slots_of(self, backend: I64) -> I64:
        """Return how many slots a segment of each backend has: int64, the shape of `backend`."""
        return np.asarray(self._slots[backend])

    # ---- descriptors

    @property
    def stale(self) -> bool:
        """Whether segments have come or gone since `refresh`."""
        return any(
            slab is not None and slab.memory.changes != seen for slab, seen in zip(self.slabs, self._seen, strict=True)
        )

    async def refresh(self) -> None:
        """Open segments that have come, and let go of those that went; costs next to nothing if there are none."""
        if self.stale:
            async with self._opening:
                if self.stale:
                    await asyncio.to_thread(self._refresh)

    def _refresh(self) -> None:
        self._close_retired()
        for position, slab in enumerate(self.slabs):
            if slab is None:
                continue
            changes, whole = slab.memory.changes, True
            present = slab.memory.present.copy()
            for segment in np.flatnonzero(present != self._opened[position, : len(present)]).tolist():
                self._retire(slab, position, segment)
                if present[segment] and self._open(slab, position, segment):
                    self._opened[position, segment] = present[segment]
                whole &= present[segment] == self._opened[position, segment]
            self._seen[position] = changes if whole else -1

    def _open(self, slab: Slab, position: int, segment: int) -> bool:
        """Open a segment; what cannot be opened is tried again the next time."""
        try:
            self._slot_bytes[position, segment] = self._sizes[slab.memory.kinds[segment]]
            if self._needs_buffered:
                (self._buffered[position, segment],) = slab.open_segments([segment], buffered=True)
            (self._direct[position, segment],) = slab.open_segments([segment])
        except OSError as error:
            self._retire(slab, position, segment)
            if not isinstance(error, FileNotFoundError):  # which is gone again
                _log.warning("%s: segment %d cannot be opened: %s", slab.backend.home, segment, error.strerror)
            return False
        return True

    def _retire(self, slab: Slab, position: int, segment: int) -> None:
        """Take descriptors out of use; the kernel may still have requests that name them."""
        for fds in (self._direct, self._buffered) if self._needs_buffered else (self._direct,):
            fd, fds[position, segment] = int(fds[position, segment]), -1
            if fd >= 0:
                self._retired.append((self._epoch, fd, slab))
        self._opened[position, segment] = 0
        self._epoch += 1

    def _close_retired(self, *, everything: bool = False) -> None:
        """Close descriptors that nothing under way can name."""
        oldest = self._epoch if everything else min((place.epoch for place in list(self._places)), default=self._epoch)
        keep = [one for one in self._retired if one[0] >= oldest and not everything]
        for epoch, fd, slab in self._retired:
            if epoch < oldest or everything:
                slab.close_segments([fd])
        self._retired = keep

    async def aclose(self) -> None:
        """Close every descriptor. Nothing may be under way."""
        await asyncio.to_thread(self._close)
        self._gone.close()

    def _close(self) -> None:
        for position, slab in enumerate(self.slabs):
            if slab is not None:
                for segment in np.flatnonzero(self._opened[position]).tolist():
                    self._retire(slab, position, segment)
        self._close_retired(everything=True)

    # ---- where blocks lie

    def choose(self, ids: U8) -> I64:
        """Return the position of the backend that each block belongs to."""
        return choose_backend(ids, self._seeds)

    def place_to_read(self, ids: U8) -> Place:
        """Find blocks that are to be read; their slots are noted as just asked for."""
        backend = self.choose(ids)
        slots, words = self.find(ids, backend, stamp_now())
        here = np.maximum(slots, 0)
        fds = np.where((slots >= 0) & self._is_open(backend, here), self.descriptors(backend, here), -1)
        offsets, lengths = self.offsets(backend, here), self.lengths(backend, here)
        place = Place(ids, backend, self._epoch, slots, words, fds, offsets, lengths)
        self._places.add(place)
        return place

    def _is_open(self, backend: I64, slots: I64) -> Bools:
        """Tell of slots whether the descriptors are those of their segments as they are now: bool, shape (n,)."""
        if not self.stale:
            return np.ones(len(slots), dtype=np.bool_)
        segments = slots // self._slots[backend]
        opened = self._opened[backend, segments]
        for slab, rows in self._split(backend):
            opened[rows] -= slab.memory.present[segments[rows]]
        return np.asarray(opened == 0)

    def place_one(self, ids: U8) -> tuple[Place, int, int] | None:
        """Find one block that is to be read, as `place_to_read` does but without arrays: descriptor and offset, too.

        None if it is not stored, or if its segment is not open.
        """
        backend = 0 if self._alone is not None else int(self.choose(ids)[0])
        slab = self.slabs[backend]
        if slab is None:
            return None
        slab.table.find(ids, self._one_slot, self._one_word, stamp_now())
        segment, at = divmod(int(self._one_slot[0]), self._geometry[backend].slots)
        fd = int(self._direct[backend, segment]) if segment >= 0 else -1
        if fd < 0 or self.stale:
            return None
        place = Place(ids, np.array([backend]), self._epoch)
        self._places.add(place)
        return place, fd, PAGE_BYTES + at * int(self._slot_bytes[backend, segment])

    def place_to_write(self, ids: U8) -> Place:
        """Note that blocks are about to be written."""
        place = Place(ids, self.choose(ids), self._epoch, several=np.zeros(len(ids), dtype=np.bool_))
        self._places.add(place)
        return place

    def in_transfer(self) -> list[U8]:
        """Return the ids of blocks that are being read or written."""
        return [place.ids for place in self._places]

    def descriptors(self, backend: I64, slots: I64, direct: Bools | None = None) -> npt.NDArray[np.int32]:
        """Return the descriptors of slots, the buffered ones where `direct` is false."""
        segments = slots // self._slots[backend]
        fds = self._direct[backend, segments]
        return fds if direct is None else np.asarray(np.where(direct, fds, self._buffered[backend, segments]))

    def offsets(self, backend: I64, slots: I64) -> U64:
        """Return where slots begin in their segments."""
        offsets = PAGE_BYTES + slots % self._slots[backend] * self.lengths(backend, slots)
        return np.asarray(offsets.astype(np.uint64))

    def lengths(self, backend: I64, slots: I64) -> I64:
        """Return the bytes of slots; of those whose segment was never open, of the largest."""
        return np.asarray(self._slot_bytes[backend, slots // self._slots[backend]])

    # ---- the tables

    def find(self, ids: U8, backend: I64, stamp: int = 0) -> tuple[I64, U64]:
        """Return slot and word of each block, -1 and 0 where it is not stored; `stamp` is noted if it is not 0."""
        slots, words = np.full(len(ids), -1, dtype=np.int64), np.zeros(len(ids), dtype=np.uint64)
        if self._alone is not None:
            self._alone.table.find(ids, slots, words, stamp)
            return slots, words
        for slab, rows in self._split(backend):
            some, its = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.uint64)
            slab.table.find(np.ascontiguousarray(ids[rows]), some, its, stamp)
            slots[rows], words[rows] = some, its
        return slots, words

    def prefix(self, ids: U8) -> int:
        """Return how many ids from the first on are stored."""
        if self._alone is not None:
            return self._alone.table.prefix(ids)
        found = self.find(ids, self.choose(ids))[0] >= 0
        return len(ids) if found.all() else int(found.argmin())

    def word(self, backend: int, slot: int) -> int:
        """Return the word of a slot as it is now."""
        return int(self.words(np.array([backend]), np.array([slot]))[0])

    def words(self, backend: I64, slots: I64) -> U64:
        """Return the words of slots as they are now."""
        words = np.zeros(len(slots), dtype=np.uint64)
        for slab, rows in self._split(backend):
            some = np.zeros(len(rows), dtype=np.uint64)
            slab.table.words(np.ascontiguousarray(slots[rows]), some)
            words[rows] = some
        return words

    def publish(self, backend: I64, slots: I64, ids: U8) -> U8:
        """Make blocks findable in slots that this store has taken; see `SlotTable.publish` for what is returned."""
        out, stamp = np.zeros(len(slots), dtype=np.uint8), stamp_now()
        for slab, rows in self._split(backend):
            some = np.zeros(len(rows), dtype=np.uint8)
            slab.table.publish(np.ascontiguousarray(slots[rows]), np.ascontiguousarray(ids[rows]), some, stamp)
            out[rows] = some
        return out

    def distrusted(self, backend: I64, slots: I64) -> Bools:
        """Tell which slots, -1 for none, have what a failed sync may have lost: bool, shape (n,)."""
        out = np.zeros(len(slots), dtype=np.uint8)
        for slab, rows in self._split(backend):
            some = np.zeros(len(rows), dtype=np.uint8)
            slab.table.distrusted(np.ascontiguousarray(slots[rows]), some)
            out[rows] = some
        return out.astype(np.bool_)

    def withdraw(self, backend: I64, slots: I64, words: U64) -> Bools:
        """Take slots whose words are these still: bool, which of them this store has now."""
        out = np.zeros(len(slots), dtype=np.uint8)
        for slab, rows in self._split(backend):
            some = np.zeros(len(rows), dtype=np.uint8)
            slab.table.withdraw(np.ascontiguousarray(slots[rows]), np.ascontiguousarray(words[rows]), some)
            out[rows] = some
        return out.astype(np.bool_)

    def give(self, backend: I64, slots: I64) -> None:
        """Give back slots that this store has taken."""
        for slab, rows in self._split(backend):
            slab.table.give(np.ascontiguousarray(slots[rows]))

    def spoil(self, backend: I64, slots: I64) -> None:
        """Take slots out of use until the stores are opened anew."""
        for slab, rows in self._split(backend):
            slab.table.spoil(np.ascontiguousarray(slots[rows]))

    def _split(self, backend: I64) -> list[tuple[Slab, I64]]:
        """Return each backend that occurs, and where."""
        if self._alone is not None:
            return [(self._alone, np.arange(len(backend)))]
        positions = np.flatnonzero(np.bincount(backend)).tolist()
        there = [(self.slabs[position], np.flatnonzero(backend == position)) for position in positions]
        return [(slab, rows) for slab, rows in there if slab is not None]

    # ---- marks

    def put_mark(self, column: rq.Requests, backend: I64, slots: I64) -> None:
        """Write requests that mark slots as holding no block into `column`, shape (n,)."""
        column["opcode"] = rq.OP_WRITE
        column["fd"] = self.descriptors(backend, slots)
        column["offset"] = self.offsets(backend, slots)
        column["address"] = self._gone.base
        column["length"] = PAGE_BYTES

    async def mark(self, backend: I64, slots: I64, engine: Engine) -> Bools:
        """Mark slots as holding no block: bool, of which that went well. A cancellation waits."""
        marks = rq.new_requests(len(slots))
        self.put_mark(marks, backend, slots)
        await completed(engine.submit(marks, 1))
        return np.asarray(marks["result"] == PAGE_BYTES)

    async def give_marked(self, backend: I64, slots: I64, engine: Engine) -> None:
        """Give back slots whose headers speak of blocks that are not to be found any more, even after a crash.

        A slot that cannot be marked is spoilt.
        """
        marked = np.zeros(len(slots), dtype=np.bool_)
        try:
            marked = await self.mark(backend, slots, engine)
        finally:
            self.give(backend[marked], slots[marked])
            self.spoil(backend[~marked], slots[~marked])
