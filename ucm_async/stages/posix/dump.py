"""Dumping: stage into slots, write under this writer's own name, commit by count; many blocks at once."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ...abc import Batch
from ...engines import requests as rq
from ...errors import BackendIOError, NoSpaceError, StoreError
from ...native import execute
from ...tasks import cut_row
from ...types import I64, U8, U64, Bools, Status
from .files import BlockFiles
from .header import CHECKSUM_FROM, pack_headers, seal_headers
from .known import KnownBlocks
from .layout import BlockLayout, choose_backend, group_rows, merge_ranges
from .transfer import DIRECT_ALIGN, Transfer, can_go_direct, copy_rows, run_copies, shard_sums, status_of_errno
from .writes import BlockWrite, BlockWrites

__all__ = ["Dumper"]

GATE_CLOSED: Final = -1
_NONE: Final = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class _Writing:
    """Claimed blocks of a batch on their way to the disk. A group is the rows of one block; arrays of g are by group.

    Attributes
    ----------
    rows
        int64 (n,): rows of the batch; `group` (n,) says which block each belongs to.
    ids, backend, slots, fds
        By group.
    writes, wanted
        By group: the block's state, and the shards claimed of it, a bit set.
    completes
        Bool (g,): the block is whole once these shards are in.
    failed
        By group: the errno that ended it, 0 as long as all is well, `GATE_CLOSED` if its task settled before the
        bytes were taken.
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
    slots: I64 = field(default_factory=lambda: _NONE)
    fds: I64 = field(default_factory=lambda: _NONE)
    scattered: bool = False
    vectors: object = None

    def fine(self) -> I64:
        """Return the groups that nothing has happened to."""
        return np.flatnonzero(self.failed == 0)


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
        rows = np.flatnonzero(batch.live()).astype(np.int64)
        if (batch.shards >= 0).any():  # shards of one block may be anywhere in the batch
            rows = rows[np.lexsort((batch.shards[rows], *batch.ids[rows].view(np.uint64).T))]
        while len(rows):
            first, _ = group_rows(batch.ids[rows])
            cut = int(first[self.transfer.arena.slots]) if len(first) > self.transfer.arena.slots else len(rows)
            part, rows = rows[:cut], rows[cut:]
            while len(part):
                part = await self._dump_rows(batch, part)

    async def _dump_rows(self, batch: Batch, rows: I64) -> I64:
        """Write what can be claimed; returns the rows that somebody else was writing, when that has changed."""
        rows = await self._skip_stored(batch, rows)
        if not len(rows):
            return rows
        writing, theirs = self._claim(batch, rows)
        if writing is not None:
            try:
                await self._write(writing)
            except BaseException:
                writing.failed[writing.failed == 0] = errno.EIO
                raise
            finally:
                await self._settle(writing)
        for block_id in {batch.ids[row].tobytes() for row in theirs.tolist()}:
            change = self._writes.changed(block_id)
            if change is not None:
                await change
        return theirs

    async def _skip_stored(self, batch: Batch, rows: I64) -> I64:
        """Report the rows of blocks that are stored already; returns the others."""
        first, group = group_rows(batch.ids[rows])
        ids = np.ascontiguousarray(batch.ids[rows[first]])
        backend = choose_backend(ids, self._seeds)
        size = await self._files.stat(ids, backend, self.transfer.pool)
        stored = size == self._layout.file_bytes
        damaged = (size >= 0) & ~stored
        if damaged.any():  # else it would keep its place for ever: a commit never replaces
            await self._files.quarantine(ids[damaged], backend[damaged], self.transfer.pool)
            self._known.discard(ids[damaged])
        if stored.any():
            self._known.add(ids[stored])
            batch.report(rows[stored[group]], Status.OK)
            self.transfer.counts["already_stored"] += int(stored.sum())
        rest: I64 = rows[~stored[group]]
        return rest

    def _claim(self, batch: Batch, rows: I64) -> tuple[_Writing | None, I64]:
        """Claim what nobody else is writing; the second value is the rows of what somebody is."""
        first, group = group_rows(batch.ids[rows])
        ends = np.append(first[1:], len(rows))
        mine = np.zeros(len(first), dtype=np.bool_)
        writes: list[BlockWrite] = []
        wanted: list[int] = []
        for g, (start, end) in enumerate(zip(first.tolist(), ends.tolist(), strict=True)):
            bits = self._writes.bits(batch.shards[rows[start:end]])
            write = self._writes.claim(batch.ids[rows[start]].tobytes(), bits)
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
            np.zeros(len(ids), dtype=np.int64),
        ), theirs

    # ---- the steps of a write; each leaves out the groups that failed before

    async def _write(self, writing: _Writing) -> None:
        arena = self.transfer.arena
        writing.slots = await arena.lease(len(writing.ids))
        try:
            await self._stage(writing)
            self._write_headers(writing)
            await self._open(writing)
            await self._move(writing)
        finally:
            arena.release(writing.slots)
        await self._commit(writing)

    async def _stage(self, writing: _Writing) -> None:
        """Take the bytes out of the caller's memory, or only their checksums where the kernel may read it itself."""
        batch, rows = writing.batch, writing.rows
        writing.scattered = batch.direct and can_go_direct(batch.addresses[rows], batch.piece_sizes)
        cuts = cut_row(tuple(batch.piece_sizes.tolist()), self._layout.shard_size)
        offset = self._layout.row_ranges(batch.shards[rows])[0].astype(np.uint64)
        copies = copy_rows(
            rq.OP_CHECKSUM if writing.scattered else rq.OP_COPY,
            cuts,
            slots=self.transfer.arena.address(writing.slots)[writing.group] + offset,
            pieces=batch.addresses[rows],
            gates=batch.gates[rows],
            to_slots=True,
        )
        await run_copies(copies, self.transfer.pool, len(cuts))
        sums, whole = shard_sums(copies, len(rows), cuts)
        writing.failed[np.unique(writing.group[~whole])] = GATE_CLOSED
        at = np.maximum(batch.shards[rows], 0)
        for row, group in enumerate(writing.group.tolist()):
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
        requests["address"] = headers.ctypes.data + CHECKSUM_FROM + np.arange(len(whole)) * headers.strides[0]
        requests["length"] = headers.shape[1] - CHECKSUM_FROM
        execute(requests)
        seal_headers(headers, requests["result"].astype(np.uint32))
        slots = self.transfer.arena.view()
        slots[writing.slots[whole], : headers.shape[1]] = headers
        slots[writing.slots[whole], headers.shape[1] : self._layout.header_bytes] = 0

    async def _open(self, writing: _Writing) -> None:
        writing.fds = np.full(len(writing.ids), -1, dtype=np.int64)
        fine = writing.fine()
        # A shard that is no whole number of pages cannot be written alone with O_DIRECT.
        aligned = self._layout.shard_size % DIRECT_ALIGN == 0
        direct = np.array([aligned or writing.wanted[g] == self._writes.full for g in fine.tolist()], dtype=np.bool_)
        reserve = self._layout.file_bytes if self.transfer.engine.name == "aio" else 0
        fds = await self._files.open_to_write(
            writing.ids[fine], writing.backend[fine], self.transfer.pool, direct=direct, reserve=reserve
        )
        writing.fds[fine] = np.where(fds < 0, -1, fds)
        writing.failed[fine] = np.where(fds < 0, -fds, 0)

    async def _move(self, writing: _Writing) -> None:
        """Write the shards, and the headers of blocks that become whole."""
        requests, owner, wanted = self._plan_scattered(writing) if writing.scattered else self._plan_slots(writing)
        if not len(requests):
            return
        await self.transfer.engine.submit(requests)
        counts = self.transfer.counts
        counts["rows"] += len(writing.rows)
        counts["writes"] += len(requests)
        counts["bytes"] += int(wanted.sum())
        results = requests["result"]
        for i in np.flatnonzero(results != wanted).tolist():
            # A write that came back short without an error met the end of the space.
            writing.failed[owner[i]] = -int(results[i]) if results[i] < 0 else errno.ENOSPC
            counts["write_errors"] += 1

    def _plan_slots(self, writing: _Writing) -> tuple[rq.Requests, I64, I64]:
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
        requests = rq.new_requests(len(owner))
        requests["opcode"] = rq.OP_WRITE
        requests["fd"] = writing.fds[owner]
        requests["offset"] = start
        requests["address"] = self.transfer.arena.address(writing.slots[owner]) + start.astype(np.uint64)
        requests["length"] = stop - start
        return requests, owner, stop - start

    def _plan_scattered(self, writing: _Writing) -> tuple[rq.Requests, I64, I64]:
        """One vectored write a row; the header goes along with the block's first shard, or alone."""
        batch, layout = writing.batch, self._layout
        keep = writing.failed[writing.group] == 0
        rows, group = writing.rows[keep], writing.group[keep]
        start, _ = layout.row_ranges(batch.shards[rows])
        beside = (start == layout.header_bytes) & writing.completes[group]
        k = len(batch.piece_sizes)
        bases = self.transfer.arena.address(writing.slots)
        vectors = np.zeros((len(rows), k + 1), dtype=rq.IOVEC)
        vectors["address"][:, 0] = bases[group]
        vectors["length"][:, 0] = layout.header_bytes
        vectors["address"][:, 1:] = batch.addresses[rows]
        vectors["length"][:, 1:] = batch.piece_sizes
        alone = np.setdiff1d(np.flatnonzero(writing.completes & (writing.failed == 0)), group[beside])
        requests = rq.new_requests(len(rows) + len(alone))
        skip = np.where(beside, 0, 1)
        requests["opcode"][: len(rows)] = rq.OP_WRITEV
        requests["fd"][: len(rows)] = writing.fds[group]
        requests["offset"][: len(rows)] = np.where(beside, 0, start)
        step = vectors.strides[0]
        address = vectors.ctypes.data + np.arange(len(rows)) * step + skip * rq.IOVEC.itemsize
        requests["address"][: len(rows)] = address
        requests["length"][: len(rows)] = k + 1 - skip
        requests["opcode"][len(rows) :] = rq.OP_WRITE
        requests["fd"][len(rows) :] = writing.fds[alone]
        requests["address"][len(rows) :] = bases[alone]
        requests["length"][len(rows) :] = layout.header_bytes
        writing.vectors = vectors
        row_bytes = int(batch.piece_sizes.sum())
        sizes = row_bytes + np.where(beside, layout.header_bytes, 0)
        return (
            requests,
            np.concatenate((group, alone)),
            np.concatenate((sizes, np.full(len(alone), layout.header_bytes))),
        )

    async def _commit(self, writing: _Writing) -> None:
        """Give whole blocks their names."""
        whole = np.flatnonzero(writing.completes & (writing.failed == 0))
        if not len(whole):
            return
        ids, backend = writing.ids[whole], writing.backend[whole]
        sync = writing.batch.durability == "synced"
        fds, writing.fds[whole] = writing.fds[whole].copy(), -1
        result = await self._files.commit(ids, backend, fds, self.transfer.pool, sync=sync)
        lost = result == -errno.EEXIST  # another writer committed the block meanwhile; its copy is as good
        if lost.any():
            none = np.full(int(lost.sum()), -1, dtype=np.int64)
            await self._files.abandon(ids[lost], backend[lost], none, self.transfer.pool, unlink=True)
            self.transfer.counts["commits_lost"] += int(lost.sum())
        self._known.add(ids[(result == 0) | lost])
        writing.failed[whole] = np.where(lost, 0, -result)
        self.transfer.counts["commits"] += int((result == 0).sum())

    # ---- the end

    async def _settle(self, writing: _Writing) -> None:
        """Give the claims back, close what is open, report."""
        open_fds = writing.fds if len(writing.fds) else np.full(len(writing.ids), -1, dtype=np.int64)
        fine = writing.failed == 0
        for g, write in enumerate(writing.writes):
            if not fine[g]:
                self._writes.failed(write, writing.wanted[g], file_lost=bool(writing.completes[g]))
        gone = ~fine & np.array([write.done == 0 for write in writing.writes])
        for which, unlink in ((gone, True), (~gone & (open_fds >= 0), False)):
            if which.any():
                await self._files.abandon(
                    writing.ids[which], writing.backend[which], open_fds[which], self.transfer.pool, unlink=unlink
                )
        for g, write in enumerate(writing.writes):
            if fine[g] and writing.completes[g]:
                self._writes.committed(write)
            elif fine[g]:
                self._writes.shards_in(write, writing.wanted[g])
        self._report(writing)
        await self._drop_surplus()

    def _report(self, writing: _Writing) -> None:
        for number in np.unique(writing.failed).tolist():
            rows = writing.rows[(writing.failed == number)[writing.group]]
            if number == 0:
                writing.batch.report(rows, Status.OK)
            elif number == GATE_CLOSED:
                writing.batch.report(rows, Status.CANCELLED)
            else:
                writing.batch.report(rows, *_failure(number))

    async def _drop_surplus(self) -> None:
        """Forget the incomplete blocks that exceed the bound."""
        for write in self._writes.surplus():
            await self.discard_partial(write.block_id)
            self.transfer.counts["partial_dropped"] += 1

    async def discard_partial(self, block_id: bytes) -> None:
        """Forget an incomplete block and remove its file, unless somebody is writing it."""
        write = self._writes.discard(block_id)
        if write is not None and write.in_file:
            ids = np.frombuffer(block_id, dtype=np.uint8).reshape(1, -1)
            none = np.full(1, -1, dtype=np.int64)
            await self._files.abandon(ids, choose_backend(ids, self._seeds), none, self.transfer.pool, unlink=True)


def _failure(number: int) -> tuple[Status, StoreError]:
    status = status_of_errno(number)
    if status == Status.NO_SPACE:
        return status, NoSpaceError.from_errno(number, "write")
    return Status.IO_ERROR, BackendIOError.from_errno(number, "write")
