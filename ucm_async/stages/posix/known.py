"""What this process knows to be stored, so that a lookup of it needs no system call."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import numpy as np

from ...native import IdTable
from ...types import U8, Bools

__all__ = ["KnownBlocks"]

RECENT_MAX: Final = 1024
"""Removals that are remembered one by one."""

ONE_BY_ONE_MAX: Final = 64
"""Of more blocks at once it is only remembered that there were some: the loop has no time for each."""

_STORED = np.uint64(1)
_ONE = np.ones(1, dtype=np.uint64)


class KnownBlocks:
    """A bounded memory of ids that are stored.

    It may forget, and another process may delete a block behind its back: a load then finds out.

    That a block is *not* stored is never remembered: another process may commit it at any time.

    Attributes
    ----------
    removals
        How often blocks of this store were removed. Whoever looks at a block notes it before, and tells `add`: what was
        there then may have gone since.
    """

    def __init__(self, capacity: int) -> None:
        self._table = IdTable(capacity)
        self._recent: OrderedDict[bytes, int] = OrderedDict()
        self._forgotten = 0
        self.removals = 0

    def __len__(self) -> int:
        return len(self._table)

    def known(self, ids: U8) -> Bools:
        """Bool, shape (n,): which of the ids are known to be stored."""
        out = np.empty(len(ids), dtype=np.uint64)
        self._table.get(ids, out)
        found: Bools = out != 0
        return found

    def prefix(self, ids: U8) -> int:
        """Return how many ids from the first on are known."""
        return self._table.prefix(ids)

    def add(self, ids: U8, removals: int) -> None:
        """Remember blocks that were there when the count of removals was `removals`; not if it has changed since."""
        if removals != self.removals:
            return
        if len(ids) == 1:
            self._table.put(ids, _ONE)
        elif len(ids):
            self._table.put(np.ascontiguousarray(ids), np.full(len(ids), _STORED))

    def removed(self, ids: U8) -> None:
        """Forget blocks that are being removed: call it before, and again when they are gone."""
        self.removals += 1
        self.discard(ids)
        if len(ids) > ONE_BY_ONE_MAX:
            self._forgotten = self.removals
            return
        for block_id in ids:
            self._recent[block_id.tobytes()] = self.removals
            self._recent.move_to_end(block_id.tobytes())
        while len(self._recent) > RECENT_MAX:
            self._forgotten = max(self._forgotten, self._recent.popitem(last=False)[1])

    def removed_since(self, block_id: bytes, removals: int) -> bool:
        """Tell whether a block was removed, or may have been, since the count of removals was `removals`."""
        return max(self._recent.get(block_id, 0), self._forgotten) > removals

    def discard(self, ids: U8) -> None:
        """Forget blocks that were found missing."""
        if len(ids):
            self._table.discard(np.ascontiguousarray(ids))
