"""How a block that was gathered shard by shard gets its name, once it is whole."""

from __future__ import annotations

import numpy as np

from ...abc import Lower
from ...native import CLAIM_HIT, CLAIM_MINE
from ...tasks import WHOLE_BLOCK
from ...types import ERROR_OF_STATUS, I64, U8, Bools, Status
from .behind import WriteBehind
from .moves import Mover
from .partial import PartialBlock
from .transbuffer import Claim, TransBuffer
from .waiting import Waiting

__all__ = ["Naming"]


class Naming:
    """Publishes whole blocks. What the stage below does not have yet is written behind."""

    def __init__(self, buffer: TransBuffer, lower: Lower, mover: Mover, waiting: Waiting, behind: WriteBehind) -> None:
        self._buffer = buffer
        self._table = buffer.table
        self._lower = lower
        self._mover = mover
        self._waiting = waiting
        self._behind = behind
        self._sizes = np.array([buffer.block_size], dtype=np.int64)

    async def name(self, blocks: list[PartialBlock], full: int) -> None:
        """Make blocks known that lie whole in slots without a name; the slots stay the caller's.

        Parameters
        ----------
        blocks
            At most as many as `WriteBehind.blocks_max`.
        full
            The bit set of all shards.
        """
        if not blocks:
            return
        ids = np.frombuffer(b"".join(block.block_id for block in blocks), dtype=np.uint8).reshape(-1, 16)
        slots = np.array([block.slot for block in blocks], dtype=np.int64)
        owed = np.array([block.stored != full for block in blocks], dtype=np.bool_)
        reserved = int(np.count_nonzero(owed))
        await self._behind.reserve(reserved)
        try:
            claim = await self._buffer.claim(ids)
            mine = claim.states == CLAIM_MINE
            await self._publish(ids, slots, claim, mine, owed)
            reserved -= int(np.count_nonzero(mine & owed))
            hit = claim.states == CLAIM_HIT
            self._table.release(claim.slots[hit])
            await self._store(ids, slots, owed & ~mine & ~hit)
        finally:
            self._behind.give_back(reserved)

    async def _publish(self, ids: U8, slots: I64, claim: Claim, mine: Bools, owed: Bools) -> None:
        """Copy blocks into the slots that have their names, and publish these."""
        try:
            await self._mover.copy(
                self._buffer.addresses(slots[mine]), self._buffer.addresses(claim.slots[mine]), int(self._sizes[0])
            )
        except BaseException:
            self._buffer.give_back(claim)
            raise
        debts = mine & owed
        self._table.publish(claim.slots[mine & ~owed])
        self._table.publish(claim.slots[debts], True, True)
        self._waiting.look()
        if debts.any():
            self._behind.add(np.ascontiguousarray(ids[debts]), claim.slots[debts], claim.generations[debts])

    async def _store(self, ids: U8, slots: I64, chosen: Bools) -> None:
        """Write blocks below that somebody else has a slot for, or nobody."""
        if not chosen.any():
            return
        wanted = np.ascontiguousarray(ids[chosen])
        places = self._buffer.addresses(slots[chosen]).reshape(-1, 1)
        status = await self._lower.dump(wanted, np.full(len(wanted), WHOLE_BLOCK), places, self._sizes, "stored")
        for at in np.flatnonzero(status != Status.OK).tolist():
            why = "its shards were taken, but it could not be written to the stage below"
            self._behind.failed(ERROR_OF_STATUS[Status(int(status[at]))](why, block_id=wanted[at].tobytes()))
