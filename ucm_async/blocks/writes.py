"""Which shards of which blocks are in, and who writes the others: the commit by count. Belongs to one loop.

What is known of a block is a row of columns, not an object: whole blocks come by the hundred, and an object for each
would take longer than the rest of a dump's preparations.
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from ..coding import EncodedRows
from ..types import BLOCK_ID_BYTES, I64, U8, Bools

__all__ = ["BlockWrites"]

ENTRIES_MIN: Final = 64

ScalarT = TypeVar("ScalarT", bound=np.generic)

_NONE: Final[I64] = np.zeros(0, dtype=np.int64)


class BlockWrites:
    """The blocks under way of one store: not committed yet.

    A block is committed by whoever brings its last shard, in whatever order and from whatever task the shards came.
    Two dumps of one shard are one write: the second waits for the first. Blocks are told by their **entries**, int64,
    shape (n,), which are positions in the columns and stay what they are until the block is committed or cleared.

    Parameters
    ----------
    shards
        Of a block.
    partial_max
        How many blocks may stay incomplete, with no write of theirs under way.

    Attributes
    ----------
    done, busy
        Bool, shape (entries, shards): in the place where the block is written, and on their way to it.
    checksums
        uint32, shape (entries, shards): of those that are in, or on their way.
    reserved
        Bool, shape (entries,): whether room for a block is accounted for, by the stage.
    file_bytes
        int64, shape (entries,): bytes that its file takes, for the stage to account for; settled when room is reserved.
    slot
        int64, shape (entries,): where it is written to, for stages that have slots; -1: nowhere yet.
    encoded
        By entry, one row each: what the header will say of the shards; nothing of blocks whose shards are all plain.

    Notes
    -----
    The columns are replaced by longer ones when there are more blocks: do not keep them over an ``await``.
    """

    def __init__(self, shards: int, partial_max: int) -> None:
        self._partial_max = partial_max
        self._entries: dict[bytes, int] = {}
        self._free: list[int] = []
        self._idle: dict[int, None] = {}  # incomplete, and nobody writes them; the oldest first
        self._waiters: dict[int, list[asyncio.Future[None]]] = {}
        self._ids: U8 = np.zeros((0, BLOCK_ID_BYTES), dtype=np.uint8)
        self.done: Bools = np.zeros((0, shards), dtype=np.bool_)
        self.busy = self.done
        self.checksums: npt.NDArray[np.uint32] = np.zeros((0, shards), dtype=np.uint32)
        self.reserved: Bools = np.zeros(0, dtype=np.bool_)
        self.file_bytes = self.slot = _NONE
        self.encoded: dict[int, EncodedRows] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def ids(self, entries: I64) -> U8:
        """Return the ids of blocks: uint8, shape (n, 16)."""
        return self._ids[entries]

    def claim(self, ids: U8, wanted: Bools) -> I64:
        """Claim shards of blocks. Of a block that is named twice the first counts; the others are on their way then.

        Shards that are in already are written again; the same id means the same bytes.

        Parameters
        ----------
        ids
            uint8, shape (n, 16), C-contiguous.
        wanted
            Bool, shape (n, shards).

        Returns
        -------
        int64, shape (n,)
            Their entries; -1 where a shard is on its way already: then wait with `changed`.
        """
        names = _names(ids)
        if len(set(names)) < len(names):
            first = list({name: i for i, name in reversed(list(enumerate(names)))}.values())
            entries = np.full(len(ids), -1, dtype=np.int64)
            entries[first] = self.claim(np.ascontiguousarray(ids[first]), wanted[first])
            return entries
        find = self._entries.get
        entries = np.array([find(name, -1) for name in names], dtype=np.int64)
        new = entries < 0
        if new.any():
            entries[new] = self._add(ids[new], names if new.all() else _names(np.ascontiguousarray(ids[new])))
        busy = self.busy[entries]
        whole = (busy | self.done[entries] | wanted).all(axis=1)
        refused = (busy & wanted).any(axis=1) | (busy.any(axis=1) & whole)  # only one may hold the claim that completes
        if refused.any():
            entries[refused] = -1
            mine, wanted = entries[~refused], wanted[~refused]
        else:
            mine = entries
        self.busy[mine] |= wanted
        if self._idle:
            for entry in mine.tolist():
                self._idle.pop(entry, None)
        return entries

    def completes(self, entries: I64, wanted: Bools) -> Bools:
        """Tell which blocks are whole once the claimed shards `wanted`, (n, shards), are in: bool, shape (n,)."""
        return np.asarray((self.done[entries] | wanted).all(axis=1))

    def shards_in(self, entries: I64, wanted: Bools) -> None:
        """Say that claimed shards are in."""
        self.busy[entries] &= ~wanted
        self.done[entries] |= wanted
        self._note_idle(entries)
        self._wake(entries)

    def committed(self, entries: I64) -> None:
        """Say that the blocks have their names: nothing is under way any more."""
        self._forget(entries)

    def failed(self, entries: I64, wanted: Bools, written: Bools) -> Bools:
        """Give claimed shards back; what is in of the shards `written` cannot be relied on any more.

        Returns where nothing is left of the block: bool, shape (n,). Nobody can claim a shard of those until `cleared`:
        the place where they are written is about to go, and the next one has the same name.
        """
        self.busy[entries] &= ~wanted
        self.done[entries] &= ~written
        empty = np.asarray(~(self.busy[entries] | self.done[entries]).any(axis=1))
        self.busy[entries[empty]] = True
        self._note_idle(entries[~empty])
        self._wake(entries[~empty])
        return empty

    def cleared(self, entries: I64) -> None:
        """Say that the place of blocks that `failed` or `close_idle` closed is gone."""
        self._forget(entries)

    def changed(self, block_id: bytes) -> asyncio.Future[None] | None:
        """Return a future for the next change of a block; None if nothing is under way."""
        entry = self._entries.get(block_id)
        if entry is None or not self.busy[entry].any():
            return None
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(entry, []).append(waiter)
        return waiter

    def close_idle(self, ids: U8) -> I64:
        """Close those of the blocks that are incomplete and that nobody is writing, until `cleared`; returns them."""
        if not self._idle:
            return _NONE
        found = (self._entries.get(name, -1) for name in dict.fromkeys(_names(np.ascontiguousarray(ids))))
        entries = np.array([entry for entry in found if entry in self._idle], dtype=np.int64)
        self.busy[entries] = True
        for entry in entries.tolist():
            del self._idle[entry]
        return entries

    def surplus(self) -> U8:
        """Return incomplete blocks above the bound, the oldest first, for the caller to discard: ids, (n, 16)."""
        over = len(self._idle) - self._partial_max
        return self._ids[list(self._idle)[: max(0, over)]]

    # ---- entries

    def _add(self, ids: U8, names: list[bytes]) -> I64:
        while len(self._free) < len(names):
            self._grow()
        entries = self._free[-len(names) :]
        del self._free[-len(names) :]
        self._entries.update(zip(names, entries, strict=True))
        at = np.array(entries)
        self._ids[at] = ids
        for column in (self.done, self.busy, self.checksums, self.reserved, self.file_bytes):
            column[at] = 0
        self.slot[at] = -1
        return at

    def _grow(self) -> None:
        """Make every column twice as long."""
        count = len(self._ids)
        more = max(count, ENTRIES_MIN)
        self._free += range(count, count + more)
        self._ids, self.checksums = _longer(self._ids, more), _longer(self.checksums, more)
        self.done, self.busy = _longer(self.done, more), _longer(self.busy, more)
        self.reserved, self.file_bytes = _longer(self.reserved, more), _longer(self.file_bytes, more)
        self.slot = _longer(self.slot, more)

    def _forget(self, entries: I64) -> None:
        for name in _names(self._ids[entries]):
            del self._entries[name]
        self._wake(entries)
        gone = entries.tolist()
        if self.encoded:
            for entry in gone:
                self.encoded.pop(entry, None)
        self._free += gone

    def _note_idle(self, entries: I64) -> None:
        for entry in entries[~self.busy[entries].any(axis=1)].tolist():
            self._idle[entry] = None

    def _wake(self, entries: I64) -> None:
        if self._waiters:
            for entry in entries.tolist():
                for waiter in self._waiters.pop(entry, ()):
                    if not waiter.done():
                        waiter.set_result(None)


def _names(ids: U8) -> list[bytes]:
    """Return ids, C-contiguous, as bytes."""
    names: list[bytes] = ids.view(f"V{BLOCK_ID_BYTES}").ravel().tolist()
    return names


def _longer(column: npt.NDArray[ScalarT], more: int) -> npt.NDArray[ScalarT]:
    return np.concatenate((column, np.zeros((more, *column.shape[1:]), dtype=column.dtype)))
