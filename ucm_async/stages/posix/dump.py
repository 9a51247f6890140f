"""Dumping: stage into slots, write under this writer's own name, commit by count; many blocks at once."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ...abc import Batch
from ...blocks.header import CHECKSUM_FROM, pack_headers, seal_headers
from ...blocks.layout import BlockLayout, merge_ranges
from ...blocks.transfer import DIRECT_ALIGN, Transfer, status_of_errno
from ...blocks.writes import BlockWrite, BlockWrites
from ...engines import requests as rq
from ...engines.arena import Arena
from ...engines.chains import ChainTable, addresses_of, copy_requests
from ...engines.waits import completed, patient, run_copies
from ...errors import BackendIOError, NoSpaceError, StoreError
from ...native import execute
from ...tasks import cut_row, group_rows, rank_in_group
from ...types import BLOCK_ID_BYTES, I64, U8, U64, Bools, Status
from .files import BlockFiles
from .known import KnownBlocks
from .layout import choose_backend

__all__ = ["Dumper"]

AGAIN: Final = -1
"""Not an errno: nothing is wrong with the disk, and rows that are still wanted are written anew."""

CLAIM_PATIENCE_S: Final = 0.05
"""Who waits for what another task writes looks this often whether its own still wants it."""

_NONE: Final = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class _Writing:
    """Claimed blocks of a batch on their way to the disk. A group is the rows of one block; arrays of g are by group.

    Attributes
    ----------
    rows
        int64 (n,): rows of the batch; `group` (n,) says which block each belongs to.
    ids, backend, slots
        By group; the slots are of `arena`.
    writes, wanted
        By group: the block's state, and the shards claimed of it, a bit set.
    completes
        Bool (g,): the block is whole once these shards are in.
    commits
        By group: what the rename returned.
    direct
        True if the kernel reads the caller's memory itself.
    failed
        By group: the errno that ended it, 0 as long as all is well, `AGAIN` if a task of its rows settled before the
        bytes were taken, or if another writer's copy was deleted before it was synced.
    lost
        Bool (g,): of a group that failed, the file is gone, or what is in it cannot be relied on.
    removals
        As `KnownBlocks.removals` was before anything was written.
    """

    batch: Batch
    rows: I64
    group: I64
    ids: U8
    backend: I64
    writes: list[BlockWrite]
    wanted: list[int]
    completes: Bools
    failed: I64
    lost: Bools
    removals: int
    arena: Arena = field(init=False)
    slots: I64 = field(default_factory=lambda: _NONE)
    commits: I64 = field(default_factory=lambda: _NONE)
    direct: bool = False


class Dumper:
    """Takes batches into the files of several backends."""

    def __init__(
        self,
        layout: BlockLayout,
        namespace: bytes,
        files: BlockFiles,
        seeds: U64,
        known: KnownBlocks,
        transfer: Transfer,
        writes: BlockWrites,
    ) -> None:
        self._layout = layout
        self._namespace = namespace
        self._files = files
        self._seeds = seeds
        self._known = known
        self._writes = writes
        self.transfer = transfer

    async def dump(self, batch: Batch) -> None:
        """Take the rows of `batch` that are still wanted."""
        live = batch.live()
        rows = np.flatnonzero(live)
        if len(rows) < len(live):
            batch.report(~live, Status.CANCELLED)  # their task has settled: nobody sees this
        if (batch.shards >= 0).any():  # shards of one block may be anywhere in the batch
            rows = rows[np.lexsort((batch.shards[rows], *batch.ids[rows].view(np.uint64).T))]
        step = max(1, self.transfer.slots_for(batch).slots // 2)  # others wait for slots, too
        while len(rows):
            first, _ = group_rows(batch.ids[rows])
            cut = int(first[step]) if len(first) > step else len(rows)
            part, rows = rows[:cut], rows[cut:]
            while len(part):
                part = await self._dump_rows(batch, part)
                if len(part):
                    live = batch.live()[part]
                    batch.report(part[~live], Status.CANCELLED)
                    part = part[live]

    async def _dump_rows(self, batch: Batch, rows: I64) -> I64:
        """Write what can be claimed; returns the rows to be tried again.

        These are the ones that somebody else was writing, when that has changed, those whose block another task of the
        batch gave up, and those that were deleted while this dump relied on another's copy.
        """
        rows = await self._skip_stored(batch, rows)
        if not len(rows):
            return rows
        writing, theirs = self._claim(batch, rows)
        if writing is not None:
            try:
                await self._write(writing)
            except BaseException:
                writing.lost |= writing.failed == 0
                writing.failed[writing.lost] = errno.EIO
                raise
            finally:
                await self._settle(writing)
        for block_id in {batch.ids[row].tobytes() for row in theirs.tolist()}:
            change = self._writes.changed(block_id)
            while change is not None and not await patient(change, CLAIM_PATIENCE_S) and batch.live()[theirs].any():
                pass
        if writing is None:
            return theirs
        return np.concatenate((theirs, writing.rows[(writing.failed == AGAIN)[writing.group]]))

    async def _skip_stored(self, batch: Batch, rows: I64) -> I64:
        """Report the rows of blocks that are stored already; returns the others."""
        first, group = group_rows(batch.ids[rows])
        ids = np.ascontiguousarray(batch.ids[rows[first]])
        backend = choose_backend(ids, self._seeds)
        removals = self._known.removals
        size = await self._files.stat(ids, backend, self.transfer.pool)
        stored = size == self._layout.file_bytes
        damaged = (size >= 0) & ~stored
        if damaged.any():  # else it would keep its place for ever: a commit never replaces
            await self._files.quarantine(ids[damaged], backend[damaged], self.transfer.pool)
            self._known.removed(ids[damaged])
        if stored.any():
            self._known.add(ids[stored], removals)
            stored[stored] = await self._report_stored(batch, rows[stored[group]], ids[stored], backend[stored])
        rest: I64 = rows[~stored[group]]
        return rest

    async def _report_stored(self, batch: Batch, rows: I64, ids: U8, backend: I64) -> Bools:
        """Report the rows of stored blocks; bool, shape of `ids`: False for those that were deleted meanwhile."""
        self.transfer.counts["already_stored"] += len(ids)
        if len(self._writes):
            for block_id in ids:  # another writer was first, and these shards are of no use any more
                await self.discard_partial(block_id.tobytes())
        if batch.durability != "synced":
            batch.report(rows, Status.OK)
            return np.ones(len(ids), dtype=np.bool_)
        result = await self._files.sync(ids, backend, self.transfer.pool)
        _, group = group_rows(batch.ids[rows])
        for number in np.unique(-result[result != -errno.ENOENT]).tolist():
            batch.report(rows[(result == -number)[group]], *(_failure(number) if number else (Status.OK, None)))
        return np.asarray(result != -errno.ENOENT)

    def _claim(self, batch: Batch, rows: I64) -> tuple[_Writing | None, I64]:
        """Claim what nobody else is writing; the second value is the rows of what somebody is."""
        first, group = group_rows(batch.ids[rows])
        names = batch.ids[rows[first]].tobytes()
        shards = batch.shards[rows].tolist()
        bounds = [*first.tolist(), len(rows)]
        mine = np.zeros(len(first), dtype=np.bool_)
        writes: list[BlockWrite] = []
        wanted: list[int] = []
        for g in range(len(first)):
            bits = self._writes.bits(shards[bounds[g] : bounds[g + 1]])
            write = self._writes.claim(names[BLOCK_ID_BYTES * g : BLOCK_ID_BYTES * (g + 1)], bits)
            if write is not None:
                mine[g] = True
                writes.append(write)
                wanted.append(bits)
        theirs = rows[~mine[group]]
        if not writes:
            return None, theirs
        ids = np.ascontiguousarray(batch.ids[rows[first[mine]]])
        completes = np.array([self._writes.completes(w, bits) for w, bits in zip(writes, wanted, strict=True)])
        kept = mine[group]
        return _Writing(
            batch,
            rows[kept],
            (np.cumsum(mine) - 1)[group[kept]],
            ids,
            choose_backend(ids, self._seeds),
            writes,
            wanted,
            completes,
            failed=np.zeros(len(ids), dtype=np.int64),
            lost=np.zeros(len(ids), dtype=np.bool_),
            removals=self._known.removals,
        ), theirs

    # ---- the steps of a write; each leaves out the groups that failed before

    async def _write(self, writing: _Writing) -> None:
        writing.arena = arena = self.transfer.slots_for(writing.batch)
        writing.slots = await arena.lease(len(writing.ids))
        try:
            await self._stage(writing)
            self._write_headers(writing)
            await self._move(writing)
        finally:
            arena.release(writing.slots)
        await self._finish_commits(writing)

    async def _stage(self, writing: _Writing) -> None:
        """Take the bytes out of the caller's memory, or only their checksums where the kernel may read it itself."""
        batch, rows = writing.batch, writing.rows
        pieces = batch.addresses[rows]
        writing.direct = writing.arena is self.transfer.heads
        cuts = cut_row(tuple(batch.piece_sizes.tolist()), self._layout.shard_size)
        start = self._layout.row_ranges(batch.shards[rows])[0]
        copies = copy_requests(
            rq.OP_CHECKSUM if writing.direct else rq.OP_COPY,
            cuts,
            slots=writing.arena.address(writing.slots)[writing.group] + start.astype(np.uint64),
            pieces=pieces,
            gates=batch.gates[rows],
            to_slots=True,
        )
        await run_copies(copies.reshape(-1), self.transfer.pool, len(cuts))
        results = copies["result"]
        let_in = (results >= 0).all(axis=1)
        if not let_in.all():
            writing.failed[writing.group[~let_in]] = AGAIN
        sums = results[:, cuts.last].astype(np.uint32)
        at = np.maximum(batch.shards[rows], 0).tolist()
        for row, group in enumerate(writing.group.tolist()):
            if not writing.failed[group]:
                writing.writes[group].checksums[at[row] : at[row] + sums.shape[1]] = sums[row]

    def _write_headers(self, writing: _Writing) -> None:
        """Put the headers of blocks that become whole into their slots."""
        whole = np.flatnonzero(writing.completes & (writing.failed == 0))
        if not len(whole):
            return
        checksums = np.array([writing.writes[g].checksums for g in whole.tolist()])
        headers = pack_headers(writing.ids[whole], self._namespace, self._layout.shard_size, checksums)
        requests = rq.new_requests(len(whole))
        requests["opcode"] = rq.OP_CHECKSUM
        requests["address"] = addresses_of(headers) + np.uint64(CHECKSUM_FROM)
        requests["length"] = headers.shape[1] - CHECKSUM_FROM
        execute(requests)
        seal_headers(headers, requests["result"].astype(np.uint32))
        slots = writing.arena.view()
        slots[writing.slots[whole], : headers.shape[1]] = headers
        slots[writing.slots[whole], headers.shape[1] : self._layout.header_bytes] = 0

    async def _move(self, writing: _Writing) -> None:
        """Run a chain for each block: open, reserve, write, and if it becomes whole sync (if asked), close and commit.

        The space is reserved at its exact size: ext4 rounds what a write asks for up to a power of two, and blocks with
        holes between them read at three quarters of the speed.
        """
        fine = np.flatnonzero(writing.failed == 0)
        if not len(fine):
            return
        writes, owner, wanted, vectors = self._plan_direct(writing) if writing.direct else self._plan_slots(writing)
        place, width = rank_in_group(np.searchsorted(fine, owner), len(fine))
        owner = np.searchsorted(fine, owner)
        chains = ChainTable(len(fine), width + 5)
        table = chains.table
        ids, backend, completes = writing.ids[fine], writing.backend[fine], writing.completes[fine]
        # A shard that is no whole number of pages cannot be written alone with O_DIRECT.
        aligned = self._layout.shard_size % DIRECT_ALIGN == 0
        direct = np.array([aligned or writing.wanted[g] == self._writes.full for g in fine.tolist()], dtype=np.bool_)
        chains.keep += (vectors, self._files.put_open_to_write(table[:, 0], ids, backend, direct))
        writes["opcode"] |= rq.FLAG_LINK
        reserve = table[:, 1]
        reserve["opcode"] = rq.OP_FALLOCATE | rq.FLAG_LINK
        reserve["length"] = self._layout.file_bytes
        table[owner, 2 + place] = writes
        if writing.batch.durability == "synced":
            table["opcode"][:, -3] = rq.OP_FDATASYNC | rq.FLAG_LINK | rq.FLAG_IF_WELL
        table["opcode"][:, -2] = rq.OP_CLOSE | rq.FLAG_LINK
        chains.keep.append(self._files.put_commit(table[:, -1], ids, backend))
        table["opcode"][~completes, -1] = rq.OP_NOP
        await completed(self.transfer.engine.submit(table.reshape(-1), chains.steps))
        counts = self.transfer.counts
        counts["rows"] += len(writing.rows)
        counts["writes"] += len(writes)
        counts["bytes"] += int(wanted.sum())
        lengths = np.zeros((len(fine), width), dtype=np.int64)
        lengths[owner, place] = wanted
        self._judge(writing, fine, table["result"], lengths)

    def _judge(self, writing: _Writing, fine: I64, results: npt.NDArray[np.int64], wanted: I64) -> None:
        """Read off what became of each chain."""
        writing.commits = np.zeros(len(writing.ids), dtype=np.int64)
        writing.commits[fine] = results[:, -1]
        moved = results[:, 2:-3]
        well = (results[:, :2] >= 0).all(axis=1) & (moved == wanted).all(axis=1) & (results[:, -3] >= 0)
        for i in np.flatnonzero(~well).tolist():
            errors = [number for number in results[i, :-2].tolist() if number < 0 and number != -errno.ECANCELED]
            # A write that came back short without an error met the end of the space.
            writing.failed[fine[i]] = -errors[0] if errors else errno.ENOSPC
            self.transfer.counts["write_errors"] += 1
        # After a failed fdatasync or close nobody knows what is on the medium, and asking again does not help.
        ends = results[:, -3:-1]
        writing.lost[fine] = ((ends < 0) & (ends != -errno.ECANCELED)).any(axis=1)

    def _plan_slots(self, writing: _Writing) -> tuple[rq.Requests, I64, I64, object]:
        layout = self._layout
        keep = writing.failed[writing.group] == 0
        start, stop = layout.row_ranges(writing.batch.shards[writing.rows[keep]])
        stop[stop == layout.header_bytes + layout.block_size] = (
            layout.file_bytes
        )  # the padding goes with the last shard
        heads = np.flatnonzero(writing.completes & (writing.failed == 0))
        owner, start, stop = merge_ranges(
            np.concatenate((heads, writing.group[keep])),
            np.concatenate((np.zeros(len(heads), dtype=np.int64), start)),
            np.concatenate((np.full(len(heads), layout.header_bytes), stop)),
            gap=0,
        )
        writes = rq.new_requests(len(owner))
        writes["opcode"] = rq.OP_WRITE
        writes["offset"] = start
        writes["address"] = writing.arena.address(writing.slots[owner]) + start.astype(np.uint64)
        writes["length"] = stop - start
        return writes, owner, stop - start, None

    def _plan_direct(self, writing: _Writing) -> tuple[rq.Requests, I64, I64, object]:
        """One vectored write a row; the header goes along with the block's first shard, or alone."""
        batch, layout = writing.batch, self._layout
        keep = writing.failed[writing.group] == 0
        rows, group = writing.rows[keep], writing.group[keep]
        start, stop = layout.row_ranges(batch.shards[rows])
        beside = (start == layout.header_bytes) & writing.completes[group]
        k = len(batch.piece_sizes)
        bases = writing.arena.address(writing.slots)
        vectors = np.zeros((len(rows), k + 1), dtype=rq.IOVEC)
        vectors["address"][:, 0] = bases[group]
        vectors["length"][:, 0] = layout.header_bytes
        vectors["address"][:, 1:] = batch.addresses[rows]
        vectors["length"][:, 1:] = batch.piece_sizes
        alone = np.setdiff1d(np.flatnonzero(writing.completes & (writing.failed == 0)), group[beside])
        writes = rq.new_requests(len(rows) + len(alone))
        of_rows, of_heads = writes[: len(rows)], writes[len(rows) :]
        of_rows["opcode"] = rq.OP_WRITEV
        of_rows["offset"] = np.where(beside, 0, start)
        of_rows["address"] = addresses_of(vectors) + np.where(beside, 0, rq.IOVEC.itemsize).astype(np.uint64)
        of_rows["length"] = np.where(beside, k + 1, k)
        of_heads["opcode"] = rq.OP_WRITE
        of_heads["address"] = bases[alone]
        of_heads["length"] = layout.header_bytes
        wanted = stop - start + np.where(beside, layout.header_bytes, 0)
        owner = np.concatenate((group, alone))
        wanted = np.concatenate((wanted, np.full(len(alone), layout.header_bytes)))
        order = np.argsort(owner, kind="stable")
        return writes[order], owner[order], wanted[order], vectors

    async def _finish_commits(self, writing: _Writing) -> None:
        """See to the commits that were not plain renames: a directory to be made, another writer that was first."""
        whole = np.flatnonzero(writing.completes & (writing.failed == 0))
        if not len(whole):
            return
        ids, backend, result = writing.ids[whole], writing.backend[whole], writing.commits[whole]
        pool, counts = self.transfer.pool, self.transfer.counts
        homeless = result == -errno.ENOENT
        if homeless.any():
            result[homeless] = await self._files.commit_in_new_homes(ids[homeless], backend[homeless], pool)
        lost = result == -errno.EEXIST  # another writer committed the block meanwhile; its copy is as good
        if lost.any():
            await self._files.unlink_own(ids[lost], backend[lost], pool)
            counts["commits_lost"] += int(lost.sum())
        done = result == 0
        counts["commits"] += int(done.sum())
        self._known.add(ids[done | lost], writing.removals)
        result[lost] = 0
        if writing.batch.durability == "synced":
            result[done] = await self._files.sync_directories(ids[done], backend[done], pool)
            result[lost] = await self._files.sync(ids[lost], backend[lost], pool)
        deleted = lost & (result == -errno.ENOENT)
        writing.lost[whole] |= done | lost | (result == -errno.ENOENT)
        writing.failed[whole] = np.where(deleted, AGAIN, -result)

    # ---- the end

    async def _settle(self, writing: _Writing) -> None:
        """Give the claims back, remove files that hold nothing, report."""
        writes, bad = self._writes, np.flatnonzero(writing.failed).tolist()
        empty = np.zeros(len(writing.writes), dtype=np.bool_)
        for g in bad:
            empty[g] = writes.close_if_empty(writing.writes[g], writing.wanted[g], self._written(writing, g))
        try:
            if empty.any():
                await self._files.unlink_own(writing.ids[empty], writing.backend[empty], self.transfer.pool)
        finally:
            self._give_back(writing, empty)
            self._report(writing)
        await self._drop_surplus()

    def _give_back(self, writing: _Writing, empty: Bools) -> None:
        outcomes = zip(empty.tolist(), writing.failed.tolist(), writing.completes.tolist(), strict=True)
        for g, (write, (gone, failed, completes)) in enumerate(zip(writing.writes, outcomes, strict=True)):
            if gone:
                self._writes.failed(write, self._writes.full, self._writes.full)
            elif failed:
                self._writes.failed(write, writing.wanted[g], self._written(writing, g))
            elif completes:
                self._writes.committed(write)
            else:
                self._writes.shards_in(write, writing.wanted[g])

    def _written(self, writing: _Writing, g: int) -> int:
        """Return the shards that a failed group may have spoilt, a bit set."""
        if writing.lost[g]:
            return self._writes.full
        return 0 if writing.failed[g] == AGAIN else writing.wanted[g]

    def _report(self, writing: _Writing) -> None:
        for number in np.unique(writing.failed).tolist():
            rows = writing.rows[(writing.failed == number)[writing.group]]
            if number == 0:
                writing.batch.report(rows, Status.OK)
            elif number == AGAIN:  # the others are tried again
                writing.batch.report(rows[~writing.batch.live()[rows]], Status.CANCELLED)
            else:
                writing.batch.report(rows, *_failure(number))

    async def _drop_surplus(self) -> None:
        """Forget the incomplete blocks that exceed the bound."""
        for write in self._writes.surplus():
            await self.discard_partial(write.block_id)
            self.transfer.counts["partial_dropped"] += 1

    async def discard_partial(self, block_id: bytes) -> None:
        """Forget an incomplete block and remove its file, unless somebody is writing it."""
        write = self._writes.close_idle(block_id)
        if write is not None:
            ids = np.frombuffer(block_id, dtype=np.uint8).reshape(1, -1)
            try:
                await self._files.unlink_own(ids, choose_backend(ids, self._seeds), self.transfer.pool)
            finally:
                self._writes.failed(write, self._writes.full, self._writes.full)


def _failure(number: int) -> tuple[Status, StoreError]:
    status = status_of_errno(number)
    if status == Status.NO_SPACE:
        return status, NoSpaceError.from_errno(number, "write")
    return Status.IO_ERROR, BackendIOError.from_errno(number, "write")
