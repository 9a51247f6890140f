"""Loading: for each block one chain of requests — open, read, check, gather, close — and one look at the results."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...abc import Batch
from ...blocks.header import CHECKSUM_FROM, check_headers, used_bytes
from ...blocks.layout import BlockLayout, merge_ranges
from ...blocks.transfer import DIRECT_ALIGN, Transfer, status_of_errno
from ...engines import requests as rq
from ...engines.arena import Arena
from ...engines.chains import ChainTable, addresses_of, copy_requests
from ...engines.waits import completed, patient
from ...errors import BackendIOError, CorruptError
from ...tasks import Cuts, cut_row, group_rows, rank_in_group
from ...types import I64, U8, U64, Bools, Status
from .files import BlockFiles
from .known import KnownBlocks
from .layout import choose_backend

__all__ = ["Loader"]

DIRECT_ROW_BYTES_MIN: Final = 256 << 10
"""Smaller rows are read into slots, which are registered with the ring, and copied in the pass that checks them: that
takes less time than pinning a caller's pages for each read."""

READ_GAP_BYTES: Final = 32 << 10
"""Bytes read along between two ranges of one file: at 2 GB/s they cost what a second request does."""

PATIENCE_S_MIN: Final = 0.0005
"""Rows that are in are handed on before a deadline, but not more often than this."""

ATTEMPTS_MAX: Final = 3
"""Once with files that need no disk to open, once with all, and once more for reads that came back short."""

CACHED_OPENS_MAX: Final = 2
"""So few blocks are first opened in the hope that no disk is needed, which an engine can do on the loop itself."""


@dataclass(slots=True)
class _Reading:
    """The blocks of a batch while they are read. A group is the rows of one block; arrays of g are by group.

    Attributes
    ----------
    rows, group, rank
        int64 (n,): rows of the batch, the group of each, and its place in the group.
    ids, backend, slots, bases
        By group: the block, where it lies, its slot in `arena`, and the slot's address.
    chains
        One chain a group: OPEN, reads, CHECKSUM of the header, copies of the rows, CLOSE.
    wanted
        int64 (g, reads): bytes that each read must bring.
    cuts
        How each row is cut; its runs are the copies.
    held
        Bool (g,): the slots that are not given back yet.
    removals
        As `KnownBlocks.removals` was before anything was read.
    spoilt
        Rows to be read again, each for itself and into slots: a read of their block failed, perhaps that of another
        row, or what lies in the caller's memory is not what was read.
    """

    batch: Batch
    rows: I64
    group: I64
    ids: U8
    backend: I64
    arena: Arena
    slots: I64
    bases: U64
    cuts: Cuts
    rank: I64
    ranks: int
    chains: ChainTable
    wanted: I64
    held: Bools
    removals: int
    spoilt: list[int] = field(default_factory=list)

    @property
    def head_column(self) -> int:
        """Step of the header's checksum; the copies follow it."""
        return 1 + int(self.wanted.shape[1])


class Loader:
    """Brings batches from the files of several backends."""

    def __init__(
        self,
        layout: BlockLayout,
        namespace: bytes,
        files: BlockFiles,
        seeds: U64,
        known: KnownBlocks,
        transfer: Transfer,
    ) -> None:
        self._layout = layout
        self._namespace = namespace
        self._files = files
        self._seeds = seeds
        self._known = known
        self.transfer = transfer

    async def load(self, batch: Batch) -> None:
        """Deliver the rows of `batch` that are still wanted."""
        live = batch.live()
        rows = np.flatnonzero(live)
        if len(rows) < len(live):
            batch.report(~live, Status.CANCELLED)  # their task has settled: nobody sees this
        arena = self.transfer.slots_for(batch, DIRECT_ROW_BYTES_MIN)
        step = max(1, arena.slots // 2)  # a group needs a slot, there are no more groups than rows, and others wait too
        spoilt: list[int] = []
        for start in range(0, len(rows), step):
            spoilt += await self._load_rows(batch, rows[start : start + step], arena)
        step = max(1, self.transfer.arena.slots // 2)
        for start in range(0, len(spoilt), step):
            again = np.array(spoilt[start : start + step])
            await self._load_rows(batch, again, self.transfer.arena, apart=True)

    async def _load_rows(self, batch: Batch, rows: I64, arena: Arena, *, apart: bool = False) -> list[int]:
        """Load rows, with one chain a block, or one a row if `apart`; returns those that another row's read spoilt."""
        first, group = (np.arange(len(rows)),) * 2 if apart else group_rows(batch.ids[rows])
        slots = await arena.lease(len(first))
        reading: _Reading | None = None
        try:
            reading = self._plan(batch, rows, first, group, arena, slots)
            groups = np.arange(len(first))
            for attempt in range(ATTEMPTS_MAX):
                groups = await self._attempt(reading, groups, attempt)
                if not len(groups):
                    break
        finally:
            arena.release(slots if reading is None else slots[reading.held])
        return reading.spoilt

    # ---- the plan

    def _plan(self, batch: Batch, rows: I64, first: I64, group: I64, arena: Arena, slots: I64) -> _Reading:
        """Write the chains: reads into the slots, or straight into the caller's memory where that is allowed."""
        layout = self._layout
        cuts = cut_row(tuple(batch.piece_sizes.tolist()), layout.shard_size)
        ids = np.ascontiguousarray(batch.ids[rows[first]])
        backend = choose_backend(ids, self._seeds)
        bases = arena.address(slots)
        start, stop = layout.row_ranges(batch.shards[rows])
        pieces = batch.addresses[rows]
        gates = batch.gates[rows]
        direct = arena is self.transfer.heads
        plan = self._plan_direct if direct else self._plan_slots
        reads, owner, wanted, vectors = plan(batch, rows, group, bases, start, stop)
        place, width = rank_in_group(owner, len(ids))
        rank, ranks = rank_in_group(group, len(ids))
        chains = ChainTable(len(ids), width + ranks * len(cuts) + 3)
        table = chains.table
        chains.keep += (vectors, self._files.put_open_to_read(table[:, 0], ids, backend))
        reads["opcode"] |= rq.FLAG_LINK
        if (
            gates == gates[first][group]
        ).all():  # one task a block, as usual: what it gave up need not be read any more
            reads["gate"] = gates[first][owner]
        table[owner, 1 + place] = reads
        lengths = np.zeros((len(ids), width), dtype=np.int64)
        lengths[owner, place] = wanted
        self._put_header_checksum(table[:, 1 + width], bases)
        copies = copy_requests(
            rq.OP_CHECKSUM if direct else rq.OP_COPY,
            cuts,
            slots=bases[group] + start.astype(np.uint64),
            pieces=pieces,
            gates=gates,
            to_slots=False,
            flags=rq.FLAG_IF_WELL,
        )
        body = table[:, 2 + width : -1].reshape(len(ids), ranks, len(cuts), copy=False)
        body[group, rank] = copies
        table["opcode"][:, -1] = rq.OP_CLOSE | rq.FLAG_LINK
        counts = self.transfer.counts
        counts["blocks"] += len(ids)
        counts["rows"] += len(rows)
        counts["reads"] += len(reads)
        counts["bytes"] += int(wanted.sum())
        return _Reading(
            batch,
            rows,
            group,
            ids,
            backend,
            arena,
            slots,
            bases,
            cuts,
            rank,
            ranks,
            chains,
            lengths,
            np.ones(len(ids), dtype=np.bool_),
            self._known.removals,
        )

    def _put_header_checksum(self, column: rq.Requests, bases: U64) -> None:
        column["opcode"] = rq.OP_CHECKSUM | rq.FLAG_IF_WELL
        column["address"] = bases + np.uint64(CHECKSUM_FROM)
        column["length"] = used_bytes(self._layout.shards) - CHECKSUM_FROM

    def _plan_slots(
        self, batch: Batch, rows: I64, group: I64, bases: U64, start: I64, stop: I64
    ) -> tuple[rq.Requests, I64, I64, object]:
        """Read the header and the rows of each block, whole pages, with as few requests as pays."""
        head = self._layout.header_bytes
        start = start // DIRECT_ALIGN * DIRECT_ALIGN
        stop = -(-stop // DIRECT_ALIGN) * DIRECT_ALIGN
        owner = group
        if len(rows) == len(bases) and int(start.max()) - head <= READ_GAP_BYTES:
            start = np.zeros_like(start)
        else:
            heads = np.arange(len(bases))
            owner, start, stop = merge_ranges(
                np.concatenate((heads, group)),
                np.concatenate((np.zeros_like(heads), start)),
                np.concatenate((np.full_like(heads, head), stop)),
                gap=READ_GAP_BYTES,
            )
        reads = rq.new_requests(len(owner))
        reads["opcode"] = rq.OP_READ
        reads["offset"] = start
        reads["address"] = bases[owner] + start.astype(np.uint64)
        reads["length"] = stop - start
        return reads, owner, stop - start, None

    def _plan_direct(
        self, batch: Batch, rows: I64, group: I64, bases: U64, start: I64, stop: I64
    ) -> tuple[rq.Requests, I64, I64, object]:
        """Read each row into its pieces; the header goes along with the row that follows it in the file, or alone."""
        head = self._layout.header_bytes
        k = len(batch.piece_sizes)
        beside = start == head
        vectors = np.zeros((len(rows), k + 1), dtype=rq.IOVEC)
        vectors["address"][:, 0] = bases[group]
        vectors["length"][:, 0] = head
        vectors["address"][:, 1:] = batch.addresses[rows]
        vectors["length"][:, 1:] = batch.piece_sizes
        alone = np.setdiff1d(np.arange(len(bases)), group[beside], assume_unique=False)
        reads = rq.new_requests(len(rows) + len(alone))
        of_rows, of_heads = reads[: len(rows)], reads[len(rows) :]
        of_rows["opcode"] = rq.OP_READV
        of_rows["offset"] = np.where(beside, 0, start)
        of_rows["address"] = addresses_of(vectors) + np.where(beside, 0, rq.IOVEC.itemsize).astype(np.uint64)
        of_rows["length"] = np.where(beside, k + 1, k)
        of_heads["opcode"] = rq.OP_READ
        of_heads["address"] = bases[alone]
        of_heads["length"] = head
        wanted = np.concatenate((stop - start + np.where(beside, head, 0), np.full(len(alone), head)))
        owner = np.concatenate((group, alone))
        if len(alone):
            order = np.argsort(owner, kind="stable")
            reads, owner, wanted = reads[order], owner[order], wanted[order]
        return reads, owner, wanted, vectors

    # ---- from the chains to the caller

    async def _attempt(self, reading: _Reading, groups: I64, attempt: int) -> I64:
        """Run the chains of `groups` and hand on what is in; returns the groups that deserve another attempt."""
        table = reading.chains.rows(groups)
        if attempt == 0 and len(groups) <= CACHED_OPENS_MAX:
            table["opcode"][:, 0] |= rq.FLAG_CACHED
        done = self.transfer.engine.submit(table.reshape(-1), reading.chains.steps)
        try:
            return await self._hand_on(reading, groups, table["result"], done, last=attempt == ATTEMPTS_MAX - 1)
        finally:
            await completed(done)

    async def _hand_on(
        self, reading: _Reading, groups: I64, results: npt.NDArray[np.int64], done: asyncio.Future[None], *, last: bool
    ) -> I64:
        waiting = np.ones(len(groups), dtype=np.bool_)
        again = np.zeros(len(groups), dtype=np.bool_)
        while True:
            everything = await patient(done, self._patience_s(reading.batch, len(groups)))
            ready = waiting if everything else waiting & (results != rq.PENDING_RESULT).all(axis=1)
            if ready.any():
                at = np.flatnonzero(ready)
                again[at] = await self._judge(reading, groups[at], results[at], last=last)
            if everything:
                return groups[again]
            waiting &= ~ready
            if not reading.batch.live().any():
                self._keep_only(reading, groups[waiting])
                await completed(done)
                reading.batch.report(reading.rows, Status.CANCELLED)
                return groups[:0]

    def _patience_s(self, batch: Batch, groups: int) -> float:
        """How long to wait for stragglers before what is in is handed on: half of the time left, again and again."""
        left = batch.patience_s()
        return max(left if groups == 1 else left / 2, PATIENCE_S_MIN)

    def _keep_only(self, reading: _Reading, groups: I64) -> None:
        """Give back the slots of all but `groups`, which the kernel still has, perhaps for long."""
        free = reading.held.copy()
        free[groups] = False
        reading.held &= ~free
        reading.arena.release(reading.slots[free])
        self.transfer.counts["late_batches"] += 1

    # ---- what became of a chain

    async def _judge(self, reading: _Reading, groups: I64, results: npt.NDArray[np.int64], *, last: bool) -> Bools:
        """Report the rows of finished chains; bool, shape of `groups`: True where another attempt may help."""
        opened = results[:, 0]
        reads = results[:, 1 : reading.head_column]
        whole = (reads == reading.wanted[groups]).all(axis=1)
        if whole.all():  # which needs a file that was opened
            await self._compare(reading, groups, results)
            return _NONE[: len(groups)] if len(groups) <= len(_NONE) else np.zeros(len(groups), dtype=np.bool_)
        short = (opened >= 0) & ~whole & (reads >= 0).all(axis=1)
        again = (opened == -errno.EAGAIN) | short
        if last:
            again = np.zeros(len(groups), dtype=np.bool_)
        for i in np.flatnonzero(~whole & ~again).tolist():
            await self._report_failure(reading, int(groups[i]), int(opened[i]), reads[i])
        self.transfer.counts["short_reads"] += int(short.sum())
        if whole.any():
            await self._compare(reading, groups[whole], results[whole])
        return np.asarray(again, dtype=np.bool_)

    async def _report_failure(self, reading: _Reading, group: int, opened: int, reads: npt.NDArray[Any]) -> None:
        """Report the rows of a block that could not be read."""
        rows = reading.rows[reading.group == group]
        failed = reads[reads < 0]
        counts = self.transfer.counts
        if opened < 0:
            status = status_of_errno(-opened)
            counts["missing" if status == Status.MISS else "open_errors"] += 1
            self._known.discard(reading.ids[group : group + 1])
            reading.batch.report(
                rows, status, None if status == Status.MISS else BackendIOError.from_errno(-opened, "open")
            )
        elif (failed == -errno.ECANCELED).any():  # its task has settled: it was not begun any more
            reading.batch.report(rows, Status.CANCELLED)
        elif len(failed):
            counts["read_errors"] += 1
            if len(rows) > 1:
                reading.spoilt += rows.tolist()
                return
            reading.batch.report(rows, Status.IO_ERROR, BackendIOError.from_errno(-int(failed[0]), "read"))
        else:
            got, wanted = int(reads.sum()), int(reading.wanted[group].sum())
            await self._set_aside(reading, group, f"the file is truncated: {got} of {wanted} bytes could be read")

    async def _compare(self, reading: _Reading, groups: I64, results: npt.NDArray[np.int64]) -> None:
        """Hold checksums against what the headers say, and report."""
        layout, batch, cuts = self._layout, reading.batch, reading.cuts
        headers = reading.arena.view()[reading.slots[groups], : used_bytes(layout.shards)]
        own = results[:, reading.head_column]
        check = check_headers(headers, reading.ids[groups], self._namespace, layout.shard_size, own)
        rows, at, rank = reading.rows, reading.group, reading.rank
        if len(groups) < len(reading.ids):
            position = np.full(len(reading.ids), -1)
            position[groups] = np.arange(len(groups))
            mine = position[at] >= 0
            rows, at, rank = rows[mine], position[at[mine]], rank[mine]
        copies = results[:, reading.head_column + 1 : -1].reshape(len(groups), reading.ranks, len(cuts))[at, rank]
        sums = copies[:, cuts.last]
        first = np.maximum(batch.shards[rows], 0)
        stored = check.checksums[at[:, None], first[:, None] + np.arange(sums.shape[1])]
        good = (sums == stored).all(axis=1) & check.good[at]
        if good.all():
            batch.report(rows, Status.OK)
            self._known.add(reading.ids[groups], reading.removals)
            return
        batch.report(rows[good], Status.OK)
        let_in = (copies >= 0).all(axis=1)  # else the gate had closed: the task has settled, and nobody asks any more
        batch.report(rows[~let_in], Status.CANCELLED)
        if (
            reading.arena is self.transfer.heads
        ):  # somebody may have written there meanwhile: look again in our own memory
            reading.spoilt += rows[~good & let_in].tolist()
            return
        told: set[int] = set()
        for i in np.flatnonzero(~good & let_in).tolist():
            if int(at[i]) not in told:
                told.add(int(at[i]))
                shard = int(first[i] + np.argmax(sums[i] != stored[i]))
                why = check.why.get(int(at[i])) or f"the checksum of shard {shard} is wrong"
                await self._set_aside(reading, int(groups[at[i]]), why)

    async def _set_aside(self, reading: _Reading, group: int, why: str) -> None:
        """Move the file of a corrupt block out of sight, then report its rows that were not delivered."""
        ids = reading.ids[group : group + 1]
        self._known.removed(ids)
        self.transfer.counts["corrupt"] += 1
        result = await self._files.quarantine(ids, reading.backend[group : group + 1], self.transfer.pool)
        if result[0] not in (0, -errno.ENOENT):
            why += f"; it could not be set aside: {os.strerror(-int(result[0]))}"
        reading.batch.report(reading.rows[reading.group == group], Status.CORRUPT, CorruptError(why))


_NONE: Final = np.zeros(1024, dtype=np.bool_)
_NONE.flags.writeable = False
