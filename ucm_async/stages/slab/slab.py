"""The slots of one backend: opened, recovered, grown, shrunk, and closed with a checkpoint."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from typing import Final

import numpy as np
import numpy.typing as npt

from ...abc import OnProgress
from ...blocks.layout import BlockLayout
from ...blocks.transfer import Transfer
from ...config import StoreConfig
from ...errors import ConfigError
from ...native import SlotTable
from ...types import BLOCK_ID_BYTES, I64, U8
from .backend import SlabBackend
from .checkpoint import CHECKPOINT_NAME, Checkpoint, pack_checkpoint, unpack_checkpoint
from .layout import SlabGeometry, slot_sizes
from .memory import SlabMemory
from .recovery import Headers, OpenSegment, drop_bad_twins, fill, name_bad, read_headers
from .segments import FoundSegment, SegmentFiles

__all__ = ["STORED", "TAKEN", "Slab"]

_log = logging.getLogger("ucm_async.slab")

LOCK_NAME: Final = "lock"

UNBOUNDED_SLOTS: Final = 1 << 20
"""Slots of a backend where no bound is set: the table takes 50 bytes of shared memory for each."""

SHRINKS_MAX: Final = 4
"""Below a stage that encodes, the table has room for so many times the blocks that have room as they are."""

OPEN_PATIENCE_S: Final = 120.0
"""So long opening waits while another store opens, which may have to read every header."""

CLOSE_PATIENCE_S: Final = 10.0

DEAD_REST_S: Final = 1.0
"""What the dead had taken rests so long: the kernel may still have a write of theirs."""


class Slab:
    """The slots of one backend, for one open store.

    Parameters
    ----------
    backend
        Open.
    config
        Of the store.
    layout
        Of a block; the largest slots have the bytes of its file.
    encoded
        Whether the stage above encodes, so that there may be more blocks than have room as they are.

    Attributes
    ----------
    backend, memory
        Where the slots are, and what is known of them.
    files
        Of the segments.
    geometry
        Of the segments, once it is open.
    whole_slots
        How many blocks have room as they are, once it is open.
    recovered
        Where the index came from: "memory", "checkpoint", "headers", or "nothing" for an empty directory.
    dropped
        Slots that held no block and were not empty, when headers were read.
    """

    def __init__(self, backend: SlabBackend, config: StoreConfig, layout: BlockLayout, *, encoded: bool) -> None:
        self.backend = backend
        self._config = config
        self._layout = layout
        self._namespace = config.namespace_fingerprint()
        self._sizes = slot_sizes(layout)
        self._shrinks = SHRINKS_MAX if encoded else 1
        self.files = SegmentFiles(backend, self._namespace, self._sizes)
        self.whole_slots = 0
        self.recovered = ""
        self.dropped = 0
        self._dead: dict[int, float] = {}

    @property
    def geometry(self) -> SlabGeometry:
        """See the class."""
        return self.memory.geometry

    @property
    def table(self) -> SlotTable:
        """The slots and what they hold."""
        return self.memory.table

    # ---- opening

    async def open(self, transfer: Transfer, on_progress: OnProgress | None = None) -> None:
        """Join the stores that use the directory, as the first one after filling the table.

        Raises
        ------
        ConfigError
            It cannot be shared; another process keeps it locked; or something is damaged and ``recover`` is "strict".
        OSError
            It cannot be read, or there is no shared memory.
        """
        backend = self.backend
        self.memory = memory = await asyncio.to_thread(SlabMemory, backend.system, backend.home / LOCK_NAME)
        try:
            if not await memory.acquire(OPEN_PATIENCE_S):
                raise ConfigError(
                    f"storage_backends: {str(backend.home)!r} has been locked by another process for "
                    f"{OPEN_PATIENCE_S:g} s; it may be stopped"
                )
            try:
                await self._join(transfer, on_progress)
            finally:
                await asyncio.to_thread(memory.release)
        except BaseException:
            await asyncio.to_thread(memory.close)
            raise

    async def _join(self, transfer: Transfer, on_progress: OnProgress | None) -> None:
        memory = self.memory
        found = await self.files.survey(transfer.pool)
        self._refuse_others(found)
        geometry, segments_max = await asyncio.to_thread(self._plan, found)
        new = await asyncio.to_thread(memory.attach, geometry, segments_max)
        try:
            await asyncio.to_thread(memory.join)
            if new:
                since_s = await self._recover(found, transfer, on_progress)
                memory.ready(doubtful=since_s < self.backend.system.started())
            else:
                self.recovered = "memory"
        except BaseException:
            await asyncio.to_thread(memory.leave)
            if new:
                await asyncio.to_thread(memory.remove)
            raise

    def _refuse_others(self, found: list[FoundSegment]) -> None:
        """Leave segments alone that another version of the format has written, whatever is damaged besides."""
        for one in found:
            if one.page.version:
                raise ConfigError(
                    f"storage_backends: {str(self.files.path(one.number))!r}: {one.page.why}; "
                    "use the version that wrote it, or remove the directory: it is a cache"
                )

    def _plan(self, found: list[FoundSegment]) -> tuple[SlabGeometry, int]:
        """Choose what the table is made for, if it must be made. Blocks."""
        config, there = self._config, sum(one.nbytes for one in found)
        bounds = [bound for bound in (config.posix_capacity_gb, config.namespace_quota_gb) if bound]
        space = int(min(bounds) * (1 << 30)) if bounds else self.backend.system.free_bytes(self.backend.root) + there
        slots = next((one.page.slots for one in found if one.page.slots), 0)
        if slots:
            geometry = SlabGeometry(self._sizes, slots)
        else:  # the first pages are damaged, or there are none
            lengths = [one.nbytes for one in found if one.nbytes > 0]
            geometry = SlabGeometry.of_files(self._sizes, lengths) or SlabGeometry.for_space(self._sizes, space)
        segments = max(1, space // geometry.segment_bytes(geometry.largest))
        self.whole_slots = segments * geometry.slots
        segments *= self._shrinks
        if not bounds:  # others may free some of the file system, and it is what says that there is no more
            segments = min(2 * segments + 1, max(1, UNBOUNDED_SLOTS // geometry.slots))
        return geometry, max(segments, *(one.number + 1 for one in found), 1) if found else segments

    async def _recover(self, found: list[FoundSegment], transfer: Transfer, on_progress: OnProgress | None) -> float:
        """Fill a new table; returns when what it is filled with was last known to be right."""
        kinds = await self._mend(found, transfer)
        checkpoint, since_s = await asyncio.to_thread(self._take_checkpoint)
        if checkpoint is not None and self._fits(checkpoint, kinds):
            lost = checkpoint.slots[checkpoint.lost != 0]
            stored, self.recovered = Headers(checkpoint.slots, checkpoint.ids, lost=lost), "checkpoint"
            since_s = 0.0 if checkpoint.doubtful else since_s
        else:
            stored, since_s = await self._read(kinds, transfer, on_progress), 0.0
            self.recovered = "headers" if kinds else "nothing"
            stored.lost = self._lost(found, stored.slots)
        count = await asyncio.to_thread(fill, self.table, self.geometry, kinds, stored)
        for number, kind in kinds.items():
            self.memory.came(number, kind)
        if kinds:
            _log.info("%s: %d blocks, from %s", self.backend.home, count, self.recovered)
        return since_s if kinds else math.inf

    def _lost(self, found: list[FoundSegment], slots: I64) -> I64:
        """Return those of some slots that are in segments with a mark of this start of the machine.

        What an earlier one has lost is not there any more: a look at it tells.
        """
        started = self.backend.system.started()
        marked = [one.number for one in found if one.page.lost_s >= started]
        return np.asarray(slots[np.isin(slots // self.geometry.slots, marked)])

    def _fits(self, checkpoint: Checkpoint, kinds: dict[int, int]) -> bool:
        sizes = [self.geometry.sizes[kind] for kind in kinds.values()]
        there = checkpoint.segments.tolist(), checkpoint.slot_bytes.tolist()
        return checkpoint.segment_slots == self.geometry.slots and there == (list(kinds), sizes)

    def _take_checkpoint(self) -> tuple[Checkpoint | None, float]:
        """Read the checkpoint, and remove it for good: what it says is about to become untrue. Blocks.

        The second value is when it was written.
        """
        system, path = self.backend.system, self.backend.home / CHECKPOINT_NAME
        content = system.read_whole(path)
        if content is None:
            return None, 0.0
        about = system.size_and_time(path)
        system.unlink(path)
        system.sync_directory(self.backend.home)
        return unpack_checkpoint(content, self._namespace), about[1] if about else 0.0

    async def _mend(self, found: list[FoundSegment], transfer: Transfer) -> dict[int, int]:
        """See to segments that a crash left in pieces; returns those that can be used, number -> class."""
        kinds = {one.number: self._kind(one) for one in found}
        damaged = [one for one in found if self._damage(one)]
        if damaged and self._config.recover == "strict":
            told = "; ".join(f"segment {one.number}: {self._damage(one)}" for one in damaged)
            raise ConfigError(f"storage_backends: {str(self.backend.home)!r}: {told}; and recover is 'strict'")
        for one in damaged:
            _log.warning("%s: segment %d: %s", self.backend.home, one.number, self._damage(one))
            if one.nbytes == 0:  # it was being removed
                failed = await self.files.remove(one.number, transfer.pool)
                del kinds[one.number]
            else:  # if that fails, its slots speak for themselves
                failed = await self.files.mend(self.geometry, kinds[one.number], one.number, transfer.pool)
            if failed:
                _log.warning("%s: segment %d: %s", self.backend.home, one.number, os.strerror(failed))
        return kinds

    def _kind(self, one: FoundSegment) -> int:
        """Return the class of a segment, as its first page or else its length tells it."""
        known = one.page.slot_bytes
        return self._sizes.index(known) if known else self.geometry.kind_of_file(one.nbytes)

    def _damage(self, one: FoundSegment) -> str:
        """Tell what is wrong with a segment; empty if nothing is."""
        nbytes = self.geometry.segment_bytes(self._kind(one))
        if one.page.why or one.nbytes < nbytes:
            return one.page.why or f"{one.nbytes} of {nbytes} bytes"
        same = one.page.slots == self.geometry.slots
        return "" if same else f"it has {one.page.slots} slots, and others have {self.geometry.slots}"

    async def _read(self, kinds: dict[int, int], transfer: Transfer, on_progress: OnProgress | None) -> Headers:
        """Read the header of every slot."""
        fds = await asyncio.to_thread(self.open_segments, list(kinds))
        try:
            segments = [OpenSegment(*one, fd) for one, fd in zip(kinds.items(), fds, strict=True)]
            found = await read_headers(segments, self.geometry, self._layout, self._namespace, transfer, on_progress)
            await drop_bad_twins(found, segments, self.geometry, self._namespace, transfer)
        finally:
            await asyncio.to_thread(self.close_segments, fds)
        if found.bad or len(found.unreadable):
            told = name_bad(found, str(self.backend.home))
            if self._config.recover == "strict":
                raise ConfigError(f"storage_backends: {told}; and recover is 'strict'")
            _log.warning("%s; the first count as free", told)
            self.dropped = len(found.bad) + len(found.unreadable)
        return found

    # ---- descriptors; these block

    def open_segments(self, numbers: list[int], *, buffered: bool = False) -> list[int]:
        """Open segments to be read and written, with O_DIRECT unless they are to be `buffered`."""
        flags = os.O_RDWR | (os.O_DIRECT if self.backend.direct and not buffered else 0)
        fds: list[int] = []
        try:
            for number in numbers:
                fds.append(self.backend.system.open(self.files.path(number), flags))
        except BaseException:
            self.close_segments(fds)
            raise
        return fds

    def close_segments(self, fds: list[int]) -> None:
        """Close descriptors."""
        for fd in fds:
            self.backend.system.close(fd)

    # ---- the dead

    def see_to_the_dead(self) -> int:
        """Look for stores that died, and give back what they had taken once it has rested. Blocks; returns slots."""
        now = time.monotonic()
        for number in self.memory.find_dead():
            self._dead.setdefault(number, now)
        given = 0
        for number, since in list(self._dead.items()):
            if now - since >= DEAD_REST_S:
                del self._dead[number]
                given += self.memory.bury(number)
        return given

    # ---- closing

    async def aclose(self) -> None:
        """Leave, as the last one with a checkpoint. Nothing of this store may be under way. Idempotent."""
        memory = self.memory
        if not memory.number:
            return
        try:
            if await memory.acquire(CLOSE_PATIENCE_S):
                try:
                    await asyncio.to_thread(self._leave)
                finally:
                    await asyncio.to_thread(memory.release)
            else:
                _log.warning("%s: another process keeps it locked; it is left as by one that died", self.backend.home)
        finally:
            await asyncio.to_thread(memory.close)

    def _leave(self) -> None:
        self.memory.leave()
        if not self.memory.last:
            return
        try:
            self._write_checkpoint()
        except OSError as error:  # a full disk
            _log.warning("%s: %s; the next store reads every header", self.backend.home / CHECKPOINT_NAME, error)
        self.memory.remove()

    def _write_checkpoint(self) -> None:
        memory, segments = self.memory, np.flatnonzero(self.memory.present)
        sizes = np.array(self.geometry.sizes)[memory.kinds[segments]]
        slots, ids = self.stored(segments.tolist())
        lost = np.zeros(len(slots), dtype=np.uint8)
        self.table.distrusted(slots, lost)
        checkpoint = Checkpoint(self.geometry.slots, segments, sizes, slots, ids, lost, memory.doubtful)
        content = pack_checkpoint(checkpoint, self._namespace)
        self.backend.system.write_whole(self.backend.home / CHECKPOINT_NAME, content)

    # ---- what is stored

    def segments_by_size(self) -> dict[int, int]:
        """Return how many segments there are, by the bytes of their slots."""
        kinds = self.memory.kinds[self.memory.present != 0]
        return {self.geometry.sizes[kind]: int((kinds == kind).sum()) for kind in np.unique(kinds).tolist()}

    def stored(self, segments: list[int]) -> tuple[I64, U8]:
        """Return the slots of some segments that hold a block, ascending, and the ids. Blocks for milliseconds."""
        slots, ids = [np.zeros(0, dtype=np.int64)], [np.zeros((0, BLOCK_ID_BYTES), dtype=np.uint8)]
        for segment in segments:
            states, some, _ = self.scan(segment)
            there = np.flatnonzero(states == STORED)
            slots.append(self.geometry.first(segment) + there)
            ids.append(some[there])
        return np.concatenate(slots), np.concatenate(ids)

    def scan(self, segment: int) -> tuple[U8, U8, npt.NDArray[np.uint32]]:
        """Return states, ids and stamps of the slots of a segment. Blocks for a millisecond."""
        count = self.geometry.slots
        states, stamps = np.zeros(count, dtype=np.uint8), np.zeros(count, dtype=np.uint32)
        ids = np.zeros((count, BLOCK_ID_BYTES), dtype=np.uint8)
        self.table.scan(self.geometry.first(segment), states, ids, stamps)
        return states, ids, stamps


TAKEN: Final = 2
STORED: Final = 3
BAD: Final = 4
"""States of slots, as `SlotTable.scan` tells them."""
