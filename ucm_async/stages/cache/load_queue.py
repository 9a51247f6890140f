"""The load queue: hits are copied out at once; misses are read below as slices, published, and copied out."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ...abc import Batch, SmallLoad
from ...native import CLAIM_HIT, CLAIM_MINE, CLAIM_THEIRS, WATCH_FAILED, WATCH_FILLING
from ...tasks import cut_row, group_blocks, reasons_at, reasons_of
from ...types import I64, U8, Bools, Reasons, Status
from .admission import Share
from .bypass import Bypass
from .fills import PARTS_AT_A_TIME, Filler, cut_parts
from .moves import Mover
from .transbuffer import TransBuffer
from .waiting import Waiting

__all__ = ["LoadQueue"]

SHORT_WAY_ROWS_MAX: Final = 64

_GIVEN_UP: Final = (Status.CANCELLED, Status.CLOSED)
"""Whoever was filling the slot lost interest: that says nothing about the block."""

_FREE, _FILLING, _LEASED = range(3)


@dataclass(slots=True)
class _Loading:
    """Blocks of a batch on their way to the callers. A group is the rows of one block; arrays of g are by group.

    Attributes
    ----------
    rows, group
        int64 (n,): rows of the batch, and the group of each.
    ids
        uint8 (g, 16).
    tasks
        Where what goes on side by side for this batch is started.
    slots
        int64 (g,): where the blocks are, or will be.
    held
        uint8 (g,): what this batch holds of its slot: nothing, the right to fill it, or a lease.
    granted
        Slots of the queue's share that it has.
    """

    batch: Batch
    rows: I64
    group: I64
    ids: U8
    tasks: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)
    slots: I64 = field(init=False)
    held: U8 = field(init=False)
    granted: int = 0

    def __post_init__(self) -> None:
        self.slots = np.full(len(self.ids), -1, dtype=np.int64)
        self.held = np.zeros(len(self.ids), dtype=np.uint8)

    def rows_of(self, groups: I64) -> tuple[I64, I64]:
        """Return the rows of some groups, and the group of each."""
        if len(groups) == len(self.ids):
            return self.rows, self.group
        chosen = np.zeros(len(self.ids), dtype=np.bool_)
        chosen[groups] = True
        mine = chosen[self.group]
        return self.rows[mine], self.group[mine]

    def wanted_rows_of(self, groups: I64) -> tuple[I64, I64]:
        """Return the same without rows whose task has settled."""
        rows, group = self.rows_of(groups)
        wanted = self.batch.live()[rows]
        return rows[wanted], group[wanted]


class LoadQueue:
    """Serves loads. What a batch holds it gives back when it ends, however it ends.

    Parameters
    ----------
    buffer, waiting, filler
        See their modules.
    mover, bypass
        For loads alone.
    share
        How many slots may be filled at a time.
    counts
        Plain counters, by name.
    """

    def __init__(
        self,
        buffer: TransBuffer,
        waiting: Waiting,
        filler: Filler,
        mover: Mover,
        bypass: Bypass,
        share: Share,
        counts: Counter[str],
    ) -> None:
        self._buffer = buffer
        self._table = buffer.table
        self._waiting = waiting
        self._filler = filler
        self._mover = mover
        self._bypass = bypass
        self._share = share
        self._counts = counts

    # ---- the short way

    def begin(self, one: SmallLoad) -> bool:
        """Copy a few rows out right here if all of their blocks are hits; see `ucm_async.abc.Stage.begin_load`."""
        ids, sizes = one.ids, one.piece_sizes
        if len(ids) == 1 and len(sizes) == 1:
            offset = max(int(one.shards[0]), 0) * self._buffer.shard_size
            well = self._table.copy_out(ids, offset, int(one.addresses[0, 0]), sizes[0], one.gate)
        else:
            well = len(ids) <= SHORT_WAY_ROWS_MAX and self._table.gather(ids, self._extents(one), one.gate)
        if well:
            self._counts["short_way"] += 1
            one.succeed()
        return well

    def _extents(self, one: SmallLoad) -> npt.NDArray[np.uint64]:
        """Return what `BlockTable.gather` wants: (row, offset in the slot, address, length) of each piece."""
        pieces = cut_row(one.piece_sizes, sum(one.piece_sizes))
        extents = np.empty((len(one.ids), len(pieces), 4), dtype=np.uint64)
        extents[:, :, 0] = np.arange(len(one.ids))[:, None]
        extents[:, :, 1] = np.maximum(one.shards, 0)[:, None] * self._buffer.shard_size + pieces.offset
        extents[:, :, 2] = one.addresses
        extents[:, :, 3] = pieces.length
        return extents.reshape(-1, 4)

    # ---- a batch

    async def load(self, batch: Batch) -> None:
        """Deliver the rows of `batch` that are still wanted."""
        live = batch.live()
        rows = np.flatnonzero(live)
        if len(rows):
            first, group = group_blocks(batch.ids[rows])
            loading = _Loading(batch, rows, group, np.ascontiguousarray(batch.ids[rows[first]]))
            try:
                await self._load(loading)
            finally:
                self._let_go(loading)
            live = batch.live()
        batch.report(np.flatnonzero(~live), Status.CANCELLED)  # their task has settled: nobody sees this

    async def _load(self, loading: _Loading) -> None:
        everything = np.arange(len(loading.ids))
        hits = self._table.lease(loading.ids, loading.slots)
        hit = loading.slots >= 0
        loading.held[hit] = _LEASED
        if hits == len(everything):
            await self._deliver(loading, everything)
            return
        async with loading.tasks as tasks:
            tasks.create_task(self._bring(loading, everything[~hit]))
            if hits:
                await self._deliver(loading, everything[hit])

    async def _deliver(self, loading: _Loading, groups: I64) -> None:
        """Copy leased blocks to the callers, and give the leases back."""
        rows, group = loading.wanted_rows_of(groups)
        places = self._buffer.places(loading.slots[group], loading.batch.shards[rows])
        await self._mover.deliver(loading.batch, rows, places)
        loading.held[groups] = _FREE
        self._table.release(loading.slots[groups])

    def _let_go(self, loading: _Loading) -> None:
        """Give back what is held: nothing, unless something went wrong or was cancelled."""
        filling = loading.slots[loading.held == _FILLING]
        if len(filling):
            self._table.fail(filling, int(Status.CANCELLED))
            self._waiting.look()
        self._table.release(loading.slots[loading.held == _LEASED])
        self._share.give_back(loading.granted)

    # ---- misses

    async def _bring(self, loading: _Loading, groups: I64) -> None:
        """Bring blocks that were no hits, in parts, of which a few are under way at a time."""
        parts = deque(cut_parts(groups, self._buffer.block_size))
        for _ in range(min(len(parts), PARTS_AT_A_TIME) - 1):
            loading.tasks.create_task(self._bring_parts(loading, parts))
        await self._bring_parts(loading, parts)

    async def _bring_parts(self, loading: _Loading, parts: deque[I64]) -> None:
        while parts:
            groups = parts.popleft()
            wanted = np.zeros(len(loading.ids), dtype=np.bool_)
            wanted[loading.wanted_rows_of(groups)[1]] = True
            groups = groups[wanted[groups]]
            if len(groups):
                await self._bring_part(loading, groups)

    async def _bring_part(self, loading: _Loading, groups: I64) -> None:
        """Claim blocks; then each goes its own way: copied, read, waited for, or round the cache."""
        claim = await self._buffer.claim(np.ascontiguousarray(loading.ids[groups]))
        hit, mine, theirs = (claim.states == state for state in (CLAIM_HIT, CLAIM_MINE, CLAIM_THEIRS))
        loading.slots[groups] = claim.slots
        loading.held[groups[hit]] = _LEASED
        loading.held[groups[mine]] = _FILLING
        self._keep_to_share(loading, groups, mine)
        tasks = loading.tasks
        if theirs.any():
            tasks.create_task(self._wait(loading, groups[theirs], claim.generations[theirs]))
        around = ~(hit | mine | theirs)
        if around.any():
            tasks.create_task(self._bypass.load(loading.batch, loading.wanted_rows_of(groups[around])[0]))
        if hit.any():
            tasks.create_task(self._deliver(loading, groups[hit]))
        if mine.any():
            await self._read(loading, groups[mine], claim.generations[mine])

    def _keep_to_share(self, loading: _Loading, groups: I64, mine: Bools) -> None:
        """Give up claims that exceed the share; they are no more in the mask `mine` then."""
        claimed = np.flatnonzero(mine)
        granted = self._share.take(len(claimed))
        loading.granted += granted
        surplus = claimed[granted:]
        if len(surplus):
            mine[surplus] = False
            loading.held[groups[surplus]] = _FREE
            self._table.fail(loading.slots[groups[surplus]], int(Status.CANCELLED))
            self._waiting.look()

    async def _read(self, loading: _Loading, groups: I64, generations: npt.NDArray[np.uint32]) -> None:
        """Read blocks into their slots, and start to deliver them."""
        status, reasons = await self._filler.fill(loading.ids[groups], loading.slots[groups], generations)
        there = status == Status.OK
        loading.held[groups] = np.where(there, _LEASED, _FREE)
        self._give_share(loading, len(groups))
        if there.any():  # beside the next part: the disk need not wait for the copies
            loading.tasks.create_task(self._deliver(loading, groups[there]))
        if not there.all():
            why = reasons_at(reasons, groups)
            loading.tasks.create_task(self._fail(loading, groups[~there], status[~there], why))

    def _give_share(self, loading: _Loading, count: int) -> None:
        loading.granted -= count
        self._share.give_back(count)

    async def _wait(self, loading: _Loading, groups: I64, generations: npt.NDArray[np.uint32]) -> None:
        """Wait until others have read blocks, and bring them then, from wherever they are."""
        self._counts["waits"] += len(groups)
        slots = loading.slots[groups]
        while len(groups) and len(loading.wanted_rows_of(groups)[0]):
            left_s = self._waiting.left_s(slots, generations)
            if not left_s:
                self._counts["waits_given_up"] += len(groups)
                await self._bypass.load(loading.batch, loading.wanted_rows_of(groups)[0])
                return
            told = await self._waiting.change(slots, generations, left_s)
            self._go_on(loading, groups, told, self._waiting.reasons(slots, generations))
            still = told == WATCH_FILLING
            groups, slots, generations = groups[still], slots[still], generations[still]

    def _go_on(self, loading: _Loading, groups: I64, told: U8, reasons: Reasons) -> None:
        """Start what follows for blocks whose reader has ended."""
        number = told.astype(np.int64) - WATCH_FAILED
        failed = (number >= 0) & ~np.isin(number, _GIVEN_UP)
        again = (told != WATCH_FILLING) & ~failed
        if failed.any():
            why = reasons_at(reasons, groups)
            loading.tasks.create_task(self._fail(loading, groups[failed], number[failed].astype(np.uint8), why))
        if again.any():
            self._take_up(loading, groups[again])

    def _take_up(self, loading: _Loading, groups: I64) -> None:
        """Start to deliver blocks that others have read, and to bring those that are gone again."""
        slots = np.empty(len(groups), dtype=np.int64)
        self._table.lease(np.ascontiguousarray(loading.ids[groups]), slots)
        there = slots >= 0
        leased, gone = groups[there], groups[~there]
        if len(leased):
            loading.slots[leased] = slots[there]
            loading.held[leased] = _LEASED
            loading.tasks.create_task(self._deliver(loading, leased))
        if len(gone):
            loading.tasks.create_task(self._bring(loading, gone))

    async def _fail(self, loading: _Loading, groups: I64, status: U8, reasons: Reasons) -> None:
        """Report blocks that could not be read as a whole; single shards of them may still be readable.

        `status` is that of each of `groups`; `reasons` go by group.
        """
        rows, group = loading.wanted_rows_of(groups)
        of_group = np.zeros(len(loading.ids), dtype=np.uint8)
        of_group[groups] = status
        told = of_group[group]
        again = (loading.batch.shards[rows] >= 0) & (told == Status.IO_ERROR)
        loading.batch.report(rows[~again], told[~again], reasons_of(reasons, group[~again]))
        if again.any():
            await self._bypass.load(loading.batch, rows[again])
