"""Round the cache: rows that got no slot are read into, or written from, a little memory of this process alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import numpy as np

from ...abc import Batch, Lower
from ...engines.arena import SLOT_ALIGNMENT, Arena
from ...errors import StoreError
from ...tasks import reasons_at, reasons_of
from ...types import I64, U8, U64, Durability, Reasons, Status
from .moves import Mover

__all__ = ["BYPASS_BYTES", "Bypass"]

BYPASS_BYTES: Final = 16 << 20
"""Memory of one lane's bypass, at most: enough to keep a disk busy, too little to be missed."""

SLOTS_MIN: Final = 4


class Bypass:
    """Private slots that hold as many rows each as fit. Loads and dumps have one each.

    Parameters
    ----------
    arena
        Its slots hold a block each; owned by the bypass.
    lower
        The stage below.
    mover
        Copies between the slots and the callers.
    """

    def __init__(self, arena: Arena, lower: Lower, mover: Mover) -> None:
        self._arena = arena
        self._lower = lower
        self._mover = mover
        self.rows = 0

    @classmethod
    async def create(cls, slot_bytes: int, bytes_max: int, lower: Lower, mover: Mover) -> Bypass:
        """Make the slots: as many as `bytes_max` and `BYPASS_BYTES` allow, but a few in any case."""
        slots = max(SLOTS_MIN, min(bytes_max, BYPASS_BYTES) // slot_bytes)
        return cls(await Arena.create(slot_bytes, slots), lower, mover)

    async def load(self, batch: Batch, rows: I64) -> None:
        """Bring rows of a load, and report each. Into registered memory they are read without a copy."""
        self.rows += len(rows)
        if batch.direct:
            rows = rows[batch.live()[rows]]
            status, reasons = await self._lower.load(*_names(batch, rows), batch.addresses[rows], batch.piece_sizes)
            batch.report(rows, status, reasons)
            return
        step = self._rows_at_a_time(batch)
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            wanted = part[batch.live()[part]]
            async with self._places(batch, len(wanted)) as places:
                names, sizes = _names(batch, wanted), _row_bytes(batch)
                status, reasons = await self._lower.load(*names, places.reshape(-1, 1), sizes)
                there = status == Status.OK
                batch.report(wanted[~there], status[~there], reasons_of(reasons, np.flatnonzero(~there)))
                await self._mover.deliver(batch, wanted[there], places[there])

    async def dump(self, batch: Batch, rows: I64, durability: Durability) -> tuple[U8, Reasons]:
        """Take rows of a dump; returns a status each, and reasons, when the stage below has them, and reports nothing.

        Registered memory is written as it lies.
        """
        self.rows += len(rows)
        status = np.full(len(rows), Status.CANCELLED, dtype=np.uint8)
        reasons: dict[int, StoreError] = {}
        step = len(rows) if batch.direct else self._rows_at_a_time(batch)
        for at in range(0, len(rows), max(step, 1)):
            wanted = at + np.flatnonzero(batch.live()[rows[at : at + step]])
            if batch.direct:
                places, sizes = batch.addresses[rows[wanted]], batch.piece_sizes
                status[wanted], why = await self._lower.dump(*_names(batch, rows[wanted]), places, sizes, durability)
                reasons.update(reasons_at(why, wanted))
            else:
                reasons.update(await self._dump(batch, rows, wanted, status, durability))
        return status, reasons

    async def _dump(self, batch: Batch, rows: I64, wanted: I64, status: U8, durability: Durability) -> Reasons:
        """Take some of `rows` through the slots; fills in their `status`."""
        async with self._places(batch, len(wanted)) as places:
            let_in = await self._mover.take(batch, rows[wanted], places)
            taken, places_of_taken = wanted[let_in], places[let_in].reshape(-1, 1)
            status[taken], why = await self._lower.dump(
                *_names(batch, rows[taken]), places_of_taken, _row_bytes(batch), durability
            )
            return reasons_at(why, taken)

    def _rows_at_a_time(self, batch: Batch) -> int:
        """So many rows leave slots for others."""
        return max(1, self._arena.slots // 2) * self._rows_per_slot(batch)

    def _rows_per_slot(self, batch: Batch) -> int:
        return self._arena.slot_bytes // _aligned_row(batch)

    @asynccontextmanager
    async def _places(self, batch: Batch, count: int) -> AsyncIterator[U64]:
        """Lease memory for so many rows: uint64, shape (count,), each aligned for O_DIRECT."""
        each = self._rows_per_slot(batch)
        slots = await self._arena.lease(-(-count // each))
        try:
            number = np.arange(count)
            within = (number % each * _aligned_row(batch)).astype(np.uint64)
            yield self._arena.address(slots)[number // each] + within
        finally:
            self._arena.release(slots)

    def statistics(self) -> dict[str, object]:
        """Return plain counters."""
        return {"rows": self.rows, **self._arena.statistics()}

    def close(self) -> None:
        """Free the memory; nothing may be under way."""
        self._arena.close()


def _names(batch: Batch, rows: I64) -> tuple[U8, I64]:
    return np.ascontiguousarray(batch.ids[rows]), batch.shards[rows]


def _row_bytes(batch: Batch) -> I64:
    return np.array([batch.piece_sizes.sum()], dtype=np.int64)


def _aligned_row(batch: Batch) -> int:
    return -(-int(batch.piece_sizes.sum()) // SLOT_ALIGNMENT) * SLOT_ALIGNMENT
