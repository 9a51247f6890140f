"""The dump queue: blocks are copied into slots, then written below, in the foreground or behind, as was asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ...abc import Batch
from ...native import CLAIM_HIT, CLAIM_MINE, CLAIM_THEIRS
from ...tasks import group_rows, reasons_at, reasons_of
from ...types import I64, U8, Bools, Status
from .behind import WriteBehind
from .below import Below
from .bypass import Bypass
from .moves import Mover
from .shard_dumps import ShardDumps
from .transbuffer import TransBuffer
from .waiting import Waiting

__all__ = ["DumpQueue"]

_FREE, _FILLING, _LEASED = range(3)
_NONE: Final = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class _Dumping:
    """Whole blocks of a batch on their way into slots. A group is the rows of one block; arrays of g are by group.

    Attributes
    ----------
    rows, group
        int64 (n,): rows of the batch, and the group of each, ascending.
    ids
        uint8 (g, 16).
    slots, generations
        By group, of those that are held or waited for.
    held
        uint8 (g,): what this batch holds of its slot: nothing, the right to fill it, or a lease.
    reserved
        Blocks that it may still owe to the stage below.
    """

    batch: Batch
    rows: I64
    group: I64
    ids: U8
    slots: I64 = field(init=False)
    generations: npt.NDArray[np.uint32] = field(init=False)
    held: U8 = field(init=False)
    reserved: int = 0

    def __post_init__(self) -> None:
        self.slots = np.full(len(self.ids), -1, dtype=np.int64)
        self.generations = np.zeros(len(self.ids), dtype=np.uint32)
        self.held = np.zeros(len(self.ids), dtype=np.uint8)

    def rows_of(self, chosen: Bools) -> tuple[I64, I64]:
        """Return the rows of some groups, a mask, and the group of each."""
        mine = chosen[self.group]
        return self.rows[mine], self.group[mine]


class DumpQueue:
    """Serves dumps. What a batch holds it gives back when it ends, however it ends.

    Parameters
    ----------
    buffer, below, waiting, behind, shard_dumps
        See their modules.
    mover, bypass
        For dumps alone.
    counts
        Plain counters, by name.
    """

    def __init__(
        self,
        buffer: TransBuffer,
        below: Below,
        waiting: Waiting,
        mover: Mover,
        bypass: Bypass,
        behind: WriteBehind,
        shard_dumps: ShardDumps,
        counts: Counter[str],
    ) -> None:
        self._buffer = buffer
        self._table = buffer.table
        self._below = below
        self._waiting = waiting
        self._mover = mover
        self._bypass = bypass
        self._behind = behind
        self._shard_dumps = shard_dumps
        self._counts = counts
        self._shards = buffer.block_size // buffer.shard_size
        self._step = max(1, min(buffer.slots // 4, behind.blocks_max))

    async def dump(self, batch: Batch) -> None:
        """Take the rows of `batch` that are still wanted."""
        live = batch.live()
        rows = np.flatnonzero(live)
        batch.report(np.flatnonzero(~live), Status.CANCELLED)  # their task has settled: nobody sees this
        while len(rows):
            rows = await self._dump_some(batch, rows)
            live = batch.live()[rows]
            batch.report(rows[~live], Status.CANCELLED)
            rows = rows[live]

    async def _dump_some(self, batch: Batch, rows: I64) -> I64:
        """Dump as many blocks as should be under way at a time; returns the rows that are left.

        Of rows that are the same shard of the same block only the first one goes now; to the others it is a hit.
        """
        rows = rows[np.lexsort((batch.shards[rows], *batch.ids[rows].view(np.uint64).T))]
        same = np.zeros(len(rows), dtype=np.bool_)
        same[1:] = (batch.ids[rows[1:]] == batch.ids[rows[:-1]]).all(axis=1)
        same[1:] &= batch.shards[rows[1:]] == batch.shards[rows[:-1]]
        now, later = rows[~same], rows[same]
        first, _ = group_rows(batch.ids[now])
        if len(first) > self._step:
            cut = int(first[self._step])
            now, later = now[:cut], np.concatenate((now[cut:], later))
        whole = self._are_whole(batch, now)
        again = await self._dump_blocks(batch, now[whole]) if whole.any() else _NONE
        again_shards = await self._shard_dumps.dump(batch, now[~whole]) if not whole.all() else _NONE
        return np.concatenate((again, again_shards, later))

    def _are_whole(self, batch: Batch, rows: I64) -> Bools:
        """Tell which rows are whole blocks, or all the shards of one of which nothing came before."""
        first, group = group_rows(batch.ids[rows])
        count = np.bincount(group)
        whole = (batch.shards[rows[first]] < 0) | (count == self._shards)
        if len(self._shard_dumps):
            whole &= ~self._shard_dumps.has(batch.ids[rows[first]])
        of_rows: Bools = whole[group]
        return of_rows

    async def _dump_blocks(self, batch: Batch, rows: I64) -> I64:
        """Dump whole blocks; returns the rows to be tried again, when what they waited for has changed."""
        first, group = group_rows(batch.ids[rows])
        dumping = _Dumping(batch, rows, group, np.ascontiguousarray(batch.ids[rows[first]]))
        try:
            if batch.durability == "cached":  # before a slot is claimed: others may wait for that
                await self._behind.reserve(len(first))
                dumping.reserved = len(first)
            claim = await self._buffer.claim(dumping.ids)
            hit, mine, theirs = (claim.states == state for state in (CLAIM_HIT, CLAIM_MINE, CLAIM_THEIRS))
            dumping.slots, dumping.generations = claim.slots, claim.generations
            dumping.held[hit], dumping.held[mine] = _LEASED, _FILLING
            taken = await self._take(dumping, mine)
            await self._store(dumping, hit, taken)
            await self._go_round(dumping, ~(hit | mine | theirs))
            again = dumping.rows_of(mine & ~taken)[0]
            return np.concatenate((again, await self._wait(dumping, theirs)))
        finally:
            self._let_go(dumping)

    async def _take(self, dumping: _Dumping, mine: Bools) -> Bools:
        """Copy blocks into their slots; bool (g,): those that are there. A task that settles first spoils its block."""
        rows, group = dumping.rows_of(mine)
        let_in = await self._mover.take(
            dumping.batch, rows, self._buffer.places(dumping.slots[group], dumping.batch.shards[rows])
        )
        taken = mine.copy()
        taken[group[~let_in]] = False
        spoilt = mine & ~taken
        if spoilt.any():
            dumping.held[spoilt] = _FREE
            self._table.fail(dumping.slots[spoilt], int(Status.CANCELLED))
            self._waiting.look()
            dumping.batch.report(rows[~let_in], Status.CANCELLED)
        return taken

    async def _store(self, dumping: _Dumping, hit: Bools, taken: Bools) -> None:
        """Bring blocks that lie in slots to their durability, and report them. What was taken is not published yet."""
        rows, group = dumping.rows_of(hit | taken)
        if dumping.batch.durability == "cached":
            self._owe(dumping, taken)
            self._release(dumping, hit)
            dumping.batch.report(rows, Status.OK)
            return
        chosen = hit | taken
        status = np.zeros(len(chosen), dtype=np.uint8)
        # It is for the stage below to know which of them it has.
        status[chosen], why = await self._below.dump(
            dumping.ids[chosen], dumping.slots[chosen], dumping.batch.durability
        )
        reasons = reasons_at(why, np.flatnonzero(chosen))
        stored = status == Status.OK
        self._table.publish(dumping.slots[taken & stored])
        # Why it could not be written is nothing to those who wait to read it: they look for it themselves.
        self._table.fail(dumping.slots[taken & ~stored], int(Status.CANCELLED))
        dumping.held[taken] = _FREE
        self._waiting.look()
        self._release(dumping, hit)
        dumping.batch.report(rows, status[group], reasons_of(reasons, group))

    def _owe(self, dumping: _Dumping, taken: Bools) -> None:
        """Publish blocks that the stage below gets later, and give back the reservation for those that it need not."""
        slots = dumping.slots[taken]
        self._table.publish(slots, True, True)
        dumping.held[taken] = _FREE
        self._waiting.look()
        surplus, dumping.reserved = dumping.reserved - len(slots), 0
        self._behind.give_back(surplus)
        if len(slots):
            self._behind.add(np.ascontiguousarray(dumping.ids[taken]), slots, dumping.generations[taken])

    def _release(self, dumping: _Dumping, hit: Bools) -> None:
        dumping.held[hit] = _FREE
        self._table.release(dumping.slots[hit])

    async def _go_round(self, dumping: _Dumping, around: Bools) -> None:
        """Write blocks that got no slot past the cache: then even "cached" means stored."""
        rows, _ = dumping.rows_of(around)
        if len(rows):
            durability = dumping.batch.durability
            below = "stored" if durability == "cached" else durability
            dumping.batch.report(rows, *await self._bypass.dump(dumping.batch, rows, below))

    async def _wait(self, dumping: _Dumping, theirs: Bools) -> I64:
        """Wait for blocks that others bring; returns the rows to be tried again."""
        if not theirs.any():
            return _NONE
        self._counts["waits"] += int(np.count_nonzero(theirs))
        slots, generations = dumping.slots[theirs], dumping.generations[theirs]
        left_s = self._waiting.left_s(slots, generations)
        if not left_s:
            await self._go_round(dumping, theirs)
            return _NONE
        await self._waiting.change(slots, generations, left_s)
        return dumping.rows_of(theirs)[0]

    def _let_go(self, dumping: _Dumping) -> None:
        """Give back what is held: nothing, unless something went wrong or was cancelled."""
        filling = dumping.slots[dumping.held == _FILLING]
        if len(filling):
            self._table.fail(filling, int(Status.CANCELLED))
            self._waiting.look()
        self._table.release(dumping.slots[dumping.held == _LEASED])
        self._behind.give_back(dumping.reserved)
