"""The short way of one small block: everything that is the same every time is written down beforehand.

An idle store answers a load of one block in little more than the disk takes. There is no time for arrays of one row
then: a hundred small numpy calls cost as much as the read. So a few chains stand ready, with their slots; a load
fills in a path and an address, hands the chain to the engine, and in the end compares the header with the one that
must be there, byte by byte.

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
from ...blocks.header import CHECKSUM_FROM, HEADER, header_template, used_bytes
from ...blocks.layout import BlockLayout
from ...blocks.transfer import Transfer
from ...engines import requests as rq
from ...engines.arena import Arena
from ...native import block_paths
from ...space import WEIGHT_LOAD
from ...types import U8, U64
from .backend import Backend
from .known import KnownBlocks
from .layout import PATH_BYTES, choose_backend

__all__ = ["ExpressLoads"]

CHAINS: Final = 32
"""How many small loads can be on the short way at a time; the next one goes the ordinary way."""

BLOCK_BYTES_MAX: Final = 128 << 10
_WORDS: Final = rq.REQUEST.itemsize // 8
_FD, _OFFSET, _ADDRESS, _LENGTH, _GATE, _RESULT = range(_WORDS)
_OPEN, _READ, _HEAD, _COPY = range(4)


class _Chain:
    """OPEN, READ, CHECKSUM of the header, a COPY for each shard, CLOSE; and the header that must be found."""

    def __init__(self, layout: BlockLayout, namespace: bytes, base: int, header: memoryview) -> None:
        shards = layout.shards
        self.steps = _COPY + shards + 1
        self.requests = rq.new_requests(self.steps)
        self.path = np.zeros(PATH_BYTES, dtype=np.uint8)
        self._words = self.requests.view(np.uint8).data.cast("Q")
        self._results = self.requests.view(np.uint8).data.cast("q")
        self._found = header
        self._expected = bytearray(header_template(namespace, layout.shard_size, shards))
        self._checksums_at = [HEADER.itemsize + 24 * shard + 16 for shard in range(shards)]
        table = self.requests
        table["opcode"] = [
            rq.OP_OPEN | rq.FLAG_CACHED,
            rq.OP_READ | rq.FLAG_LINK,
            rq.OP_CHECKSUM | rq.FLAG_IF_WELL,
            *[rq.OP_COPY | rq.FLAG_IF_WELL] * shards,
            rq.OP_CLOSE | rq.FLAG_LINK,
        ]
        table["address"][_OPEN] = self.path.ctypes.data
        table["address"][_READ] = base
        table["length"][_READ] = layout.file_bytes
        table["address"][_HEAD] = base + CHECKSUM_FROM
        table["length"][_HEAD] = used_bytes(shards) - CHECKSUM_FROM
        copies = table[_COPY : _COPY + shards]
        copies["offset"] = base + layout.header_bytes + layout.shard_size * np.arange(shards)
        copies["length"] = layout.shard_size
        self._wanted = layout.file_bytes
        self._shards = shards
        self._shard_size = layout.shard_size

    def fill(self, ids: U8, dirfd: int, flags: int, target: int, gate: int) -> None:
        """Write down what is different this time."""
        block_paths(ids, self.path)
        words = self._words
        words[0] = (rq.OP_OPEN | rq.FLAG_CACHED) | dirfd << 32
        words[_OFFSET] = flags
        at = _COPY * _WORDS
        for _ in range(self._shards):
            words[at + _ADDRESS] = target
            words[at + _GATE] = gate
            target += self._shard_size
            at += _WORDS
        self._expected[16:32] = ids.data.cast("B")

    @property
    def ids(self) -> U8:
        """The block that was asked for last: uint8, shape (1, 16)."""
        return np.frombuffer(self._expected, dtype=np.uint8, count=16, offset=16).reshape(1, 16).copy()

    def came_well(self) -> bool:
        """Tell whether the block was read, is what it should be, and lies in the caller's memory."""
        results = self._results
        if results[_READ * _WORDS + _RESULT] != self._wanted:
            return False
        expected = self._expected
        expected[8:12] = results[_HEAD * _WORDS + _RESULT].to_bytes(4, "little")
        at = _COPY * _WORDS + _RESULT
        for place in self._checksums_at:
            checksum = results[at]
            if checksum < 0:
                return False
            expected[place : place + 4] = checksum.to_bytes(4, "little")
            at += _WORDS
        return self._found == expected


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
        view = self._arena.view()
        heads = [memoryview(view[slot])[: used_bytes(layout.shards)].toreadonly() for slot in slots.tolist()]
        self._chains = [_Chain(layout, namespace, *slot) for slot in zip(bases, heads, strict=True)]
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
        chain.fill(ids, dirfd, self._flags[backend], int(one.addresses[0, 0]), one.gate)

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
