"""Dumping: stage into slots, write to a place that only this writer uses, commit by count; many blocks at once.

Where that place is, and how a block gets its name, is the business of the stage.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ..abc import Batch
from ..coding import EncodedRows
from ..engines import requests as rq
from ..engines.arena import Arena
from ..engines.chains import ChainTable, copy_requests
from ..engines.waits import completed, patient, run_copies
from ..errors import BackendIOError, BusyError, NoSpaceError, StoreError
from ..tasks import cut_row, group_rows, rank_in_group
from ..types import I64, U8, Bools, Status
from .encoded_dumping import keep_checksums, note_encoded, plan_encoded_writes
from .encoded_header import header_checksums, pack_encoded_headers
from .header import pack_headers, seal_headers
from .layout import BlockLayout
from .plans import plan_direct_writes, plan_slot_writes
from .transfer import DIRECT_ALIGN, Transfer, status_of_errno
from .writes import BlockWrites

__all__ = ["AGAIN", "NO_ROOM", "BlockDumper", "Writing"]

PlaceT = TypeVar("PlaceT")

AGAIN: Final = -1
"""Not an errno: nothing is wrong with the disk, and rows that are still wanted are written anew."""

NO_ROOM: Final = -2
"""Not an errno either: a bound on space is reached, and nothing was written."""

CLAIM_PATIENCE_S: Final = 0.05
"""Who waits for what another task writes looks this often whether its own still wants it."""

FIRST_PART_BYTES: Final = 8 << 20
PART_BYTES: Final = 32 << 20
"""A batch is written in parts of so many bytes, one after another: while one is with the disk, the next ones, of other
batches, are prepared. The first part is smaller, so that an idle disk has something to do soon."""

_NONE: Final = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class Writing(Generic[PlaceT]):
    """Claimed blocks of a batch on their way to the disk. A group is the rows of one block; arrays of g are by group.

    Attributes
    ----------
    rows
        int64 (n,): rows of the batch; `group` (n,) says which block each belongs to.
    ids, slots
        By group; the slots are of `arena`.
    place
        Where the blocks go, as the stage has it; by group, too.
    entries, wanted
        int64 (g,) and bool (g, shards): what `BlockWrites` calls the blocks, and the shards claimed of them.
    completes
        Bool (g,): the block is whole once these shards are in.
    direct
        True if the kernel reads the caller's memory itself.
    failed
        By group: the errno that ended it, 0 as long as all is well, `AGAIN` if a task of its rows settled before the
        bytes were taken, or if another writer's copy was deleted before it was synced; `NO_ROOM`.
    lost
        Bool (g,): of a group that failed, nothing that was written before can be relied on any more.
    """

    batch: Batch
    rows: I64
    group: I64
    ids: U8
    place: PlaceT
    entries: I64
    wanted: Bools
    completes: Bools
    failed: I64
    lost: Bools
    arena: Arena = field(init=False)
    slots: I64 = field(default_factory=lambda: _NONE)
    direct: bool = False


class BlockDumper(ABC, Generic[PlaceT]):
    """Takes batches. A subclass says where blocks go, and gives them their names.

    Attributes
    ----------
    lead, tail
        Steps of each chain before the writes and after them, which belong to the subclass.
    decisive
        So many of the tail must go well, too, or the write has failed.
    """

    lead: ClassVar[int] = 0
    tail: ClassVar[int] = 0
    decisive: ClassVar[int] = 0

    def __init__(self, layout: BlockLayout, namespace: bytes, transfer: Transfer, writes: BlockWrites) -> None:
        self._layout = layout
        self._namespace = namespace
        self._writes = writes
        self.transfer = transfer

    # ---- what a stage knows

    @abstractmethod
    async def find_stored(self, ids: U8) -> Bools:
        """Tell which blocks are stored already."""

    async def confirm_stored(self, ids: U8) -> I64:
        """Look again at blocks that were found, where that may not be enough for a promise.

        Returns 0 for each that can be relied on, -ENOENT for one that is to be written anew, another -errno for one of
        which nothing can be said.
        """
        return np.zeros(len(ids), dtype=np.int64)

    @abstractmethod
    def _known_stored(self, ids: U8) -> Bools:
        """Tell which blocks this process knows to be stored, without asking anybody."""

    @abstractmethod
    async def _sync_stored(self, ids: U8) -> I64:
        """Bring stored blocks to the medium: 0 or -errno for each; -ENOENT for one that was deleted meanwhile."""

    @abstractmethod
    def _locate(self, ids: U8) -> PlaceT:
        """Tell where claimed blocks go, and note what has to be known before anything is written."""

    def _changing(self) -> AbstractAsyncContextManager[None]:
        """Return what is held open while blocks get their names."""
        return nullcontext()

    async def _make_room(self, writing: Writing[PlaceT]) -> None:
        """See to it that there is room for the blocks; those that get none fail with `NO_ROOM`. May take its time."""
        return

    def _put_ends(self, writing: Writing[PlaceT], fine: I64, table: rq.Requests) -> object:
        """Write lead and tail of the chains of the groups `fine`; return what they point to."""
        return None

    @abstractmethod
    def _aim(self, writing: Writing[PlaceT], writes: rq.Requests, owner: I64) -> None:
        """Turn writes, whose offsets are from the start of the block, (m,), to where the groups `owner`, (m,), go."""

    def _note_ends(self, writing: Writing[PlaceT], fine: I64, results: npt.NDArray[np.int64]) -> None:
        """Read off what became of the tails of the chains of `fine`."""
        return

    @abstractmethod
    async def _commit(self, writing: Writing[PlaceT]) -> None:
        """Give the blocks that are whole their names; where that fails, say why in `failed` and `lost`."""

    @abstractmethod
    async def _clear(self, ids: U8, entries: I64) -> None:
        """Remove what is left of blocks that are given up. Nobody else writes them meanwhile."""

    async def holds(self, ids: U8) -> Bools:
        """See `ucm_async.abc.Stage.holds`."""
        stored = await self.find_stored(ids)
        stored[stored] = await self.confirm_stored(np.ascontiguousarray(ids[stored])) == 0
        return stored

    # ---- dumping

    async def dump(self, batch: Batch) -> None:
        """Take the rows of `batch` that are still wanted."""
        live = batch.live()
        rows = np.flatnonzero(live)
        if len(rows) < len(live):
            batch.report(~live, Status.CANCELLED)  # their task has settled: nobody sees this
        if (batch.shards >= 0).any():  # shards of one block may be anywhere in the batch
            rows = rows[np.lexsort((batch.shards[rows], *batch.ids[rows].view(np.uint64).T))]
        blocks_max = max(1, self.transfer.slots_for(batch).slots // 2)  # others wait for slots, too
        part_bytes = FIRST_PART_BYTES
        while len(rows):
            cut = _cut(batch.ids[rows], blocks_max, part_bytes // int(batch.piece_sizes.sum()))
            part, rows = rows[:cut], rows[cut:]
            part_bytes = PART_BYTES
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
            await self._write_and_settle(writing)
        for block_id in dict.fromkeys(batch.ids[row].tobytes() for row in theirs.tolist()):
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
        stored = await self.find_stored(ids)
        if stored.any():
            stored[stored] = await self._report_stored(batch, rows[stored[group]], ids[stored])
        rest: I64 = rows[~stored[group]]
        return rest

    async def _report_stored(self, batch: Batch, rows: I64, ids: U8) -> Bools:
        """Report the rows of stored blocks; bool, shape of `ids`: False for those that were deleted meanwhile."""
        self.transfer.counts["already_stored"] += len(ids)
        await self.discard_partial(ids)  # another writer was first, and these shards are of no use any more
        result = await self.confirm_stored(ids)
        well = result == 0
        if batch.durability == "synced" and well.any():
            result[well] = await self._sync_stored(np.ascontiguousarray(ids[well]))
        _, group = group_rows(batch.ids[rows])
        there = np.asarray(result != -errno.ENOENT)
        for number in np.unique(-result[there]).tolist():
            batch.report(rows[(result == -number)[group]], *(_failure(number) if number else (Status.OK, None)))
        return there

    def _claim(self, batch: Batch, rows: I64) -> tuple[Writing[PlaceT] | None, I64]:
        """Claim what nobody else is writing; the second value is the rows of what somebody is."""
        writes = self._writes
        first, group = group_rows(batch.ids[rows])
        ids = np.ascontiguousarray(batch.ids[rows[first]])
        wanted = _wanted(batch.shards[rows], group, np.zeros((len(ids), self._layout.shards), dtype=np.bool_))
        entries = writes.claim(ids, wanted)
        mine = entries >= 0
        kept = mine[group]
        theirs = rows[~kept]
        if len(theirs):
            rows, group = rows[kept], (np.cumsum(mine) - 1)[group[kept]]
            ids, entries, wanted = np.ascontiguousarray(ids[mine]), entries[mine], wanted[mine]
        if not len(ids):
            return None, theirs
        new = writes.file_bytes[entries] == 0
        writes.file_bytes[entries[new]] = self._layout.file_bytes
        writing = Writing(
            batch,
            rows,
            group,
            ids,
            self._locate(ids),
            entries,
            wanted,
            writes.completes(entries, wanted),
            failed=np.zeros(len(ids), dtype=np.int64),
            lost=np.zeros(len(ids), dtype=np.bool_),
        )
        note_encoded(self._layout, writes, writing)
        return writing, theirs

    # ---- the steps of a write; each leaves out the groups that failed before

    async def _write_and_settle(self, writing: Writing[PlaceT]) -> None:
        try:
            await self._make_room(writing)
            if (writing.failed == 0).any():
                async with self._changing():
                    await self._write(writing)
        except BaseException:
            writing.lost |= writing.failed == 0
            writing.failed[writing.lost] = errno.EIO
            raise
        finally:
            await self._settle(writing)

    async def _write(self, writing: Writing[PlaceT]) -> None:
        if not (writing.failed == 0).any():
            return
        writing.arena = arena = self.transfer.slots_for(writing.batch)
        writing.slots = await arena.lease(len(writing.ids))
        try:
            await self._stage(writing)
            self._write_headers(writing)
            await self._move(writing)
        finally:
            arena.release(writing.slots)
        await self._commit(writing)

    async def _stage(self, writing: Writing[PlaceT]) -> None:
        """Take the bytes out of the caller's memory, or only their checksums where the kernel may read it itself."""
        batch, rows = writing.batch, writing.rows
        if batch.encoded is not None:
            keep_checksums(self._writes, writing)
            return
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
            shut_out = writing.group[~let_in]
            writing.failed[shut_out[writing.failed[shut_out] == 0]] = AGAIN
        sums = results[:, cuts.last].astype(np.uint32)
        keep = np.flatnonzero(writing.failed[writing.group] == 0)
        at = np.maximum(batch.shards[rows[keep]], 0)[:, None] + np.arange(sums.shape[1])
        self._writes.checksums[writing.entries[writing.group[keep]][:, None], at] = sums[keep]

    def _write_headers(self, writing: Writing[PlaceT]) -> None:
        """Put the headers of blocks that become whole into their slots."""
        whole = np.flatnonzero(writing.completes & (writing.failed == 0))
        if not len(whole):
            return
        headers = self._pack(writing, whole)
        slots = writing.arena.view()
        slots[writing.slots[whole], : headers.shape[1]] = headers
        slots[writing.slots[whole], headers.shape[1] : self._layout.header_bytes] = 0

    def _pack(self, writing: Writing[PlaceT], whole: I64) -> U8:
        """Return the headers of the groups `whole`: uint8, shape (whole, bytes)."""
        entries = writing.entries[whole]
        checksums = self._writes.checksums[entries]
        headers = pack_headers(writing.ids[whole], self._namespace, self._layout.shard_size, checksums)
        encoded = self._writes.encoded
        at = [i for i, entry in enumerate(entries.tolist()) if entry in encoded] if encoded else []
        if at:
            rows = EncodedRows.join([encoded[entry] for entry in entries[at].tolist()])
            rows.checksums[:] = checksums[at]
            headers[at] = pack_encoded_headers(self._layout, writing.ids[whole[at]], self._namespace, rows)
        seal_headers(headers, header_checksums(headers).astype(np.uint32))
        return headers

    def _fits_direct(self, writing: Writing[PlaceT], groups: I64) -> Bools:
        """Tell of `groups` whether O_DIRECT can write what was claimed: whole pages. Bool, the shape of `groups`.

        Encoded rows of whole blocks are packed, and end with a page.
        """
        if self._layout.shard_size % DIRECT_ALIGN == 0:
            return np.ones(len(groups), dtype=np.bool_)
        entire: Bools = np.all(writing.wanted[groups], axis=1)
        return entire

    async def _move(self, writing: Writing[PlaceT]) -> None:
        """Run a chain for each block."""
        fine = np.flatnonzero(writing.failed == 0)
        if not len(fine):
            return
        writes, owner, wanted, vectors = self._plan(writing)
        self._aim(writing, writes, owner)
        owner = np.searchsorted(fine, owner)
        step, width = rank_in_group(owner, len(fine))
        chains = ChainTable(len(fine), self.lead + width + self.tail)
        table = chains.table
        chains.keep += (vectors, self._put_ends(writing, fine, table))
        table[owner, self.lead + step] = writes
        lengths = np.zeros((len(fine), width), dtype=np.int64)
        lengths[owner, step] = wanted
        done = self.transfer.engine.submit(table.reshape(-1), chains.steps)
        try:
            await completed(done)
        finally:  # what was done is done, though nobody may want it any more
            self._judge(writing, fine, table["result"], lengths)
        counts = self.transfer.counts
        counts["rows"] += len(writing.rows)
        counts["writes"] += len(writes)
        counts["bytes"] += int(wanted.sum())

    def _plan(self, writing: Writing[PlaceT]) -> tuple[rq.Requests, I64, I64, object]:
        keep = writing.failed[writing.group] == 0
        rows, group = writing.rows[keep], writing.group[keep]
        start, stop = self._layout.row_ranges(writing.batch.shards[rows])
        bases = writing.arena.address(writing.slots)
        whole = writing.completes & (writing.failed == 0)
        batch = writing.batch
        if batch.encoded is not None:
            encoded = batch.encoded.rows(rows)
            shards, addresses = batch.shards[rows], batch.addresses[rows]
            return plan_encoded_writes(self._layout, shards, addresses, encoded, group, bases, whole)
        if not writing.direct:
            return *plan_slot_writes(self._layout, group, bases, start, stop, whole), None
        pieces, sizes = writing.batch.addresses[rows], writing.batch.piece_sizes
        return plan_direct_writes(self._layout, pieces, sizes, group, bases, start, stop, whole)

    def _judge(self, writing: Writing[PlaceT], fine: I64, results: npt.NDArray[np.int64], wanted: I64) -> None:
        """Read off what became of each chain."""
        lead, ends = self.lead, self.lead + wanted.shape[1]
        decided = ends + self.decisive
        moved = (results[:, lead:ends] == wanted).all(axis=1)
        well = moved & (results[:, :lead] >= 0).all(axis=1) & (results[:, ends:decided] >= 0).all(axis=1)
        for i in np.flatnonzero(~well).tolist():
            errors = [number for number in results[i, :decided].tolist() if number < 0 and number != -errno.ECANCELED]
            # A write that came back short without an error met the end of the space.
            writing.failed[fine[i]] = -errors[0] if errors else errno.ENOSPC
            self.transfer.counts["write_errors"] += 1
        self._note_ends(writing, fine, results[:, ends:])

    # ---- the end

    async def _settle(self, writing: Writing[PlaceT]) -> None:
        """Give the claims back, clear what holds nothing, report."""
        bad = np.flatnonzero(writing.failed)
        if len(bad):
            written = self._written(writing, bad)
            bad = bad[self._writes.failed(writing.entries[bad], writing.wanted[bad], written)]
        gone = writing.entries[bad]
        try:
            if len(gone):
                await self._clear(np.ascontiguousarray(writing.ids[bad]), gone)
        finally:
            self._writes.cleared(gone)
            self._give_back(writing)
            try:
                await self._drop_overtaken(writing)
            finally:
                self._report(writing)
        await self._drop_surplus()

    def _give_back(self, writing: Writing[PlaceT]) -> None:
        """Give back the claims of what went well."""
        well, whole = writing.failed == 0, writing.completes
        self._writes.committed(writing.entries[well & whole])
        if not whole.all():
            part = well & ~whole
            self._writes.shards_in(writing.entries[part], writing.wanted[part])

    def _written(self, writing: Writing[PlaceT], bad: I64) -> Bools:
        """Return the shards that the failed groups `bad` may have spoilt: bool, shape (bad, shards)."""
        unwritten = np.isin(writing.failed[bad], (AGAIN, NO_ROOM))
        return np.asarray((writing.wanted[bad] & ~unwritten[:, None]) | writing.lost[bad][:, None])

    def _report(self, writing: Writing[PlaceT]) -> None:
        if not writing.failed.any():
            writing.batch.report(writing.rows, Status.OK)
            return
        for number in np.unique(writing.failed).tolist():
            rows = writing.rows[(writing.failed == number)[writing.group]]
            if number == 0:
                writing.batch.report(rows, Status.OK)
            elif number == AGAIN:  # the others are tried again
                writing.batch.report(rows[~writing.batch.live()[rows]], Status.CANCELLED)
            else:
                writing.batch.report(rows, *_failure(number))

    async def _drop_overtaken(self, writing: Writing[PlaceT]) -> None:
        """Forget shards of blocks that others stored between the look and the claim: nobody will complete them."""
        shards = (writing.failed == 0) & ~writing.completes
        if not shards.any() or not (shards := shards & self._known_stored(writing.ids)).any():
            return
        ids = np.ascontiguousarray(writing.ids[shards])
        stored = await self.find_stored(ids)
        ids, at = ids[stored], np.flatnonzero(shards)[stored]
        await self.discard_partial(ids)
        if writing.batch.durability == "synced" and len(ids):  # their copy may not be on the medium
            result = await self._sync_stored(ids)
            writing.failed[at] = np.where(result == -errno.ENOENT, AGAIN, -result)

    async def _drop_surplus(self) -> None:
        """Forget the incomplete blocks that exceed the bound."""
        surplus = self._writes.surplus()
        self.transfer.counts["partial_dropped"] += len(surplus)
        await self.discard_partial(surplus)

    async def discard_partial(self, ids: U8) -> None:
        """Forget those of the blocks that are incomplete and that nobody is writing, and clear their places."""
        entries = self._writes.close_idle(ids)
        if len(entries):
            try:
                await self._clear(self._writes.ids(entries), entries)
            finally:
                self._writes.cleared(entries)


def _cut(ids: U8, blocks_max: int, rows_max: int) -> int:
    """Return how many rows, of ids (n, 16), come next: whole groups, and one at least."""
    first, _ = group_rows(ids)
    ends = np.append(first[1:], len(ids))
    groups = min(blocks_max, int(np.searchsorted(ends, rows_max, side="right")))
    return int(ends[max(groups, 1) - 1])


def _wanted(shards: I64, group: I64, wanted: Bools) -> Bools:
    """Set the shards of rows, (n,), -1 for all of them, in `wanted`, (g, shards), and return that."""
    whole = shards < 0
    wanted[group[whole]] = True
    wanted[group[~whole], shards[~whole]] = True
    return wanted


def _failure(number: int) -> tuple[Status, StoreError]:
    if number == NO_ROOM:
        return Status.NO_SPACE, NoSpaceError("no room: a bound that was set for the space of the store is reached")
    status = status_of_errno(number)
    if status == Status.BUSY:
        return status, BusyError("another process keeps what is needed to make room; it may be stopped")
    if status == Status.NO_SPACE:
        return status, NoSpaceError.from_errno(number, "write")
    return Status.IO_ERROR, BackendIOError.from_errno(number, "write")
