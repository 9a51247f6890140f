"""Loading: for each block one chain of requests — read, check, gather — and one look at the results.

Where a block is to be found, and what becomes of a bad one, is the business of the stage.
"""

from __future__ import annotations

import asyncio
import errno
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..abc import Batch
from ..engines import requests as rq
from ..engines.arena import Arena
from ..engines.chains import ChainTable, copy_requests
from ..engines.waits import Haste, completed, patient_in_haste
from ..errors import BackendIOError, CorruptError, StoreError
from ..native import LoadChains
from ..tasks import Cuts, cut_row, group_rows, rank_in_group
from ..types import I64, U8, U64, Bools, Status
from .encoded_header import why_not_plain
from .header import CHECKSUM_FROM, check_headers, header_template, used_bytes
from .layout import BlockLayout
from .plans import READ_GAP_BYTES, plan_direct_reads, plan_slot_reads
from .transfer import Transfer

__all__ = ["BlockLoader", "Located", "Reading"]

PlaceT = TypeVar("PlaceT")
PlaceT_co = TypeVar("PlaceT_co", covariant=True)
ScalarT = TypeVar("ScalarT", bound=np.generic)

DIRECT_ROW_BYTES_MIN: Final = 256 << 10
"""Smaller rows are read into slots, which are registered with the ring, and copied in the pass that checks them: that
takes less time than pinning a caller's pages for each read."""

PATIENCE_S_MIN: Final = 0.0005
"""Rows that are in are handed on before a deadline, but not more often than this."""

ATTEMPTS_MAX: Final = 3
"""Once in the hope that no disk is needed to begin, once in earnest, and once more for reads that came back short."""


class Located(Protocol[PlaceT_co]):
    """Blocks that are being read, as far as a stage must know them."""

    @property
    def ids(self) -> U8:
        """Uint8, shape (g, 16)."""

    @property
    def place(self) -> PlaceT_co:
        """Where the blocks lie, as the stage has it; by group, too."""

    @property
    def batch(self) -> Batch:
        """Whose rows they are."""

    @property
    def rows(self) -> I64:
        """Int64, shape (n,): rows of the batch."""

    @property
    def group(self) -> I64:
        """Int64, shape (n,): the block of each row."""

    @property
    def apart(self) -> bool:
        """The rows are read again, each for itself."""

    @property
    def spoilt(self) -> list[int]:
        """Rows to be read again, if they are not read for the second time; to be appended to."""


@dataclass(slots=True)
class Reading(Generic[PlaceT]):
    """The blocks of a batch while they are read. A group is the rows of one block; arrays of g are by group.

    Attributes
    ----------
    rows, group, rank
        int64 (n,): rows of the batch, the group of each, and its place in the group.
    ids, slots, bases
        By group: the block, its slot in `arena`, and the slot's address.
    place
        Where the blocks lie, as the stage has it; by group, too.
    chains
        One chain a group: a step that leads to the block, reads, CHECKSUM of the header, copies of the rows, and a step
        that ends it.
    wanted
        int64 (g, reads): bytes that each read must bring.
    shards
        int64 (n,): shard of each row, -1 for a whole block.
    cuts
        How each row is cut; its runs are the copies.
    held
        Bool (g,): the slots that are not given back yet.
    apart
        The rows are read again, each for itself.
    haste
        Called when a deadline of the batch has moved closer.
    spoilt
        Rows to be read again, each for itself and into slots: a read of their block failed, perhaps that of another
        row; or what lies in the caller's memory is not what was read; or another task that wanted the block gave up.
    """

    batch: Batch
    rows: I64
    group: I64
    ids: U8
    place: PlaceT
    arena: Arena
    slots: I64
    bases: U64
    shards: I64
    cuts: Cuts
    rank: I64
    ranks: int
    chains: ChainTable
    wanted: I64
    held: Bools
    apart: bool
    haste: Haste
    spoilt: list[int] = field(default_factory=list)

    @property
    def head_column(self) -> int:
        """Step of the header's checksum; the copies follow it."""
        return 1 + int(self.wanted.shape[1])


class BlockLoader(ABC, Generic[PlaceT]):
    """Brings batches. A subclass says where blocks lie, and sees to those that are missing or bad."""

    def __init__(self, layout: BlockLayout, namespace: bytes, transfer: Transfer) -> None:
        self._layout = layout
        self._namespace = namespace
        self._native = LoadChains(
            header_template(namespace, layout.shard_size, layout.shards),
            layout.header_bytes,
            layout.shard_size,
            layout.block_size,
            READ_GAP_BYTES,
        )
        self.transfer = transfer

    # ---- what a stage knows

    @abstractmethod
    def _locate(self, ids: U8) -> PlaceT:
        """Tell where blocks lie, and note what has to be known of them before anything is read."""

    @abstractmethod
    def _put_ends(self, place: PlaceT, table: rq.Requests) -> object:
        """Write the first and the last step of each chain, shape (blocks, steps); return what they point to."""

    @abstractmethod
    def _aim(self, place: PlaceT, reads: rq.Requests, owner: I64) -> None:
        """Turn reads, whose offsets are from the start of the block, (n,), to where the blocks `owner`, (n,), lie.

        Some of `reads` may be NOPs, which stay.
        """

    def _present(self, reading: Located[PlaceT]) -> I64:
        """Report the rows of blocks that are known to be missing; returns the groups that are left."""
        return np.arange(len(reading.ids))

    def _before_attempt(self, table: rq.Requests, attempt: int) -> None:
        """Change chains that are about to be run, the first time with `attempt` 0; nothing of it stays for the next."""
        return

    @abstractmethod
    def _unreachable(self, reading: Located[PlaceT], group: int, number: int) -> tuple[Status, StoreError | None]:
        """Say what it means that the first step of a chain failed with errno `number`."""

    def _moved(self, reading: Located[PlaceT], group: int) -> bool:
        """Tell whether something else may lie by now where a block was read."""
        return False

    @abstractmethod
    def _came(self, reading: Located[PlaceT], groups: I64) -> None:
        """Take note of blocks that were read and are good."""

    @abstractmethod
    async def _set_aside(self, reading: Located[PlaceT], group: int) -> str:
        """Move a corrupt block out of sight; returns why that did not work, empty if it did."""

    # ---- loading

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
        again = np.array(sorted(set(spoilt)), dtype=np.int64)  # they were noted as they came
        for start in range(0, len(again), step):
            await self._load_rows(batch, again[start : start + step], self.transfer.arena, apart=True)

    async def _load_rows(self, batch: Batch, rows: I64, arena: Arena, *, apart: bool = False) -> list[int]:
        """Load rows, ascending, with one chain a block, or one a row if `apart`; returns those to be read again."""
        first, group = (np.arange(len(rows)),) * 2 if apart else group_rows(batch.ids[rows])
        slots = await arena.lease(len(first))
        reading: Reading[PlaceT] | None = None
        try:
            reading = self._plan(batch, rows, first, group, arena, slots, apart=apart)
            groups = self._present(reading)
            for attempt in range(ATTEMPTS_MAX):
                if not len(groups):
                    break
                groups = await self._attempt(reading, groups, attempt)
        finally:
            arena.release(slots if reading is None else slots[reading.held])
        return reading.spoilt

    # ---- the plan

    def _plan(
        self, batch: Batch, rows: I64, first: I64, group: I64, arena: Arena, slots: I64, *, apart: bool
    ) -> Reading[PlaceT]:
        """Write the chains: reads into the slots, or straight into the caller's memory where that is allowed."""
        cuts = cut_row(tuple(batch.piece_sizes.tolist()), self._layout.shard_size)
        ids = np.ascontiguousarray(_some(batch.ids, rows if len(first) == len(rows) else rows[first]))
        place = self._locate(ids)
        rank, ranks = rank_in_group(group, len(ids))
        shards = np.ascontiguousarray(_some(batch.shards, rows))
        held = np.ones(len(ids), dtype=np.bool_)
        reading = Reading(
            batch, rows, group, ids, place, arena, slots, arena.address(slots), shards, cuts, rank, ranks,
            _NO_CHAINS, _NOTHING, held, apart, Haste(),
        )  # fmt: skip
        batch.when_hurried(reading.haste)
        if len(ids) == len(rows):
            self._write_rows(reading)
        else:
            self._write_groups(reading, first)
        counts = self.transfer.counts
        counts["blocks"] += len(ids)
        counts["rows"] += len(rows)
        counts["reads"] += int(np.count_nonzero(reading.wanted))
        counts["bytes"] += int(reading.wanted.sum())
        return reading

    def _write_rows(self, reading: Reading[PlaceT]) -> None:
        """Write the chains of blocks with one row each: the usual case, in one native call."""
        batch, rows, shards, cuts = reading.batch, reading.rows, reading.shards, reading.cuts
        direct = reading.arena is self.transfer.heads
        n, reads = len(rows), self._native.reads(shards, direct)
        reading.chains = chains = ChainTable(n, reads + len(cuts) + 3)
        reading.wanted = np.empty((n, reads), dtype=np.int64)
        vectors = np.empty((n, 1 + len(batch.piece_sizes)), dtype=rq.IOVEC) if direct else None
        pieces = np.ascontiguousarray(_some(batch.addresses, rows))
        gates = np.ascontiguousarray(_some(batch.gates, rows))
        self._native.write(
            chains.table, reading.wanted, vectors, shards, reading.bases, pieces, batch.piece_sizes, gates, cuts.runs
        )
        for column in range(1, 1 + reads):
            self._aim(reading.place, chains.table[:, column], reading.group)
        chains.keep += (vectors, self._put_ends(reading.place, chains.table))

    def _write_groups(self, reading: Reading[PlaceT], first: I64) -> None:
        """Write the chains of blocks with several rows each."""
        layout, batch, cuts = self._layout, reading.batch, reading.cuts
        rows, group, bases, blocks = reading.rows, reading.group, reading.bases, len(reading.ids)
        start, stop = layout.row_ranges(reading.shards)
        pieces = batch.addresses[rows]
        gates = batch.gates[rows]
        direct = reading.arena is self.transfer.heads
        if direct:
            reads, owner, wanted, vectors = plan_direct_reads(
                layout, pieces, batch.piece_sizes, group, bases, start, stop
            )
        else:
            reads, owner, wanted = plan_slot_reads(layout, group, bases, start, stop)
            vectors = None
        step, width = rank_in_group(owner, blocks)
        reading.chains = chains = ChainTable(blocks, width + reading.ranks * len(cuts) + 3)
        table = chains.table
        self._aim(reading.place, reads, owner)
        chains.keep += (vectors, self._put_ends(reading.place, table))
        if (gates == gates[first][group]).all():  # one task a block: what it gave up need not be read any more
            reads["gate"] = gates[first][owner]
        table[owner, 1 + step] = reads
        reading.wanted = np.zeros((blocks, width), dtype=np.int64)
        reading.wanted[owner, step] = wanted
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
        body = table[:, 2 + width : -1].reshape(blocks, reading.ranks, len(cuts), copy=False)
        body[group, reading.rank] = copies

    def _put_header_checksum(self, column: rq.Requests, bases: U64) -> None:
        column["opcode"] = rq.OP_CHECKSUM | rq.FLAG_IF_WELL
        column["address"] = bases + np.uint64(CHECKSUM_FROM)
        column["length"] = used_bytes(self._layout.shards) - CHECKSUM_FROM

    # ---- from the chains to the caller

    async def _attempt(self, reading: Reading[PlaceT], groups: I64, attempt: int) -> I64:
        """Run the chains of `groups` and hand on what is in; returns the groups that deserve another attempt."""
        table = reading.chains.table if len(groups) == len(reading.ids) else reading.chains.rows(groups)
        self._before_attempt(table, attempt)
        done = self.transfer.engine.submit(table.reshape(-1), reading.chains.steps)
        try:
            return await self._hand_on(reading, groups, table["result"], done, last=attempt == ATTEMPTS_MAX - 1)
        finally:
            await completed(done)

    async def _hand_on(
        self,
        reading: Reading[PlaceT],
        groups: I64,
        results: npt.NDArray[np.int64],
        done: asyncio.Future[None],
        *,
        last: bool,
    ) -> I64:
        waiting = np.ones(len(groups), dtype=np.bool_)
        again = np.zeros(len(groups), dtype=np.bool_)
        while True:
            patience_s = partial(self._patience_s, reading.batch, len(groups))
            everything = await patient_in_haste(done, patience_s, reading.haste)
            if everything and waiting.all() and self._all_good(reading, groups):
                reading.batch.report(reading.rows, Status.OK)
                self._came(reading, groups)
                return groups[:0]
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
        if left == math.inf and not batch.live().any():
            return 0.0  # nobody waits any more: only for what the kernel still has are slots kept
        return max(left if groups == 1 else left / 2, PATIENCE_S_MIN)

    def _keep_only(self, reading: Reading[PlaceT], groups: I64) -> None:
        """Give back the slots of all but `groups`, which the kernel still has, perhaps for long."""
        free = reading.held.copy()
        free[groups] = False
        reading.held &= ~free
        reading.arena.release(reading.slots[free])
        self.transfer.counts["late_batches"] += 1

    # ---- what became of a chain

    def _all_good(self, reading: Reading[PlaceT], groups: I64) -> bool:
        """Tell whether all chains went as they should, where one native call can tell; no other look is taken then."""
        if not len(groups) == len(reading.ids) == len(reading.rows):
            return False
        return self._native.all_good(
            reading.chains.table, reading.wanted, reading.ids, reading.shards, reading.bases, reading.cuts.runs
        )

    async def _judge(
        self, reading: Reading[PlaceT], groups: I64, results: npt.NDArray[np.int64], *, last: bool
    ) -> Bools:
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

    async def _report_failure(self, reading: Reading[PlaceT], group: int, opened: int, reads: npt.NDArray[Any]) -> None:
        """Report the rows of a block that could not be read."""
        rows = reading.rows[reading.group == group]
        failed = reads[reads < 0]
        counts = self.transfer.counts
        if opened < 0:
            status, error = self._unreachable(reading, group, -opened)
            counts["missing" if status == Status.MISS else "open_errors"] += 1
            reading.batch.report(rows, status, error)
        elif (failed == -errno.ECANCELED).any():  # its task has settled: it was not begun any more
            reading.batch.report(rows, Status.CANCELLED)
        elif self._moved(reading, group):
            self._look_again(reading, rows)
        elif len(failed):
            counts["read_errors"] += 1
            if len(rows) > 1:
                reading.spoilt += rows.tolist()
                return
            reading.batch.report(rows, Status.IO_ERROR, BackendIOError.from_errno(-int(failed[0]), "read"))
        else:
            got, wanted = int(reads.sum()), int(reading.wanted[group].sum())
            await self._report_corrupt(reading, group, f"the file is truncated: {got} of {wanted} bytes could be read")

    def _look_again(self, reading: Located[PlaceT], rows: I64) -> None:
        """Read rows again whose block was somewhere else by then; once, after that they are missing."""
        if reading.apart:
            self.transfer.counts["missing"] += len(rows)
            reading.batch.report(rows, Status.MISS)
        else:
            self.transfer.counts["moved"] += len(rows)
            reading.spoilt.extend(rows.tolist())

    async def _compare(self, reading: Reading[PlaceT], groups: I64, results: npt.NDArray[np.int64]) -> None:
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
            self._came(reading, groups)
            return
        batch.report(rows[good], Status.OK)
        let_in = (copies >= 0).all(axis=1)  # else a gate had closed: the task has settled, and nobody asks any more
        shut_out = rows[~let_in]
        waited_for = batch.live()[shut_out]
        reading.spoilt += shut_out[waited_for].tolist()  # it was the gate of another task that wants the same block
        batch.report(shut_out[~waited_for], Status.CANCELLED)
        if (
            reading.arena is self.transfer.heads
        ):  # somebody may have written there meanwhile: look again in our own memory
            reading.spoilt += rows[~good & let_in].tolist()
            return
        told: set[int] = set()
        for i in np.flatnonzero(~good & let_in).tolist():
            group = int(groups[at[i]])
            if group in told:
                continue
            told.add(group)
            if self._moved(reading, group):
                self._look_again(reading, rows[(at == at[i]) & ~good & let_in])
                continue
            shard = int(first[i] + np.argmax(sums[i] != stored[i]))
            why = check.why.get(int(at[i])) or f"the checksum of shard {shard} is wrong"
            await self._report_corrupt(reading, group, why)

    async def _report_corrupt(self, reading: Reading[PlaceT], group: int, why: str) -> None:
        """Set a corrupt block aside, then report its rows that were not delivered.

        One that is encoded is none, but cannot be read here: it stays where it is.
        """
        layout = self._layout
        header = reading.arena.view()[reading.slots[group], : used_bytes(layout.shards)]
        encoded = why_not_plain(layout, header, reading.ids[group], self._namespace)
        if encoded:
            self.transfer.counts["encoded"] += 1
            reading.batch.report(reading.rows[reading.group == group], Status.CORRUPT, CorruptError(encoded))
            return
        self.transfer.counts["corrupt"] += 1
        failure = await self._set_aside(reading, group)
        if failure:
            why += f"; it could not be set aside: {failure}"
        reading.batch.report(reading.rows[reading.group == group], Status.CORRUPT, CorruptError(why))


def _some(array: npt.NDArray[ScalarT], rows: I64) -> npt.NDArray[ScalarT]:
    """Return some rows of a batch, ascending; itself if it is all of them."""
    return array if len(rows) == len(array) else array[rows]


_NONE: Final = np.zeros(1024, dtype=np.bool_)
_NONE.flags.writeable = False
_NOTHING: Final = np.zeros((0, 0), dtype=np.int64)
_NO_CHAINS: Final = ChainTable(0, 0)
