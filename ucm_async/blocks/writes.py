"""Which shards of which blocks are in, and who writes the others: the commit by count. Belongs to one loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..coding import EncodedRows

__all__ = ["BlockWrite", "BlockWrites"]


@dataclass(slots=True)
class BlockWrite:
    """A block that is not committed yet.

    Attributes
    ----------
    done, busy
        Bit sets of shards: in the file, and on their way to it.
    checksums
        uint32, shape (shards,): of those that are in, or on their way.
    reserved
        Whether room for it is accounted for, by the stage.
    file_bytes
        Bytes that its file takes, for the stage to account for; settled when room is reserved.
    encoded
        One row: what the header will say of each shard; None as long as all are plain.
    slot
        Where it is written to, for stages that have slots; -1: nowhere yet.
    """

    block_id: bytes
    checksums: npt.NDArray[np.uint32]
    done: int = 0
    busy: int = 0
    reserved: bool = False
    file_bytes: int = 0
    encoded: EncodedRows | None = None
    slot: int = -1
    waiters: list[asyncio.Future[None]] = field(default_factory=list)


class BlockWrites:
    """The blocks under way of one store.

    A block is committed by whoever brings its last shard, in whatever order and from whatever task the shards came.
    Two dumps of one shard are one write: the second waits for the first.

    Parameters
    ----------
    shards
        Of a block.
    partial_max
        How many blocks may stay incomplete, with no write of theirs under way.
    """

    def __init__(self, shards: int, partial_max: int) -> None:
        self.full = (1 << shards) - 1
        self._shards = shards
        self._partial_max = partial_max
        self._writes: OrderedDict[bytes, BlockWrite] = OrderedDict()

    def __len__(self) -> int:
        return len(self._writes)

    def bits(self, shards: list[int]) -> int:
        """Return shard indexes as a bit set; -1 is every shard."""
        if shards[0] < 0:
            return self.full
        bits = 0
        for shard in shards:
            bits |= 1 << shard
        return bits

    def claim(self, block_id: bytes, wanted: int) -> BlockWrite | None:
        """Claim the shards `wanted` of a block. None if one is on its way already: then wait with `changed`.

        Shards that are in the file already are written again; the same id means the same bytes.
        """
        write = self._writes.get(block_id)
        if write is None:
            write = self._writes[block_id] = BlockWrite(block_id, np.zeros(self._shards, dtype=np.uint32))
        if write.busy & wanted or (write.busy and write.done | write.busy | wanted == self.full):
            return None  # the second case: only one may hold the claim that completes the block
        write.busy |= wanted
        return write

    def completes(self, write: BlockWrite, wanted: int) -> bool:
        """Tell whether the block is whole once the claimed shards `wanted` are in."""
        return write.done | wanted == self.full

    def shards_in(self, write: BlockWrite, wanted: int) -> None:
        """Say that claimed shards are in the file."""
        write.busy &= ~wanted
        write.done |= wanted
        self._writes.move_to_end(write.block_id)
        self._wake(write)

    def committed(self, write: BlockWrite) -> None:
        """Say that the block has its name: nothing is under way any more."""
        self._forget(write)

    def failed(self, write: BlockWrite, wanted: int, written: int) -> bool:
        """Give claimed shards back; what is in the file of the shards `written` cannot be relied on any more.

        Returns True if nothing is left of the block. Then nobody can claim a shard of it until `cleared`: its file is
        about to go, and the next one has the same name.
        """
        write.busy &= ~wanted
        write.done &= ~written
        if write.busy or write.done:
            self._wake(write)
            return False
        write.busy = self.full
        return True

    def cleared(self, write: BlockWrite) -> None:
        """Say that the file of a block that `failed` or `close_idle` closed is gone."""
        self._forget(write)

    def changed(self, block_id: bytes) -> asyncio.Future[None] | None:
        """Return a future for the next change of a block; None if nothing is under way."""
        write = self._writes.get(block_id)
        if write is None or not write.busy:
            return None
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        write.waiters.append(waiter)
        return waiter

    def close_idle(self, block_id: bytes) -> BlockWrite | None:
        """Close an incomplete block that nobody is writing, until `cleared`; returns it if there was one."""
        write = self._writes.get(block_id)
        if write is None or write.busy:
            return None
        write.busy = self.full
        return write

    def surplus(self) -> list[BlockWrite]:
        """Return incomplete blocks above the bound, the oldest first; the caller discards them and their files."""
        if len(self._writes) <= self._partial_max:
            return []
        idle = [write for write in self._writes.values() if not write.busy]
        return idle[: max(0, len(idle) - self._partial_max)]

    def _forget(self, write: BlockWrite) -> None:
        self._writes.pop(write.block_id, None)
        self._wake(write)

    @staticmethod
    def _wake(write: BlockWrite) -> None:
        for waiter in write.waiters:
            if not waiter.done():
                waiter.set_result(None)
        write.waiters.clear()
