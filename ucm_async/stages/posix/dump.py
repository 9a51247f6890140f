"""Dumping into files: a chain makes a file of this writer's own, writes, and renames it to the block's name."""

from __future__ import annotations

import errno
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from ...blocks.dumping import AGAIN, NO_ROOM, BlockDumper, Writing
from ...blocks.layout import BlockLayout
from ...blocks.transfer import Transfer
from ...blocks.writes import BlockWrites
from ...engines import requests as rq
from ...space import WEIGHT_DUMP
from ...types import I64, U8, U64, Bools
from .known import KnownBlocks
from .layout import choose_backend
from .space import BlockSpace
from .survivors import Survivors

__all__ = ["Dumper"]

ROOM_PATIENCE_S: Final = 0.5
"""So long a dump waits for the collector where a bound is reached."""


@dataclass(slots=True)
class OwnFiles:
    """The files of a batch. Arrays are by group.

    Attributes
    ----------
    backend
        Where each block goes.
    removals
        As `KnownBlocks.removals` was before anything was written.
    commits
        What the renames returned.
    """

    backend: I64
    removals: int
    commits: I64


class Dumper(BlockDumper[OwnFiles]):
    """Takes batches into the files of several backends."""

    lead: ClassVar[int] = 2  # open, reserve
    tail: ClassVar[int] = 3  # sync, close, rename
    decisive: ClassVar[int] = 1

    def __init__(
        self,
        layout: BlockLayout,
        namespace: bytes,
        seeds: U64,
        known: KnownBlocks,
        space: BlockSpace,
        survivors: Survivors,
        transfer: Transfer,
        writes: BlockWrites,
    ) -> None:
        super().__init__(layout, namespace, transfer, writes)
        self._files = space.files
        self._seeds = seeds
        self._known = known
        self._space = space
        self._survivors = survivors

    # ---- blocks that are there

    async def find_stored(self, ids: U8) -> Bools:
        """See `BlockDumper.find_stored`."""
        backend = choose_backend(ids, self._seeds)
        removals = self._known.removals
        size = await self._files.stat(ids, backend, self.transfer.pool)
        stored = self._space.is_block(size)
        damaged = (size >= 0) & ~stored
        if damaged.any():  # else it would keep its place for ever: a commit never replaces
            await self._set_aside_damaged(ids[damaged], backend[damaged])
        self._known.add(ids[stored], removals)
        self._space.manager.touch(ids[stored], WEIGHT_DUMP)
        return stored

    async def confirm_stored(self, ids: U8) -> I64:
        """See `BlockDumper.confirm_stored`: a power cut may have torn files that are older than the machine's start."""
        backend = choose_backend(ids, self._seeds)
        result, torn = await self._survivors.look(ids, backend)
        if torn.any():
            await self._set_aside(ids[torn], backend[torn])
        return result

    async def _set_aside_damaged(self, ids: U8, backend: I64) -> None:
        """Set files aside that have no block's size, if they still have none: others may be doing the same."""
        size = await self._files.stat(ids, backend, self.transfer.pool)
        still = (size >= 0) & ~self._space.is_block(size)
        if still.any():
            await self._set_aside(ids[still], backend[still], however=True)

    async def _set_aside(self, ids: U8, backend: I64, *, however: bool = False) -> None:
        self._known.removed(ids)
        async with self._space.setting_aside, self._space.manager.changing():
            await self._files.quarantine(ids, backend, self.transfer.pool, however=however)
        self._known.removed(ids)
        async with self._space.setting_aside:  # a load that found the same is done with it before they are written anew
            pass

    def _known_stored(self, ids: U8) -> Bools:
        return self._known.known(ids)

    async def _sync_stored(self, ids: U8) -> I64:
        async with self._changing():  # where a sync fails, a file is set aside
            result = await self._files.sync(ids, choose_backend(ids, self._seeds), self.transfer.pool)
        if result.any():
            self._known.removed(ids[result != 0])
        return result

    # ---- room

    def _changing(self) -> AbstractAsyncContextManager[None]:
        return self._space.manager.changing()

    async def _make_room(self, writing: Writing[OwnFiles]) -> None:
        """Reserve what the files will take; for blocks that are begun, that was done with the first shard."""
        writes = self._writes
        new = ~writes.reserved[writing.entries]
        if not new.any():
            return
        patience_s = min(ROOM_PATIENCE_S, writing.batch.patience_s())
        groups = np.flatnonzero(new & (writing.failed == 0))
        entries, backend = writing.entries[groups], writing.place.backend[groups]
        sizes = writes.file_bytes[entries]
        granted = await self._space.reserve(backend, sizes, patience_s)
        # While this waited, another batch may have got room for its own shards of the same block.
        twice = writes.reserved[entries]
        self._space.release(backend[granted & twice], sizes[granted & twice])
        granted |= twice
        writes.reserved[entries[granted]] = True
        writing.failed[groups[~granted]] = NO_ROOM
        self.transfer.counts["refused"] += int((~granted).sum())

    def _has_name(self, writing: Writing[OwnFiles], groups: I64) -> None:
        """Account for files that have got their names."""
        entries = writing.entries[groups]
        self._writes.reserved[entries] = False
        self._space.commit(writing.place.backend[groups], self._writes.file_bytes[entries])

    async def _remove_own(self, ids: U8, backend: I64, entries: I64) -> None:
        """Remove this writer's files, and give back their room."""

        def gone(which: Bools) -> None:
            self._writes.reserved[entries[which]] = False
            self._space.release(backend[which], self._writes.file_bytes[entries[which]])

        await self._files.unlink_own(ids, backend, self.transfer.pool, gone)

    # ---- chains

    def _locate(self, ids: U8) -> OwnFiles:
        backend = choose_backend(ids, self._seeds)
        return OwnFiles(backend, self._known.removals, np.zeros(len(ids), dtype=np.int64))

    def _aim(self, writing: Writing[OwnFiles], writes: rq.Requests, owner: I64) -> None:
        writes["opcode"] |= rq.FLAG_LINK

    def _put_ends(self, writing: Writing[OwnFiles], fine: I64, table: rq.Requests) -> object:
        """Open and reserve; sync if asked, close, and rename what becomes whole.

        The space is reserved at its exact size: ext4 rounds what a write asks for up to a power of two, and blocks with
        holes between them read at three quarters of the speed.
        """
        ids, backend = writing.ids[fine], writing.place.backend[fine]
        opened = self._files.put_open_to_write(table[:, 0], ids, backend, self._fits_direct(writing, fine))
        reserve = table[:, 1]
        reserve["opcode"] = rq.OP_FALLOCATE | rq.FLAG_LINK
        reserve["length"] = self._writes.file_bytes[writing.entries[fine]]
        if writing.batch.durability == "synced":
            table["opcode"][:, -3] = rq.OP_FDATASYNC | rq.FLAG_LINK | rq.FLAG_IF_WELL
        table["opcode"][:, -2] = rq.OP_CLOSE | rq.FLAG_LINK
        renamed = self._files.put_commit(table[:, -1], ids, backend)
        table["opcode"][~writing.completes[fine], -1] = rq.OP_NOP
        return opened, renamed

    def _note_ends(self, writing: Writing[OwnFiles], fine: I64, results: npt.NDArray[np.int64]) -> None:
        commits = results[:, -1]
        writing.place.commits[fine] = commits
        self._has_name(writing, fine[(commits == 0) & writing.completes[fine]])
        full = np.isin(writing.failed[fine], _FULL)
        if full.any():
            self._space.no_space(writing.place.backend[fine[full]])
        # After a failed fdatasync or close nobody knows what is on the medium, and asking again does not help.
        ends = results[:, :-1]
        writing.lost[fine] = ((ends < 0) & (ends != -errno.ECANCELED)).any(axis=1)

    # ---- names

    async def _commit(self, writing: Writing[OwnFiles]) -> None:
        """See to the commits that were not plain renames: a directory to be made, another writer that was first."""
        whole = np.flatnonzero(writing.completes & (writing.failed == 0))
        if not len(whole):
            return
        ids, backend, result = writing.ids[whole], writing.place.backend[whole], writing.place.commits[whole]
        pool, counts = self.transfer.pool, self.transfer.counts
        homeless = result == -errno.ENOENT
        if homeless.any():
            await self._commit_in_new_homes(writing, whole, homeless, result)
        lost = result == -errno.EEXIST  # another writer committed the block meanwhile; its copy is as good
        if lost.any():
            await self._remove_own(ids[lost], backend[lost], writing.entries[whole[lost]])
            counts["commits_lost"] += int(lost.sum())
        done = result == 0
        counts["commits"] += int(done.sum())
        self._known.add(ids[done | lost], writing.place.removals)
        self._space.manager.touch(ids[done | lost], WEIGHT_DUMP)
        result[lost] = 0
        if writing.batch.durability == "synced":
            result[done] = await self._files.sync_directories(ids[done], backend[done], pool)
            result[lost] = await self._files.sync(ids[lost], backend[lost], pool)
        deleted = lost & (result == -errno.ENOENT)
        if (result < 0).any():
            self._known.removed(ids[result < 0])
        writing.lost[whole] |= done | lost | (result == -errno.ENOENT)
        writing.failed[whole] = np.where(deleted, AGAIN, -result)

    async def _commit_in_new_homes(self, writing: Writing[OwnFiles], whole: I64, homeless: Bools, result: I64) -> None:
        groups = whole[homeless]

        def then(results: I64) -> None:
            result[homeless] = results
            self._has_name(writing, groups[results == 0])

        ids, backend = writing.ids[groups], writing.place.backend[groups]
        await self._files.commit_in_new_homes(ids, backend, self.transfer.pool, then)

    async def _clear(self, ids: U8, entries: I64) -> None:
        begun = self._writes.reserved[entries]  # the others have no file
        if begun.any():
            ids = ids[begun]
            await self._remove_own(ids, choose_backend(ids, self._seeds), entries[begun])


_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
