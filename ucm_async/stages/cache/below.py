"""Whole blocks between their slots and the stage below, which reads and writes the slots themselves."""

from __future__ import annotations

import numpy as np

from ...abc import Lower
from ...tasks import WHOLE_BLOCK
from ...types import I64, U8, U64, Durability, Reasons
from .transbuffer import TransBuffer

__all__ = ["Below"]


class Below:
    """Calls the stage below for blocks that lie in slots. Whoever calls owns the slots until the call has ended.

    Parameters
    ----------
    buffer
        Whose slots they are.
    lower
        The stage below.
    """

    def __init__(self, buffer: TransBuffer, lower: Lower) -> None:
        self._buffer = buffer
        self._lower = lower
        self._sizes = np.array([buffer.block_size], dtype=np.int64)

    async def load(self, ids: U8, slots: I64) -> tuple[U8, Reasons]:
        """Read blocks, uint8 (n, 16), into `slots`, int64 (n,); see `ucm_async.abc.Lower.load`."""
        return await self._lower.load(*_named(ids), self._places(slots), self._sizes)

    async def dump(self, ids: U8, slots: I64, durability: Durability) -> tuple[U8, Reasons]:
        """Write blocks, uint8 (n, 16), from `slots`, int64 (n,); see `ucm_async.abc.Lower.dump`."""
        return await self._lower.dump(*_named(ids), self._places(slots), self._sizes, durability)

    def _places(self, slots: I64) -> U64:
        return self._buffer.addresses(slots).reshape(-1, 1)


def _named(ids: U8) -> tuple[U8, I64]:
    return np.ascontiguousarray(ids), np.full(len(ids), WHOLE_BLOCK, dtype=np.int64)
