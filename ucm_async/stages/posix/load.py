"""Loading from files: a chain opens the block's file, reads, checks and gathers, and closes it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

import numpy as np

from ...blocks.encoded_loading import EncodedBlockLoader
from ...blocks.layout import BlockLayout
from ...blocks.loading import Located
from ...blocks.transfer import Transfer, status_of_errno
from ...engines import requests as rq
from ...errors import BackendIOError, StoreError
from ...space import WEIGHT_LOAD
from ...types import I64, U8, U64, Status
from .known import KnownBlocks
from .layout import choose_backend
from .space import BlockSpace

__all__ = ["Loader"]

CACHED_OPENS_MAX: Final = 2
"""So few blocks are first opened in the hope that no disk is needed, which an engine can do on the loop itself."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class FilePlace:
    """Where blocks lie that are being read; as long as there is one of these, its blocks are in transfer.

    Attributes
    ----------
    ids
        uint8, shape (g, 16).
    backend
        int64, shape (g,).
    removals
        As `KnownBlocks.removals` was before anything was read.
    """

    ids: U8
    backend: I64
    removals: int


class Loader(EncodedBlockLoader[FilePlace]):
    """Brings batches from the files of several backends."""

    def __init__(
        self,
        layout: BlockLayout,
        namespace: bytes,
        seeds: U64,
        known: KnownBlocks,
        space: BlockSpace,
        transfer: Transfer,
    ) -> None:
        super().__init__(layout, namespace, transfer)
        self._files = space.files
        self._seeds = seeds
        self._known = known
        self._space = space
        self._places: WeakSet[FilePlace] = WeakSet()

    def in_transfer(self) -> list[U8]:
        """Return the ids of blocks that are being read."""
        return [place.ids for place in self._places]

    def _locate(self, ids: U8) -> FilePlace:
        place = FilePlace(ids, choose_backend(ids, self._seeds), self._known.removals)
        self._places.add(place)
        return place

    def _put_ends(self, place: FilePlace, table: rq.Requests) -> object:
        table["opcode"][:, -1] = rq.OP_CLOSE | rq.FLAG_LINK
        return self._files.put_open_to_read(table[:, 0], place.ids, place.backend)

    def _aim(self, place: FilePlace, reads: rq.Requests, owner: I64) -> None:
        reads["opcode"] |= rq.FLAG_LINK

    def _before_attempt(self, table: rq.Requests, attempt: int) -> None:
        if len(table) <= CACHED_OPENS_MAX:
            table["opcode"][:, 0] = rq.OP_OPEN | (rq.FLAG_CACHED if attempt == 0 else 0)

    def _unreachable(self, reading: Located[FilePlace], group: int, number: int) -> tuple[Status, StoreError | None]:
        self._known.discard(reading.ids[group : group + 1])
        status = status_of_errno(number)
        return status, None if status == Status.MISS else BackendIOError.from_errno(number, "open")

    def _came(self, reading: Located[FilePlace], groups: I64) -> None:
        ids = reading.ids[groups]
        self._known.add(ids, reading.place.removals)
        self._space.manager.touch(ids, WEIGHT_LOAD)

    async def _set_aside(self, reading: Located[FilePlace], group: int) -> str:
        ids = reading.ids[group : group + 1]
        if self._known.removed_since(ids.tobytes(), reading.place.removals):
            return ""  # what was read is gone, and what has its name now may be good
        result = await self.set_aside(ids)
        return "" if result[0] in (0, -errno.ENOENT) else os.strerror(-int(result[0]))

    async def set_aside(self, ids: U8) -> I64:
        """Move blocks to quarantine; returns 0 or -errno for each."""
        self._known.removed(ids)
        removals = self._known.removals
        result = np.zeros(len(ids), dtype=np.int64)
        async with self._space.setting_aside:
            still = [i for i, one in enumerate(ids) if not self._known.removed_since(one.tobytes(), removals)]
            there = np.ascontiguousarray(ids[still])
            async with self._space.manager.changing():
                backend = choose_backend(there, self._seeds)
                result[still] = await self._files.quarantine(there, backend, self.transfer.pool)
        self._space.manager.forget(ids)
        return result
