"""What the stores that use one directory share: the table of slots, who is there, and which segments there are.

::

    header      8 words: magic, version, ready, slots of a segment, segments there can be, changes, 1 if what the table
                was filled with may be torn, nothing
    owners      256 bytes: 1 for each number that a store has, or had when it died
    segments    a word each: 0 if it is not there, else a number that it got when it was made, and no other one has
    kinds       a byte each: the class of its slots
    table       of slots, see `ucm_async.native.SlotTable`

The memory lives as long as one of the stores, or until the machine is restarted. Who opens or closes a store, or makes
or removes a segment, holds the lock `TABLE`; a store holds the lock of its number as long as it lives, so whoever can
take that knows that it has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ...engines.sharedmemory import SharedMemory
from ...engines.system import System
from ...engines.waits import completed
from ...errors import ConfigError
from ...native import SlotTable
from ...types import I64, U8, U64
from .layout import SlabGeometry

__all__ = ["LOCK_PATIENCE_S", "OWNERS_MAX", "SlabMemory"]

MAGIC: Final = int.from_bytes(b"UCMSLABT", "little")
VERSION: Final = 2
OWNERS_MAX: Final = 254
REMOVER: Final = 255
"""Owner of the slots of a segment that is being removed, whichever store does that: one at a time."""

_MAGIC, _VERSION, _READY, _SLOTS, _SEGMENTS, _CHANGES, _DOUBTFUL = range(7)
_OWNERS_AT: Final = 64
_SEGMENTS_AT: Final = _OWNERS_AT + 256

# Bytes that locks are named by, far behind the end of the file.
_TABLE_LOCK: Final = 1 << 40
_OWNER_LOCKS: Final = 2 << 40

LOCK_PATIENCE_S: Final = 0.5
"""So long a dump or the collector waits for the lock; then it does without a new segment, or with one more."""

POLL_S: Final = 0.002
"""Who waits for the lock looks so often: the lock may be held for seconds, and a thread should not be."""


def _table_at(segments: int) -> int:
    return -(-(_SEGMENTS_AT + 9 * segments) // 64) * 64


class SlabMemory:
    """One store's hold on the shared memory of one directory.

    `acquire`, `attach`, and, if it is new, fill the table and `ready`; then `join`, and `release`. What blocks is
    called in a thread.

    Parameters
    ----------
    system
        Who has the memory.
    path
        The lock file, made if it is missing.

    Attributes
    ----------
    geometry
        Of the segments: the classes that were given, and as many slots as who made the memory chose.
    segments_max
        How many segments there can be.
    table
        The slots.
    present
        uint64, shape (segments_max,): the number of each segment, 0 if it is not there.
    kinds
        uint8, shape (segments_max,): the classes of those that are there.
    number
        Which owner this store is, 0 before `join`.
    """

    geometry: SlabGeometry
    segments_max: int
    table: SlotTable
    present: U64
    kinds: U8

    def __init__(self, system: System, path: Path) -> None:
        self._path = path
        self._shared: SharedMemory | None = system.shared_memory(path, 0)
        self._words: I64 = np.zeros(0, dtype=np.int64)
        self._owners: U8 = np.zeros(0, dtype=np.uint8)
        self._turn = asyncio.Lock()  # locks of the file do not tell tasks of one store apart
        self._removing = False
        self.number = 0

    # ---- the lock

    async def acquire(self, patience_s: float) -> bool:
        """Take the lock `TABLE`; False if others, who may be stopped, have had it for so long."""
        until = asyncio.get_running_loop().time() + patience_s
        await self._turn.acquire()
        try:
            while not (locked := await self._try_lock()) and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(POLL_S)
        except BaseException:
            self._turn.release()
            raise
        if not locked:
            self._turn.release()
        return locked

    async def _try_lock(self) -> bool:
        trying = asyncio.ensure_future(asyncio.to_thread(self._memory().lock, _TABLE_LOCK))
        try:
            await completed(trying)
        except asyncio.CancelledError:
            if trying.result():  # the thread could not be called back
                self._memory().unlock(_TABLE_LOCK)
            raise
        return trying.result()

    def release(self) -> None:
        """Give it back."""
        if self._shared is not None:
            self._shared.unlock(_TABLE_LOCK)
        self._turn.release()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock `TABLE`, without a loop: for tools. Blocks until it is free."""
        while not self._memory().lock(_TABLE_LOCK):
            time.sleep(POLL_S)
        try:
            yield
        finally:
            if self._shared is not None:
                self._shared.unlock(_TABLE_LOCK)

    def _memory(self) -> SharedMemory:
        assert self._shared is not None, "the memory was closed"
        return self._shared

    # ---- coming and going; these block, and the lock is held

    def attach(self, geometry: SlabGeometry, segments_max: int) -> bool:
        """Map the memory; True if it is new: then its table is to be filled, and `ready` called.

        Parameters
        ----------
        geometry, segments_max
            What it is made for if it must be made.

        Raises
        ------
        ConfigError
            Living stores of another version use the directory.
        OSError
            There is no room for the memory, or it cannot be seen from here.
        """
        needed = SlotTable.bytes_needed(segments_max * geometry.slots, geometry.slots)
        shared, nbytes = self._memory(), _table_at(segments_max) + needed
        new = shared.attach(nbytes)
        if not new and not self._is_whole():
            if not shared.last:
                raise ConfigError(f"storage_backends: another version uses {str(self._path.parent)!r} just now")
            shared.remove()  # whoever made it died over it
            shared.lock(_TABLE_LOCK)
            new = shared.attach(nbytes)
        if new:
            words = np.frombuffer(self._memory().memory, dtype=np.int64, count=8)
            words[:_CHANGES] = (MAGIC, VERSION, 0, geometry.slots, segments_max)
        self._look_at(geometry, new)
        return new

    def _is_whole(self) -> bool:
        words = np.frombuffer(self._memory().memory, dtype=np.int64, count=8)
        return bool(words[: _READY + 1].tolist() == [MAGIC, VERSION, 1])

    def _look_at(self, geometry: SlabGeometry, new: bool) -> None:
        memory = self._memory().memory
        self._words = words = np.frombuffer(memory, dtype=np.int64, count=8)
        self.geometry = SlabGeometry(geometry.sizes, int(words[_SLOTS]))
        self.segments_max = segments = int(words[_SEGMENTS])
        self._owners = np.frombuffer(memory, dtype=np.uint8, count=256, offset=_OWNERS_AT)
        self.present = np.frombuffer(memory, dtype=np.uint64, count=segments, offset=_SEGMENTS_AT)
        self.kinds = np.frombuffer(memory, dtype=np.uint8, count=segments, offset=_SEGMENTS_AT + 8 * segments)
        view, per = memoryview(memory)[_table_at(segments) :], self.geometry.slots
        self.table = SlotTable(view, segments * per, new, per)
        self._remover = SlotTable(view, segments * per, segment_slots=per)

    def ready(self, *, doubtful: bool) -> None:
        """Say that the table is filled; with blocks that may be torn, if it is `doubtful`."""
        self._words[_DOUBTFUL] = doubtful
        self._words[_READY] = 1

    @property
    def doubtful(self) -> bool:
        """Whether the table was filled with blocks that may be torn: see `ucm_async.stages.slab.doubts`."""
        return bool(self._words[_DOUBTFUL])

    def join(self) -> None:
        """Become an owner of slots.

        Raises
        ------
        ConfigError
            There are as many stores as there can be.
        """
        for number in range(1, OWNERS_MAX + 1):
            if not self._owners[number] and self._memory().lock(_OWNER_LOCKS + number):
                self._owners[number] = 1
                self.number = number
                self.table.join(number)
                return
        raise ConfigError(f"storage_backends: {str(self._path.parent)!r} is open in {OWNERS_MAX} stores, the most")

    def leave(self) -> None:
        """Give back what this store had taken, and its number."""
        if self.number:
            self.table.repair(self.number)
            self._owners[self.number] = 0
            self._memory().unlock(_OWNER_LOCKS + self.number)
            self.number = 0

    @property
    def last(self) -> bool:
        """Whether nobody else has the memory."""
        return self._memory().last

    def remove(self) -> None:
        """Remove the memory, as the last one."""
        self._memory().remove()

    def close(self) -> None:
        """Unmap. Idempotent. Who has not left is as good as dead: others give back what it had."""
        shared, self._shared, self.number = self._shared, None, 0
        if shared is not None:
            self._words, self._owners, self.present = _NO_WORDS, _NO_BYTES, _NO_WORDS.view(np.uint64)
            self.kinds = _NO_BYTES
            if hasattr(self, "table"):
                del self.table, self._remover
            shared.close()

    @property
    def owners(self) -> list[int]:
        """Numbers of the stores that are open, or were when they died."""
        return [number for number in np.flatnonzero(self._owners).tolist() if number <= OWNERS_MAX]

    # ---- the dead

    def find_dead(self) -> list[int]:
        """Return the numbers of owners that have died, each with its lock held: until `bury`."""
        alive = np.flatnonzero(self._owners).tolist()
        mine = (self.number, REMOVER) if self._removing else (self.number,)
        return [one for one in alive if one not in mine and self._memory().lock(_OWNER_LOCKS + one)]

    def bury(self, number: int) -> int:
        """Give back what a dead owner had taken, and its number; returns how many slots."""
        given = self.table.repair(number)
        self._owners[number] = 0
        self._memory().unlock(_OWNER_LOCKS + number)
        return given

    # ---- segments

    @property
    def changes(self) -> int:
        """A number that grows when segments come or go."""
        return int(self._words[_CHANGES])

    def seize(self, segment: int) -> int:
        """Take every slot of a segment that is to go; returns how many others have. The lock is held. Blocks."""
        if not self._removing:
            if not self._memory().lock(_OWNER_LOCKS + REMOVER):
                return self.geometry.slots  # a dead one's are being given back just now
            self._removing, self._owners[REMOVER] = True, 1
            self._remover.join(REMOVER)
        return self._remover.seize(self.geometry.first(segment), self.geometry.slots)

    def unseize(self) -> None:
        """Give back what was seized. The lock is held. Blocks."""
        self._remover.repair(REMOVER)
        self._end_removing()

    def clear(self, segment: int) -> None:
        """Say that a segment of which everything is seized is there no more. The lock is held. Blocks."""
        self._remover.clear(self.geometry.first(segment), self.geometry.slots)
        self.present[segment] = 0
        self._words[_CHANGES] += 1
        self._end_removing()

    def _end_removing(self) -> None:
        self._owners[REMOVER] = 0
        self._removing = False
        self._memory().unlock(_OWNER_LOCKS + REMOVER)

    def came(self, segment: int, kind: int) -> None:
        """Say that a segment of a class is there. The lock is held."""
        self.kinds[segment] = kind
        self._words[_CHANGES] += 1
        self.present[segment] = self._words[_CHANGES]


_NO_WORDS: Final[npt.NDArray[np.int64]] = np.zeros(0, dtype=np.int64)
_NO_BYTES: Final = np.zeros(0, dtype=np.uint8)
