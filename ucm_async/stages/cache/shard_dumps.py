"""Dumps of single shards: gathered in slots without a name, which get their block's name when the last shard is in.

A slot that is being filled keeps everybody else waiting who wants its block. Nobody knows when the other shards of a
block will come, or whether; so until they are all there the slot goes by a random id that nobody asks for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ...abc import Batch, Lower
from ...engines.system import current_system
from ...engines.waits import patient
from ...errors import BusyError, StoreError
from ...native import CLAIM_MINE
from ...tasks import group_rows, reasons_at, reasons_of
from ...types import I64, U8, Bools, Durability, Reasons, Status
from .admission import Share
from .behind import WriteBehind
from .below import Below
from .bypass import Bypass
from .moves import Mover
from .naming import Naming
from .partial import NO_SLOT, PartialBlock, PartialBlocks
from .transbuffer import TransBuffer

__all__ = ["ShardDumps"]

IDLE_S: Final = 10.0
"""A block of which no shard came for so long gives up its slot to one that needs it."""

CLAIM_PATIENCE_S: Final = 0.05
"""Who waits for a shard that another task brings looks this often whether its own task still wants it."""

_NONE: Final = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class _Gathering:
    """Claimed shards of a batch. A group is the rows of one block; arrays of g are by group.

    Attributes
    ----------
    rows, group
        int64 (n,): rows of the batch, and the group of each, ascending.
    blocks, wanted
        By group: the partial block, and the shards that were claimed of it, a bit set.
    slots
        int64 (g,): where each is gathered, or `NO_SLOT`.
    status
        uint8 (n,): what has become of each row.
    reasons
        Why, of those that failed.
    below
        Bool (n,): rows whose shard the stage below has, if their status is OK.
    """

    batch: Batch
    rows: I64
    group: I64
    blocks: list[PartialBlock]
    wanted: list[int]
    slots: I64 = field(init=False)
    status: U8 = field(init=False)
    reasons: dict[int, StoreError] = field(default_factory=dict)
    below: Bools = field(init=False)

    def __post_init__(self) -> None:
        self.slots = np.array([block.slot for block in self.blocks], dtype=np.int64)
        self.status = np.full(len(self.rows), Status.CANCELLED, dtype=np.uint8)
        self.below = np.zeros(len(self.rows), dtype=np.bool_)

    def settle(self, places: I64, status: U8, reasons: Reasons) -> None:
        """Note what has become of the rows at some `places`, and why, by position among these."""
        self.status[places] = status
        self.reasons.update(reasons_at(reasons, places))

    def shards_of(self, chosen: Bools) -> list[int]:
        """Return by group the shards of some rows, a bit set."""
        bits = [0] * len(self.blocks)
        shards = self.batch.shards[self.rows].tolist()
        for at in np.flatnonzero(chosen).tolist():
            group = int(self.group[at])
            bits[group] |= self.wanted[group] if shards[at] < 0 else 1 << shards[at]
        return bits


class ShardDumps:
    """Serves dumps of shards. Blocks that find no slot go round the cache, with all of their shards.

    Parameters
    ----------
    buffer, below, lower, behind
        See their modules.
    mover, bypass
        Of the dump queue.
    naming
        Gives whole blocks their names.
    share
        How many slots may hold partial blocks.
    blocks_max
        How many blocks may be partial.
    counts
        Plain counters, by name.
    """

    def __init__(
        self,
        buffer: TransBuffer,
        below: Below,
        lower: Lower,
        mover: Mover,
        bypass: Bypass,
        behind: WriteBehind,
        naming: Naming,
        share: Share,
        blocks_max: int,
        counts: Counter[str],
    ) -> None:
        self._system = current_system()
        self._buffer = buffer
        self._table = buffer.table
        self._below = below
        self._lower = lower
        self._mover = mover
        self._bypass = bypass
        self._behind = behind
        self._naming = naming
        self._share = share
        self._counts = counts
        self._blocks = PartialBlocks(buffer.block_size // buffer.shard_size, blocks_max)

    def __len__(self) -> int:
        return len(self._blocks)

    def has(self, ids: U8) -> Bools:
        """Tell which blocks are partial."""
        return np.array([one.tobytes() in self._blocks for one in ids], dtype=np.bool_)

    async def dump(self, batch: Batch, rows: I64) -> I64:
        """Take rows, sorted by block; returns those to be tried again, when what they waited for has changed."""
        rows = await self._skip_cached(batch, rows)
        rows = await self._skip_stored(batch, rows)
        if not len(rows):
            return _NONE
        await self._begin(batch, rows)
        gathering, theirs = self._claim(batch, rows)
        if gathering is not None:
            await self._gather_claimed(gathering)
            self._drop_overtaken(gathering)
        for block_id in {batch.ids[row].tobytes() for row in theirs.tolist()}:
            change = self._blocks.change(block_id)
            while change is not None and not await patient(change, CLAIM_PATIENCE_S) and batch.live()[theirs].any():
                pass
        return theirs

    # ---- what need not be taken

    async def _skip_cached(self, batch: Batch, rows: I64) -> I64:
        """Report the rows of blocks that are in the cache already; returns the others."""
        first, group = group_rows(batch.ids[rows])
        ids, slots = np.ascontiguousarray(batch.ids[rows[first]]), np.empty(len(first), dtype=np.int64)
        if not self._table.lease(ids, slots):
            return rows
        hit = slots >= 0
        try:
            status = np.zeros(len(first), dtype=np.uint8)
            reasons: Reasons = {}
            if batch.durability != "cached":
                status[hit], why = await self._below.dump(ids[hit], slots[hit], batch.durability)
                reasons = reasons_at(why, np.flatnonzero(hit))
        finally:
            self._table.release(slots)
        self.forget(ids[hit])  # another writer was first, and these shards are of no use any more
        groups_hit = group[hit[group]]
        batch.report(rows[hit[group]], status[groups_hit], reasons_of(reasons, groups_hit))
        return np.asarray(rows[~hit[group]])

    async def _skip_stored(self, batch: Batch, rows: I64) -> I64:
        """Report the rows of blocks that the stage below has already; returns the others."""
        first, group = group_rows(batch.ids[rows])
        ids = batch.ids[rows[first]]
        new = ~self.has(ids)
        if not new.any():
            return rows
        stored = np.zeros(len(first), dtype=np.bool_)
        stored[new] = await self._lower.holds(np.ascontiguousarray(ids[new]))
        theirs = rows[stored[group]]
        if len(theirs) and batch.durability == "synced":
            batch.report(theirs, *await self._bypass.dump(batch, theirs, "synced"))
        elif len(theirs):
            batch.report(theirs, Status.OK)
        return np.asarray(rows[~stored[group]])

    # ---- slots without a name

    async def _begin(self, batch: Batch, rows: I64) -> None:
        """Begin the blocks of which nothing came before, in slots as far as there are any."""
        first, _ = group_rows(batch.ids[rows])
        new = [one.tobytes() for one in batch.ids[rows[first]] if one.tobytes() not in self._blocks]
        taken = await self._take_slots(len(new))
        taken += [(NO_SLOT, 0)] * (len(new) - len(taken))
        for block_id, (slot, generation) in zip(new, taken, strict=True):
            if block_id in self._blocks:  # another batch began it while this one waited for slots
                self._free(slot)
            else:
                self._blocks.begin(block_id, slot, generation)

    async def _take_slots(self, count: int) -> list[tuple[int, int]]:
        """Claim up to `count` slots under names that nobody asks for: (slot, generation) of each."""
        granted = self._share.take(count)
        while granted < count and self._drop_idle():
            granted += self._share.take(count - granted)
        if not granted:
            return []
        names = np.frombuffer(bytes.fromhex(self._system.token(16 * granted)), dtype=np.uint8).reshape(granted, 16)
        try:
            claim = await self._buffer.claim(names)
        except BaseException:
            self._share.give_back(granted)
            raise
        mine = claim.states == CLAIM_MINE
        self._share.give_back(granted - int(np.count_nonzero(mine)))
        return list(zip(claim.slots[mine].tolist(), claim.generations[mine].tolist(), strict=True))

    def _free(self, slot: int) -> None:
        if slot != NO_SLOT:
            self._table.fail(np.array([slot]), int(Status.CANCELLED))
            self._share.give_back(1)

    def _drop_idle(self) -> bool:
        """Give up the block that was longest without a shard; False if none was for so long."""
        block = self._blocks.idle_since(asyncio.get_running_loop().time() - IDLE_S, in_slots=True)
        if block is not None:
            self._drop(block)
        return block is not None

    def _drop(self, block: PartialBlock) -> None:
        """Give up a partial block that nobody is busy with. If shards are lost with it, `flush` tells."""
        self._counts["partial_dropped"] += 1
        if block.done & ~block.stored:
            self._behind.failed(BusyError("other shards did not come in time", block_id=block.block_id))
        self._blocks.forget(block)
        self._free(block.slot)

    # ---- shards

    def _claim(self, batch: Batch, rows: I64) -> tuple[_Gathering | None, I64]:
        """Claim the shards that nobody else is bringing; the second value is the rows of the others."""
        first, group = group_rows(batch.ids[rows])
        ends = np.append(first[1:], len(rows)).tolist()
        mine = np.zeros(len(first), dtype=np.bool_)
        blocks: list[PartialBlock] = []
        wanted: list[int] = []
        for g, (start, end) in enumerate(zip(first.tolist(), ends, strict=True)):
            block = self._blocks.get(batch.ids[rows[start]].tobytes())
            shards = self._bits(batch.shards[rows[start:end]])
            if block is not None and self._blocks.claim(block, shards):
                mine[g] = True
                blocks.append(block)
                wanted.append(shards)
        kept = mine[group]
        if not blocks:
            return None, rows
        return _Gathering(batch, rows[kept], (np.cumsum(mine) - 1)[group[kept]], blocks, wanted), rows[~kept]

    def _bits(self, shards: I64) -> int:
        if shards[0] < 0:
            return self._blocks.full
        bits = 0
        for shard in shards.tolist():
            bits |= 1 << shard
        return bits

    async def _gather_claimed(self, gathering: _Gathering) -> None:
        """Take claimed shards; whatever happens, the claims end."""
        try:
            await self._gather(gathering)
        except BaseException:
            gathering.status[:] = Status.CANCELLED
            raise
        finally:
            whole = self._end(gathering)
            inside = [block for block in whole if block.slot != NO_SLOT]
            try:
                await self._naming.name(inside, self._blocks.full)
            finally:
                for block in whole:
                    self._blocks.forget(block)
                    self._free(block.slot)
                self._share.give_back(
                    sum(block.slot == NO_SLOT for block in inside)
                )  # a slot with a name is no more ours
        for block in self._blocks.surplus():
            self._drop(block)
        gathering.batch.report(gathering.rows, gathering.status, gathering.reasons)

    async def _gather(self, gathering: _Gathering) -> None:
        """Bring shards into their slots, and below if that was asked for."""
        batch, rows, status = gathering.batch, gathering.rows, gathering.status
        durability: Durability = "stored" if batch.durability == "cached" else batch.durability
        around = (gathering.slots == NO_SLOT)[gathering.group]
        inside = ~around
        places = self._buffer.places(gathering.slots[gathering.group[inside]], batch.shards[rows[inside]])
        let_in = await self._mover.take(batch, rows[inside], places)
        taken = np.zeros(len(rows), dtype=np.bool_)
        taken[inside] = let_in
        status[taken] = Status.OK
        if around.any():
            gathering.settle(np.flatnonzero(around), *await self._bypass.dump(batch, rows[around], durability))
            gathering.below |= around
        if batch.durability != "cached" and taken.any():
            await self._store(gathering, taken, durability)

    async def _store(self, gathering: _Gathering, taken: Bools, durability: Durability) -> None:
        """Write shards below from their slots; whole blocks where others of their shards are not there yet."""
        full = self._blocks.full
        whole = np.zeros(len(gathering.blocks), dtype=np.bool_)
        for g, (block, shards) in enumerate(zip(gathering.blocks, gathering.shards_of(taken), strict=True)):
            whole[g] = block.done | shards == full and block.stored | shards != full
        whole[gathering.group[gathering.batch.shards[gathering.rows] < 0]] = True
        single = taken & ~whole[gathering.group]
        gathering.settle(np.flatnonzero(single), *await self._store_rows(gathering, single, durability))
        whole[gathering.group[~taken]] = False
        if whole.any():
            await self._store_blocks(gathering, whole, durability)
        gathering.below |= taken

    async def _store_rows(self, gathering: _Gathering, chosen: Bools, durability: Durability) -> tuple[U8, Reasons]:
        rows, slots = gathering.rows[chosen], gathering.slots[gathering.group[chosen]]
        ids, shards = np.ascontiguousarray(gathering.batch.ids[rows]), gathering.batch.shards[rows]
        places, sizes = self._buffer.places(slots, shards).reshape(-1, 1), np.array([self._buffer.shard_size])
        return await self._lower.dump(ids, shards, places, sizes, durability)

    async def _store_blocks(self, gathering: _Gathering, chosen: Bools, durability: Durability) -> None:
        groups = np.flatnonzero(chosen)
        ids = np.frombuffer(b"".join(gathering.blocks[g].block_id for g in groups.tolist()), dtype=np.uint8)
        status, reasons = await self._below.dump(ids.reshape(-1, 16), gathering.slots[groups], durability)
        of_group = np.zeros(len(gathering.blocks), dtype=np.uint8)
        of_group[groups] = status
        mine = np.flatnonzero(chosen[gathering.group])
        group = gathering.group[mine]
        gathering.settle(mine, of_group[group], reasons_of(reasons_at(reasons, groups), group))
        for g in groups[status == Status.OK].tolist():
            gathering.blocks[g].stored = self._blocks.full

    def _end(self, gathering: _Gathering) -> list[PartialBlock]:
        """End claims; returns the blocks that are whole now, claimed once more, so that nobody else touches them."""
        well = gathering.status == Status.OK
        done, below = gathering.shards_of(well), gathering.shards_of(well & gathering.below)
        now = asyncio.get_running_loop().time()
        whole: list[PartialBlock] = []
        for block, wanted, shards, stored in zip(gathering.blocks, gathering.wanted, done, below, strict=True):
            self._blocks.end(block, wanted, done=shards, stored=block.stored & wanted | stored, now=now)
            if block.forgotten:
                if not block.busy:
                    self._free(block.slot)
            elif self._blocks.is_whole(block):
                self._blocks.claim(block, self._blocks.full)
                whole.append(block)
            elif not block.done and not block.busy:
                self._blocks.forget(block)
                self._free(block.slot)
        return whole

    def _drop_overtaken(self, gathering: _Gathering) -> None:
        """Forget blocks that nobody will complete: others cached them before their first shard was in here."""
        left = [block for block in gathering.blocks if self._blocks.get(block.block_id) is block]
        if left:
            ids = np.frombuffer(b"".join(block.block_id for block in left), dtype=np.uint8).reshape(-1, 16)
            cached = np.zeros(len(left), dtype=np.uint8)
            if self._table.probe(ids, cached):
                self.forget(ids[cached == 1])

    # ---- the end

    def forget(self, ids: U8) -> None:
        """Forget what came of these blocks, so that they begin anew."""
        if not len(self._blocks):
            return
        for one in ids:
            block = self._blocks.get(one.tobytes())
            if block is not None and self._blocks.forget(block):
                self._free(block.slot)

    def close(self) -> None:
        """Give up every partial block; nobody may be busy with one."""
        for block in self._blocks:
            self._blocks.forget(block)
            self._free(block.slot)
