"""How a block that was gathered shard by shard gets its name, once it is whole."""

from __future__ import annotations

import asyncio
from typing import Final

import numpy as np

from ...native import CLAIM_BUSY, CLAIM_HIT, CLAIM_MINE
from ...types import I64, U8, Bools, Status
from .behind import WriteBehind
from .below import Below
from .partial import NO_SLOT, PartialBlock
from .transbuffer import BUSY_NAPS_S, TransBuffer
from .waiting import Waiting

__all__ = ["Naming"]


class Naming:
    """Publishes whole blocks. What the stage below does not have yet is written behind."""

    def __init__(self, buffer: TransBuffer, below: Below, waiting: Waiting, behind: WriteBehind) -> None:
        self._table = buffer.table
        self._below = below
        self._waiting = waiting
        self._behind = behind

    async def name(self, blocks: list[PartialBlock], full: int) -> None:
        """Make blocks known that lie whole in slots without a name.

        Parameters
        ----------
        blocks
            At most as many as `WriteBehind.blocks_max`. Those that got their names have `NO_SLOT` afterwards; the slots
            of the others, whose names are taken, are still the caller's.
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
            states = await self._rename(ids, slots)
            named = states == CLAIM_MINE
            debts = named & owed
            self._table.publish(slots[named & ~owed])
            self._table.publish(slots[debts], True, True)
            self._waiting.look()
            for at in np.flatnonzero(named).tolist():
                blocks[at].slot = NO_SLOT
            if debts.any():
                generations = np.array([block.generation for block in blocks], dtype=np.uint32)
                reserved -= int(np.count_nonzero(debts))
                self._behind.add(np.ascontiguousarray(ids[debts]), slots[debts], generations[debts])
            await self._store(ids, slots, owed & ~named & (states != CLAIM_HIT))
        finally:
            self._behind.give_back(reserved)

    async def _rename(self, ids: U8, slots: I64) -> U8:
        """Give slots their names; uint8 (n,): what became of each, see `BlockTable.rename`."""
        states = np.full(len(ids), CLAIM_BUSY, dtype=np.uint8)
        for nap in (0.0, *BUSY_NAPS_S):
            again = np.flatnonzero(states == CLAIM_BUSY)
            if not len(again):
                break
            if nap:
                await asyncio.sleep(nap)
            told = states[again]
            self._table.rename(slots[again], np.ascontiguousarray(ids[again]), told)
            states[again] = told
        return states

    async def _store(self, ids: U8, slots: I64, chosen: Bools) -> None:
        """Write blocks below that somebody else has a slot for."""
        if not chosen.any():
            return
        wanted = ids[chosen]
        status, reasons = await self._below.dump(wanted, slots[chosen], "stored")
        for at in np.flatnonzero(status != Status.OK).tolist():
            self._behind.not_written(_WHY, wanted[at].tobytes(), Status(int(status[at])), reasons.get(at))


_WHY: Final = "its shards were taken, but it could not be written to the stage below"
