"""The short way of one small block: everything that is the same every time is written down beforehand.

An idle store answers a load of one block in little more than the disk takes. There is no time for arrays of one row
then: a hundred small numpy calls cost as much as the read. So a few chains stand ready, with their slots and with the
arrays of the native calls that fill them in and look at what became of them.

What is not as it should be (missing, damaged, short, to be opened from a cold disk) goes the ordinary way, which
finds out why.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

import numpy as np

from ...abc import SmallLoad
from ...blocks.header import header_template
from ...blocks.layout import BlockLayout
from ...blocks.transfer import Transfer
from ...engines import requests as rq
from ...engines.arena import Arena
from ...native import LoadChains, block_paths
from ...space import WEIGHT_LOAD
from ...tasks import cut_row
from ...types import U8, U64
from .backend import Backend
from .known import KnownBlocks
from .layout import PATH_BYTES, choose_backend

__all__ = ["ExpressLoads"]

CHAINS: Final = 32
"""How many small loads can be on the short way at a time; the next one goes the ordinary way."""

BLOCK_BYTES_MAX: Final = 128 << 10
_WORDS: Final = rq.REQUEST.itemsize // 8
_OFFSET, _ADDRESS = 1, 2
"""Words of a request; the first one holds opcode and descriptor."""

_OPEN: Final = rq.OP_OPEN | rq.FLAG_CACHED
_READ: Final = rq.OP_READ | rq.FLAG_LINK
_CLOSE: Final = rq.OP_CLOSE | rq.FLAG_LINK
_WHOLE: Final = np.full(1, -1, dtype=np.int64)


class _Chain:
    """OPEN, READ, CHECKSUM of the header, a COPY for each shard, CLOSE; and what its native calls take."""

    def __init__(self, layout: BlockLayout, native: LoadChains, base: int) -> None:
        self._native = native
        self._runs = cut_row((layout.block_size,), layout.shard_size).runs
        self._sizes = np.array([layout.block_size])
        self._bases = np.array([base], dtype=np.uint64)
        self._gates = np.zeros(1, dtype=np.uint64)
        self._wanted = np.zeros(1, dtype=np.int64)
        self.steps = 4 + len(self._runs)
        self.requests = rq.new_requests(self.steps)
        self._words = self.requests.view(np.uint8).data.cast("Q")
        self._path = np.zeros(PATH_BYTES, dtype=np.uint8)
        self._path_at = self._path.ctypes.data
        self.ids: U8 = np.zeros((1, 16), dtype=np.uint8)

    def fill(self, ids: U8, dirfd: int, flags: int, addresses: U64, gate: int) -> None:
        """Write down the load of a block."""
        self.ids = ids
        self._gates[0] = gate
        self._native.write(
            self.requests, self._wanted, None, _WHOLE, self._bases, addresses, self._sizes, self._gates, self._runs
        )
        block_paths(ids, self._path)
        words = self._words
        words[0], words[_OFFSET], words[_ADDRESS] = _OPEN | dirfd << 32, flags, self._path_at
        words[_WORDS] = _READ
        words[-_WORDS] = _CLOSE

    def came_well(self) -> bool:
        """Tell whether the block was read, is what it should be, and lies in the caller's memory."""
        return self._native.all_good(self.requests, self._wanted, self.ids, _WHOLE, self._bases, self._runs)


class ExpressLoads:
    """Serves loads of one whole small block into one piece of memory. Made once for a store, on its loop."""

    def __init__(
        self,
        layout: BlockLayout,
        namespace: bytes,
        backends: list[Backend],
        seeds: U64,
        known: KnownBlocks,
        touch: Callable[[U8, float], None],
        transfer: Transfer,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._layout = layout
        self._seeds = seeds
        self._known = known
        self._touch = touch
        self._transfer = transfer
        self._dirfds = [backend.dirfd for backend in backends]
        self._flags = [os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if backend.direct else 0) for backend in backends]
        self._arena = Arena(layout.file_bytes, CHAINS)
        slots = np.arange(CHAINS)
        bases = self._arena.address(slots).tolist()
        native = LoadChains(
            header_template(namespace, layout.shard_size, layout.shards),
            layout.header_bytes,
            layout.shard_size,
            layout.block_size,
            0,
        )
        self._chains = [_Chain(layout, native, base) for base in bases]
        self._idle = list(self._chains)

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
        backend = 0 if len(self._dirfds) == 1 else int(choose_backend(ids, self._seeds)[0])
        dirfd = self._dirfds[backend]
        if dirfd < 0:
            return False
        chain = self._idle.pop()
        removals = self._known.removals
        chain.fill(ids, dirfd, self._flags[backend], one.addresses, one.gate)

        def done() -> None:
            well = chain.came_well()
            self._idle.append(chain)
            if well:
                one.succeed()
                self._loop.call_soon(self._note, ids, removals)  # after the caller, who is waiting
            else:
                otherwise()

        if self._transfer.engine.submit_small(chain.requests, chain.steps, done):
            return True
        self._idle.append(chain)
        return False

    def _note(self, ids: U8, removals: int) -> None:
        self._known.add(ids, removals)
        self._touch(ids, WEIGHT_LOAD)
        self._transfer.counts["express"] += 1

    def close(self) -> None:
        """Free the slots; nothing may be under way."""
        self._idle.clear()
        self._chains.clear()
        self._arena.close()
