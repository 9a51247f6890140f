"""Blocks that are stored and that this store cannot serve: their codec is not here, or they lost what it insists on.

They are fine, and other stores may read them, so they stay until somebody has something better: they are misses here,
and the next dump of one removes it and stores it anew.
"""

from __future__ import annotations

import asyncio
from typing import Final

import numpy as np

from ...abc import Lower
from ...coding import EncodedRows
from ...engines.arena import Arena
from ...native import IdTable
from ...types import U8, Bools, Status
from .codecs import can_decode

__all__ = ["Unserved"]

REMEMBERED_MAX: Final = 1 << 14
"""Ids; what is forgotten is found out again by the next load."""

_ONE: Final = np.uint64(1)


class Unserved:
    """A bounded memory of the blocks that loads found and could not serve. Belongs to one loop.

    Parameters
    ----------
    lower
        The stage below.
    slots
        Of the dump lane, to look at a block again.
    refuse_lossy
        Whether blocks that were stored with loss are refused.
    """

    def __init__(self, lower: Lower, slots: Arena, *, refuse_lossy: bool) -> None:
        self._lower = lower
        self._slots = slots
        self.refuse_lossy = refuse_lossy
        self._table = IdTable(REMEMBERED_MAX)
        self._making_way = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._table)

    def add(self, ids: U8) -> None:
        """Remember blocks: uint8, shape (n, 16)."""
        self._table.put(np.ascontiguousarray(ids), np.full(len(ids), _ONE))

    def discard(self, ids: U8) -> None:
        """Forget blocks, which were served, or removed."""
        if len(self._table):
            self._table.discard(np.ascontiguousarray(ids))

    def among(self, ids: U8) -> Bools:
        """Tell which of the blocks are remembered: bool, shape (n,)."""
        out = np.zeros(len(ids), dtype=np.uint64)
        if len(self._table):
            self._table.get(np.ascontiguousarray(ids), out)
        return np.asarray(out != 0)

    async def make_way(self, ids: U8) -> int:
        """Remove those of the blocks that are in the way of a dump; returns how many.

        Each is looked at once more: another store may have stored it anew. One dump at a time does this, for a second
        one would remove what the first has begun to write.
        """
        if not self.among(ids).any():
            return 0
        removed = 0
        async with self._making_way:
            suspects = np.ascontiguousarray(ids[self.among(ids)])
            step = max(1, self._slots.slots // 4)
            for start in range(0, len(suspects), step):
                removed += await self._remove(suspects[start : start + step])
        return removed

    async def _remove(self, ids: U8) -> int:
        leased = await self._slots.lease(len(ids))
        try:
            addresses = self._slots.address(leased).reshape(-1, 1)
            status, encoded, _ = await self._lower.load_encoded(ids, addresses, self._slots.slot_bytes)
        finally:
            self._slots.release(leased)
        useless = np.ascontiguousarray(ids[(status == Status.OK) & await asyncio.to_thread(self._useless, encoded)])
        if len(useless):
            await self._lower.delete(useless)
        self.discard(ids)
        return len(useless)

    def _useless(self, encoded: EncodedRows) -> Bools:
        """Tell which blocks cannot be served. A codec may have to be imported: not for the loop."""
        unknown = [number for number in np.unique(encoded.codecs).tolist() if not can_decode(number)]
        lossy = encoded.lossy if self.refuse_lossy else np.zeros(len(encoded), dtype=np.bool_)
        return np.asarray(lossy | np.isin(encoded.codecs, unknown).any(axis=1))
