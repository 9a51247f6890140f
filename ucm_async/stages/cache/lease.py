"""Leases: views of blocks where they lie in the cache, pinned until they are given back."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np

from ...abc import Lower
from ...engines.waits import patient
from ...native import BlockTable
from ...tasks import WHOLE_BLOCK, group_blocks
from ...types import I64, U8, Status
from .fetch import Fetcher
from .transbuffer import TransBuffer

__all__ = ["Leases", "LentBlocks"]


class LentBlocks:
    """What is lent; see `ucm_async.abc.Lent`."""

    __slots__ = ("_lent", "_slots", "_table", "views")

    def __init__(self, views: list[memoryview | None], slots: I64, table: BlockTable, lent: set[LentBlocks]) -> None:
        self.views = views
        self._slots = slots
        self._table = table
        self._lent = lent
        lent.add(self)

    def release(self) -> None:
        """See `ucm_async.abc.Lent.release`. Nothing the second time: the stage may have been closed meanwhile."""
        if self not in self._lent:
            return
        self._lent.discard(self)
        in_use: BufferError | None = None
        for view in self.views:
            if view is not None:
                try:
                    view.release()
                except BufferError as error:
                    in_use = error
        self._table.release(self._slots)
        if in_use is not None:
            raise in_use


class _Fetch:
    """Blocks that a lease did not find, on their way; who wants them may be gone when they come.

    Attributes
    ----------
    copies
        Position of an id -> its block in private memory, for those that found no slot.
    """

    def __init__(self, ids: U8) -> None:
        self.ids = ids
        self.slots = np.full(len(ids), -1, dtype=np.int64)
        self.copies: dict[int, U8] = {}
        self.abandoned = False


class Leases:
    """The blocks that one store has lent."""

    def __init__(self, buffer: TransBuffer, lower: Lower, fetcher: Fetcher) -> None:
        self._buffer = buffer
        self._table = buffer.table
        self._lower = lower
        self._fetcher = fetcher
        self._lent: set[LentBlocks] = set()
        self._fetches: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._lent)

    async def lease(self, ids: U8, deadline: float) -> LentBlocks:
        """Lend blocks; see `ucm_async.abc.Stage.lease`. Hits need no task, and no turn of the loop."""
        slots = np.empty(len(ids), dtype=np.int64)
        if self._table.lease(ids, slots) == len(ids):
            return LentBlocks(self._buffer.views(slots), slots, self._table, self._lent)
        try:
            views = await self._bring(ids, slots, deadline)
        except BaseException:
            self._table.release(slots)
            raise
        return LentBlocks(views, slots, self._table, self._lent)

    async def _bring(self, ids: U8, slots: I64, deadline: float) -> list[memoryview | None]:
        """Fetch what was not there, and lease it: fills in `slots`."""
        missing = np.flatnonzero(slots < 0)
        first, group = group_blocks(ids[missing])
        fetch = _Fetch(np.ascontiguousarray(ids[missing[first]]))
        loop = asyncio.get_running_loop()
        fetching = loop.create_task(self._fetch(fetch), name="ucm-cache-lease")
        self._fetches.add(fetching)
        fetching.add_done_callback(self._fetches.discard)
        try:
            if await patient(fetching, deadline - loop.time()):
                fetching.result()
            found = np.empty(len(missing), dtype=np.int64)
            self._table.lease(np.ascontiguousarray(ids[missing]), found)
            slots[missing] = found
        finally:
            fetch.abandoned = True
            if fetching.done():
                self._table.release(fetch.slots)
        views = self._buffer.views(slots)
        for row, place in zip(missing.tolist(), group.tolist(), strict=True):
            if views[row] is None and place in fetch.copies:
                views[row] = fetch.copies[place].data.toreadonly()
        return views

    async def _fetch(self, fetch: _Fetch) -> None:
        slots = await self._fetcher.obtain(fetch.ids, wait=True)
        try:
            if not fetch.abandoned:
                await self._copy(fetch, np.flatnonzero(slots < 0))
                fetch.slots, slots = slots, fetch.slots
        finally:
            self._table.release(slots)
            if fetch.abandoned:
                self._table.release(fetch.slots)

    async def _copy(self, fetch: _Fetch, rest: I64) -> None:
        """Load blocks that got no slot into memory of their own; most of them are just not stored."""
        if not len(rest):
            return
        ids = np.ascontiguousarray(fetch.ids[rest])
        stored = await self._lower.lookup(ids)
        ids, rest = np.ascontiguousarray(ids[stored]), rest[stored]
        blocks = np.empty((len(ids), self._buffer.block_size), dtype=np.uint8)
        places = (
            np.uint64(blocks.ctypes.data) + np.arange(len(ids), dtype=np.uint64) * np.uint64(blocks.shape[1])
        ).reshape(-1, 1)
        sizes = np.array([self._buffer.block_size], dtype=np.int64)
        status, _ = await self._lower.load(ids, np.full(len(ids), WHOLE_BLOCK), places, sizes)
        there = np.flatnonzero(status == Status.OK).tolist()
        fetch.copies = {int(rest[at]): blocks[at] for at in there}

    async def aclose(self) -> None:
        """Wait for fetches under way, and take back what is lent: its views can no more be used."""
        if self._fetches:
            await asyncio.wait(self._fetches)
        for lent in list(self._lent):
            with contextlib.suppress(BufferError):  # whoever looks at it still may see other blocks from now on
                lent.release()
