"""Blocks that come shard by shard: which shards are in, who writes the others, and when a block is whole.

Knows neither slots nor stages; belongs to one loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["NO_SLOT", "PartialBlock", "PartialBlocks"]

NO_SLOT = -1


@dataclass(slots=True, eq=False)
class PartialBlock:
    """A block of which not all shards are in.

    Attributes
    ----------
    slot, generation
        Where its shards are gathered; `NO_SLOT` if they go round the cache.
    done
        Bit set of the shards that are in.
    stored
        Bit set of those that the stage below has.
    busy
        Bit set of those on their way.
    touched
        Loop time at which a shard came last.
    forgotten
        True once it was deleted while somebody was busy with it.
    """

    block_id: bytes
    slot: int = NO_SLOT
    generation: int = 0
    done: int = 0
    stored: int = 0
    busy: int = 0
    touched: float = 0.0
    forgotten: bool = False
    waiters: list[asyncio.Future[None]] = field(default_factory=list)


class PartialBlocks:
    """The partial blocks of one store.

    Parameters
    ----------
    shards
        Of a block.
    blocks_max
        How many there may be, but for those that somebody is busy with.
    """

    def __init__(self, shards: int, blocks_max: int) -> None:
        self.full = (1 << shards) - 1
        self._blocks_max = blocks_max
        self._blocks: OrderedDict[bytes, PartialBlock] = OrderedDict()  # what was touched last comes last

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block_id: bytes) -> bool:
        return block_id in self._blocks

    def __iter__(self) -> Iterator[PartialBlock]:
        return iter(list(self._blocks.values()))

    def get(self, block_id: bytes) -> PartialBlock | None:
        """Return a block, None if nothing of it is in or on its way."""
        return self._blocks.get(block_id)

    def begin(self, block_id: bytes, slot: int = NO_SLOT, generation: int = 0) -> PartialBlock:
        """Make a block that is not there yet."""
        assert block_id not in self._blocks
        block = self._blocks[block_id] = PartialBlock(block_id, slot, generation)
        return block

    def claim(self, block: PartialBlock, shards: int) -> bool:
        """Claim shards, a bit set; False if one of them is on its way already: then wait for a `change`."""
        if block.busy & shards:
            return False
        block.busy |= shards
        return True

    def end(self, block: PartialBlock, shards: int, *, done: int, stored: int, now: float) -> None:
        """End a claim: of the shards that were claimed those in `done` are in, and those in `stored` also below."""
        assert block.busy & shards == shards, "ended without a claim"
        block.busy &= ~shards
        block.done = block.done & ~shards | done
        block.stored = block.stored & ~shards | stored
        block.touched = now
        if self._blocks.get(block.block_id) is block:
            self._blocks.move_to_end(block.block_id)
        self._wake(block)

    def is_whole(self, block: PartialBlock) -> bool:
        """Tell whether all shards are in and nobody is busy with it."""
        return block.done == self.full and not block.busy

    def forget(self, block: PartialBlock) -> bool:
        """Forget a block, so that it begins anew; False if somebody is busy with it, who sees it is `forgotten`."""
        if self._blocks.get(block.block_id) is block:
            del self._blocks[block.block_id]
        block.forgotten = True
        self._wake(block)
        return not block.busy

    def change(self, block_id: bytes) -> asyncio.Future[None] | None:
        """Return a future for the next change of a block; None if nobody is busy with it."""
        block = self._blocks.get(block_id)
        if block is None or not block.busy:
            return None
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        block.waiters.append(waiter)
        return waiter

    def idle_since(self, time: float, *, in_slots: bool) -> PartialBlock | None:
        """Return the block that was touched longest ago, before `time`, and that nobody is busy with."""
        for block in self._blocks.values():
            if block.touched >= time:
                return None
            if not block.busy and (block.slot != NO_SLOT or not in_slots):
                return block
        return None

    def surplus(self) -> list[PartialBlock]:
        """Return the blocks above the bound that nobody is busy with, the oldest first."""
        excess = len(self._blocks) - self._blocks_max
        idle = (block for block in self._blocks.values() if not block.busy)
        return [block for block, _ in zip(idle, range(excess), strict=False)] if excess > 0 else []

    @staticmethod
    def _wake(block: PartialBlock) -> None:
        for waiter in block.waiters:
            if not waiter.done():
                waiter.set_result(None)
        block.waiters.clear()
