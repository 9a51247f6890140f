"""Loading: open, read into slots, check, gather into the caller's memory. One batch at a time, many blocks at once."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass
from typing import Final

import numpy as np

from ...abc import Batch
from ...engines import requests as rq
from ...errors import BackendIOError, CorruptError
from ...tasks import Cuts, cut_row
from ...types import I64, U8, U64, Bools, Status
from .files import BlockFiles
from .header import CHECKSUM_FROM, check_headers, used_bytes
from .known import KnownBlocks
from .layout import BlockLayout, choose_backend, group_rows, merge_ranges
from .transfer import DIRECT_ALIGN, Transfer, can_go_direct, copy_rows, patient, run_copies, shard_sums, status_of_errno

__all__ = ["Loader"]

READ_GAP_BYTES: Final = 32 << 10
"""Bytes read along between two ranges of one file: at 2 GB/s they cost what a second request does."""

PATIENCE_S_MIN: Final = 0.0005
"""Rows that are in are handed on before a deadline, but not more often than this."""

_CLOSE_A_JOB: Final = 64


@dataclass(slots=True)
class _Reading:
    """Blocks of a batch between their I/O and their delivery. A group is the rows of one block.

    Attributes
    ----------
    rows
        int64 (n,): rows of the batch; `group` (n,) says which block each belongs to.
    ids, backend, fds, slots, bases
        By group: the block, where it lies, its descriptor, its slot, and the slot's address.
    requests
        The reads; `owner` and `wanted` say for each which group it reads for, and how many bytes.
    scattered
        True if rows were read straight into the caller's memory.
    """

    batch: Batch
    rows: I64
    group: I64
    ids: U8
    backend: I64
    fds: I64
    slots: I64
    bases: U64
    requests: rq.Requests
    owner: I64
    wanted: I64
    scattered: bool
    vectors: object = None
    retried: bool = False


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
        self._orphans: set[asyncio.Task[None]] = set()

    async def load(self, batch: Batch) -> None:
        """Deliver the rows of `batch` that are still wanted."""
        rows = np.flatnonzero(batch.live()).astype(np.int64)
        step = self.transfer.arena.slots  # a group needs a slot, and there are no more groups than rows
        for start in range(0, len(rows), step):
            await self._load_rows(batch, rows[start : start + step])

    async def _load_rows(self, batch: Batch, rows: I64) -> None:
        first, group = group_rows(batch.ids[rows])
        ids = np.ascontiguousarray(batch.ids[rows[first]])
        backend = choose_backend(ids, self._seeds)
        fds = await self._files.open_to_read(ids, backend, self.transfer.pool)
        self.transfer.counts["opens"] += len(fds)
        opened = fds >= 0
        if not opened.all():
            self._report_unopened(batch, rows, group, ids, fds)
            rows, group = rows[opened[group]], group[opened[group]]
            group = (np.cumsum(opened) - 1)[group]
            ids, backend, fds = np.ascontiguousarray(ids[opened]), backend[opened], fds[opened]
        if not len(rows):
            return
        try:
            slots = await self.transfer.arena.lease(len(ids))
        except BaseException:
            self._close(fds)
            raise
        await self._deliver(self._plan(batch, rows, group, ids, backend, fds, slots))

    def _report_unopened(self, batch: Batch, rows: I64, group: I64, ids: U8, fds: I64) -> None:
        failed = fds < 0
        self._known.discard(ids[failed])
        for number in np.unique(fds[failed]).tolist():
            status = status_of_errno(-number)
            error = None if status == Status.MISS else BackendIOError.from_errno(-number, "open")
            batch.report(rows[(fds == number)[group]], status, error)

    def _plan(self, batch: Batch, rows: I64, group: I64, ids: U8, backend: I64, fds: I64, slots: I64) -> _Reading:
        """Turn rows into reads: into the slots, or straight into the caller's memory where that is allowed."""
        bases = self.transfer.arena.address(slots)
        start, stop = self._layout.row_ranges(batch.shards[rows])
        reading = _Reading(
            batch, rows, group, ids, backend, fds, slots, bases, _NO_REQUESTS, _NONE, _NONE, scattered=False
        )
        if batch.direct and can_go_direct(batch.addresses[rows], batch.piece_sizes):
            self._plan_scattered(reading, start)
        else:
            self._plan_slots(reading, start, stop)
        counts = self.transfer.counts
        counts["rows"] += len(rows)
        counts["reads"] += len(reading.requests)
        counts["bytes"] += int(reading.wanted.sum())
        return reading

    def _plan_slots(self, reading: _Reading, start: I64, stop: I64) -> None:
        head = np.full(len(reading.ids), self._layout.header_bytes, dtype=np.int64)
        start = start // DIRECT_ALIGN * DIRECT_ALIGN
        stop = -(-stop // DIRECT_ALIGN) * DIRECT_ALIGN
        if len(reading.rows) == len(reading.ids) and not (start - head > READ_GAP_BYTES).any():
            owner, start = reading.group, np.zeros_like(start)
        else:
            owner, start, stop = merge_ranges(
                np.concatenate((np.arange(len(head)), reading.group)),
                np.concatenate((np.zeros_like(head), start)),
                np.concatenate((head, stop)),
                gap=READ_GAP_BYTES,
            )
        requests = rq.new_requests(len(owner))
        requests["opcode"] = rq.OP_READ
        requests["fd"] = reading.fds[owner]
        requests["offset"] = start
        requests["address"] = reading.bases[owner] + start.astype(np.uint64)
        requests["length"] = stop - start
        reading.requests, reading.owner, reading.wanted = requests, owner, stop - start

    def _plan_scattered(self, reading: _Reading, start: I64) -> None:
        """Read each row into its pieces; the header goes along with the row that follows it in the file, or alone."""
        batch, layout = reading.batch, self._layout
        k = len(batch.piece_sizes)
        beside = start == layout.header_bytes
        vectors = np.zeros((len(start), k + 1), dtype=rq.IOVEC)
        vectors["address"][:, 0] = reading.bases[reading.group]
        vectors["length"][:, 0] = layout.header_bytes
        vectors["address"][:, 1:] = batch.addresses[reading.rows]
        vectors["length"][:, 1:] = batch.piece_sizes
        alone = np.setdiff1d(np.arange(len(reading.ids)), reading.group[beside])
        requests = rq.new_requests(len(start) + len(alone))
        reads, heads = requests[: len(start)], requests[len(start) :]
        skip = np.where(beside, 0, 1)
        reads["opcode"] = rq.OP_READV
        reads["fd"] = reading.fds[reading.group]
        reads["offset"] = np.where(beside, 0, start)
        step = vectors.strides[0]
        reads["address"] = vectors.ctypes.data + np.arange(len(start)) * step + skip * rq.IOVEC.itemsize
        reads["length"] = k + 1 - skip
        heads["opcode"] = rq.OP_READ
        heads["fd"] = reading.fds[alone]
        heads["address"] = reading.bases[alone]
        heads["length"] = layout.header_bytes
        row_bytes = int(batch.piece_sizes.sum())
        reading.requests, reading.vectors, reading.scattered = requests, vectors, True
        reading.owner = np.concatenate((reading.group, alone))
        reading.wanted = np.concatenate(
            (row_bytes + np.where(beside, layout.header_bytes, 0), np.full(len(alone), layout.header_bytes))
        )

    # ---- from the reads to the caller

    async def _deliver(self, reading: _Reading) -> None:
        """Wait for the reads and hand on what is in; what hangs past the last deadline is left to a task of its own."""
        done = self.transfer.engine.submit(reading.requests)
        waiting = np.ones(len(reading.ids), dtype=np.bool_)
        while True:
            everything = await patient(done, self._patience_s(reading.batch, waiting))
            waiting = await self._hand_on(reading, waiting, everything=everything)
            if everything:
                break
            if not reading.batch.live().any():
                self._adopt(done, reading)
                return
        self._release(reading)

    def _patience_s(self, batch: Batch, waiting: Bools) -> float:
        """How long to wait for stragglers before what is in is handed on: half of the time that is left, again and again."""
        left = batch.patience_s()
        return max(left if len(waiting) == 1 else left / 2, PATIENCE_S_MIN)

    def _adopt(self, done: asyncio.Future[None], reading: _Reading) -> None:
        """Keep slots and descriptors until the kernel lets go of them, without keeping the lane's worker."""

        async def outlive() -> None:
            await done
            self._release(reading)

        orphan = asyncio.get_running_loop().create_task(outlive(), name="ucm-late-reads")
        self._orphans.add(orphan)
        orphan.add_done_callback(self._orphans.discard)
        self.transfer.counts["late_batches"] += 1

    def _release(self, reading: _Reading) -> None:
        self.transfer.arena.release(reading.slots)
        self._close(reading.fds)

    def _close(self, fds: I64) -> None:
        """Close descriptors, without waiting."""
        closes = rq.new_requests(len(fds))
        closes["opcode"] = rq.OP_CLOSE
        closes["fd"] = fds
        self.transfer.pool.submit(closes, _CLOSE_A_JOB)

    async def _hand_on(self, reading: _Reading, waiting: Bools, *, everything: bool) -> Bools:
        """Check and deliver the groups whose reads are all in; returns the groups that still wait."""
        results = reading.requests["result"].copy()
        if everything:
            await self._read_short_again(reading, results)
        pending = np.zeros(len(waiting), dtype=np.bool_)
        pending[reading.owner[results == rq.PENDING_RESULT]] = True
        ready = waiting & ~pending
        if not ready.any():
            return waiting
        bad = await self._report_bad_reads(reading, results, ready)
        groups = np.flatnonzero(ready & ~bad)
        if len(groups):
            await self._check_and_gather(reading, groups)
        return waiting & pending

    async def _read_short_again(self, reading: _Reading, results: I64) -> None:
        """Give a read that came back short one more chance, before the file is held to be truncated."""
        short = (results >= 0) & (results < reading.wanted)
        if not short.any() or reading.retried:
            return
        reading.retried = True
        again = np.ascontiguousarray(reading.requests[short])
        await self.transfer.engine.submit(again)
        results[short] = again["result"]
        self.transfer.counts["short_reads"] += int(short.sum())

    async def _report_bad_reads(self, reading: _Reading, results: I64, ready: Bools) -> Bools:
        """Report the groups with a failed or short read; bool, shape (g,)."""
        bad = np.zeros(len(ready), dtype=np.bool_)
        wrong = (results < reading.wanted) & ready[reading.owner]
        for i in np.flatnonzero(wrong).tolist():
            group, got = int(reading.owner[i]), int(results[i])
            if bad[group]:
                continue
            bad[group] = True
            if got < 0:
                error = BackendIOError.from_errno(-got, "read")
                reading.batch.report(reading.rows[reading.group == group], Status.IO_ERROR, error)
                self.transfer.counts["read_errors"] += 1
            else:
                end = int(reading.requests["offset"][i]) + got
                await self._set_aside(reading, group, f"the file ends after {end} of {self._layout.file_bytes} bytes")
        return bad

    async def _check_and_gather(self, reading: _Reading, groups: I64) -> None:
        """Copy and check in one pass over the bytes; then compare, then report."""
        chosen = np.zeros(len(reading.ids), dtype=np.bool_)
        chosen[groups] = True
        picked = np.flatnonzero(chosen[reading.group])
        rows, group = reading.rows[picked], reading.group[picked]
        batch, layout = reading.batch, self._layout
        cuts = cut_row(tuple(batch.piece_sizes.tolist()), layout.shard_size)
        offset = layout.row_ranges(batch.shards[rows])[0].astype(np.uint64)
        copies = copy_rows(
            rq.OP_CHECKSUM if reading.scattered else rq.OP_COPY,
            cuts,
            slots=reading.bases[group] + offset,
            pieces=batch.addresses[rows],
            gates=batch.gates[rows],
            to_slots=False,
        )
        heads = rq.new_requests(len(groups))
        heads["opcode"] = rq.OP_CHECKSUM
        heads["address"] = reading.bases[groups] + np.uint64(CHECKSUM_FROM)
        heads["length"] = used_bytes(layout.shards) - CHECKSUM_FROM
        requests = np.concatenate((copies, heads))
        await run_copies(requests, self.transfer.pool, len(cuts))
        await self._compare(reading, groups, rows, group, requests, cuts)

    async def _compare(
        self, reading: _Reading, groups: I64, rows: I64, group: I64, requests: rq.Requests, cuts: Cuts
    ) -> None:
        layout, batch = self._layout, reading.batch
        copies = requests[: len(rows) * len(cuts)]
        sums, whole = shard_sums(copies, len(rows), cuts)
        headers = np.ascontiguousarray(self.transfer.arena.view()[reading.slots[groups], : used_bytes(layout.shards)])
        own = requests["result"][len(copies) :]
        check = check_headers(headers, reading.ids[groups], self._namespace, layout.shard_size, own)
        at = np.searchsorted(groups, group)  # position of each row's group among `groups`
        first = np.maximum(batch.shards[rows], 0)
        stored = check.checksums[at[:, None], first[:, None] + np.arange(sums.shape[1])]
        equal = (sums == stored).all(axis=1)
        good = equal & check.good[at] & whole
        if good.all():
            batch.report(rows, Status.OK)
            self._known.add(reading.ids[groups])
            return
        batch.report(rows[good], Status.OK)
        batch.report(rows[~whole], Status.CANCELLED)  # its task has settled: nobody sees this
        told: set[int] = set()
        for i in np.flatnonzero(~good & whole).tolist():
            if int(group[i]) not in told:
                told.add(int(group[i]))
                shard = int(first[i] + np.argmax(sums[i] != stored[i]))
                why = check.why.get(int(at[i])) or f"the checksum of shard {shard} is wrong"
                await self._set_aside(reading, int(group[i]), why)

    async def _set_aside(self, reading: _Reading, group: int, why: str) -> None:
        """Move the file of a corrupt block out of sight, then report its rows that were not delivered."""
        ids = reading.ids[group : group + 1]
        self._known.discard(ids)
        self.transfer.counts["corrupt"] += 1
        result = await self._files.quarantine(ids, reading.backend[group : group + 1], self.transfer.pool)
        if result[0] not in (0, -errno.ENOENT):
            why += f"; it could not be set aside: {os.strerror(-int(result[0]))}"
        reading.batch.report(reading.rows[reading.group == group], Status.CORRUPT, CorruptError(why))

    async def finish(self) -> None:
        """Wait for late completions."""
        while self._orphans:
            await asyncio.wait(self._orphans)


_NONE: Final = np.zeros(0, dtype=np.int64)
_NO_REQUESTS: Final = rq.new_requests(0)
