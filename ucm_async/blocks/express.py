"""The short way of one small block: everything that is the same every time is written down beforehand.

An idle store answers a load of one block in little more than the disk takes. There is no time for arrays of one row
then: a hundred small numpy calls cost as much as the read. So a few chains stand ready, with their slots and with the
arrays of the native calls that fill them in and look at what became of them.

What is not as it should be (missing, damaged, short, to be opened from a cold disk) goes the ordinary way, which
finds out why.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from ..abc import SmallLoad
from ..engines import requests as rq
from ..engines.arena import Arena
from ..native import LoadChains
from ..tasks import cut_row
from ..types import U8, U64
from .header import header_template
from .layout import BlockLayout
from .transfer import Transfer

__all__ = ["ADDRESS", "OFFSET", "READ_AT", "BlockExpress", "ExpressChain"]

CHAINS: Final = 32
"""How many small loads can be on the short way at a time; the next one goes the ordinary way."""

BLOCK_BYTES_MAX: Final = 128 << 10

READ_AT: Final = rq.REQUEST.itemsize // 8
"""Where the words of the read begin, after those of the step that leads to the block."""

OFFSET, ADDRESS = 1, 2
"""Words of a request; the first one holds opcode and descriptor."""

_WHOLE: Final = np.full(1, -1, dtype=np.int64)


class ExpressChain:
    """A step that leads to the block, READ, CHECKSUM of the header, a COPY for each shard, and a step that ends it.

    Attributes
    ----------
    requests, steps
        For the engine.
    words
        The same as 64-bit words, for the stage: to write these is quicker than to write fields.
    ids
        uint8, shape (1, 16): what is loaded.
    place
        Whatever the stage wants to be kept while the block is read.
    """

    def __init__(self, layout: BlockLayout, native: LoadChains, base: int) -> None:
        self._native = native
        self._runs = cut_row((layout.block_size,), layout.shard_size).runs
        self._sizes = np.array([layout.block_size])
        self._bases = np.array([base], dtype=np.uint64)
        self._gates = np.zeros(1, dtype=np.uint64)
        self._wanted = np.zeros(1, dtype=np.int64)
        self.steps = 4 + len(self._runs)
        self.requests = rq.new_requests(self.steps)
        self.words = self.requests.view(np.uint8).data.cast("Q")
        self.ids: U8 = np.zeros((1, 16), dtype=np.uint8)
        self.place: Any = None

    def fill(self, ids: U8, addresses: U64, gate: int) -> None:
        """Write down the load of a block, but not where it lies."""
        self.ids = ids
        self._gates[0] = gate
        self._native.write(
            self.requests, self._wanted, None, _WHOLE, self._bases, addresses, self._sizes, self._gates, self._runs
        )

    def came_well(self) -> bool:
        """Tell whether the block was read, is what it should be, and lies in the caller's memory."""
        return self._native.all_good(self.requests, self._wanted, self.ids, _WHOLE, self._bases, self._runs)


class BlockExpress(ABC):
    """Serves loads of one whole small block into one piece of memory. Made once for a store, on its loop.

    A subclass says where blocks lie.
    """

    def __init__(self, layout: BlockLayout, namespace: bytes, transfer: Transfer) -> None:
        self._loop = asyncio.get_running_loop()
        self._layout = layout
        self._transfer = transfer
        self._arena = Arena(layout.file_bytes, CHAINS)
        native = LoadChains(
            header_template(namespace, layout.shard_size, layout.shards),
            layout.header_bytes,
            layout.shard_size,
            layout.block_size,
            0,
        )
        self._chains = [self._chain(layout, native, base) for base in self._arena.address(np.arange(CHAINS)).tolist()]
        self._idle = list(self._chains)

    def _chain(self, layout: BlockLayout, native: LoadChains, base: int) -> ExpressChain:
        return ExpressChain(layout, native, base)

    # ---- what a stage knows

    @abstractmethod
    def _aim(self, chain: ExpressChain) -> bool:
        """Write down where the block of a chain, filled otherwise, lies; False if that must be found out first."""

    @abstractmethod
    def _came(self, ids: U8, place: Any) -> None:
        """Take note of a block that was read and is good; `place` is what `_aim` has left at its chain."""

    # ---- loading

    def in_transfer(self) -> list[U8]:
        """Return the ids of blocks that are being read, one in each array."""
        return [chain.ids for chain in self._chains if chain not in self._idle]

    @staticmethod
    def serves(layout: BlockLayout) -> bool:
        """Tell whether blocks of this layout are small enough."""
        return layout.block_size <= BLOCK_BYTES_MAX

    def begin(self, one: SmallLoad, otherwise: Callable[[], None]) -> bool:
        """Start a load; see `ucm_async.abc.Stage.begin_load`."""
        ids = one.ids
        if len(ids) != 1 or not self._idle or one.piece_sizes != (self._layout.block_size,):
            return False
        chain = self._idle.pop()
        chain.fill(ids, one.addresses, one.gate)

        def done() -> None:
            well = chain.came_well()
            place = self._put_back(chain)
            if well:
                one.succeed()
                self._loop.call_soon(self._note, ids, place)  # after the caller, who is waiting
            else:
                otherwise()

        if self._aim(chain) and self._transfer.engine.submit_small(chain.requests, chain.steps, done):
            return True
        self._put_back(chain)
        return False

    def _put_back(self, chain: ExpressChain) -> Any:
        place, chain.place = chain.place, None
        self._idle.append(chain)
        return place

    def _note(self, ids: U8, place: Any) -> None:
        self._came(ids, place)
        self._transfer.counts["express"] += 1

    def close(self) -> None:
        """Free the slots; nothing may be under way."""
        self._idle.clear()
        self._chains.clear()
        self._arena.close()
