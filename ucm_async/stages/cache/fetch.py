"""Blocks that are brought into slots before anybody copies them out: prefetches, and what leases do not find."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Final

import numpy as np
import numpy.typing as npt

from ...native import CLAIM_HIT, CLAIM_MINE, CLAIM_THEIRS, WATCH_FAILED
from ...types import I64, U8, Status
from .admission import Share
from .fills import Filler, cut_parts
from .transbuffer import TransBuffer
from .waiting import Waiting

__all__ = ["Fetcher"]

_log = logging.getLogger("ucm_async.cache")

PREFETCHES_MAX: Final = 64
"""Prefetches under way at a time; they are hints, and what comes above is dropped."""


class Fetcher:
    """Brings blocks into slots in the background.

    Parameters
    ----------
    buffer, waiting, filler
        See their modules.
    share
        How many slots prefetches may fill at a time.
    counts
        Plain counters, by name.
    """

    def __init__(
        self, buffer: TransBuffer, waiting: Waiting, filler: Filler, share: Share, counts: Counter[str]
    ) -> None:
        self._buffer = buffer
        self._table = buffer.table
        self._waiting = waiting
        self._filler = filler
        self._share = share
        self._counts = counts
        self._prefetches: set[asyncio.Task[None]] = set()

    # ---- prefetches

    def prefetch(self, ids: U8) -> None:
        """Start bringing blocks that are not in the cache, as many as there is room for."""
        there = np.empty(len(ids), dtype=np.uint8)
        self._table.probe(ids, there)
        missing = np.flatnonzero(there == 0)
        if not len(missing) or len(self._prefetches) >= PREFETCHES_MAX:
            return
        granted = self._share.take(len(missing))
        if granted:
            wanted = np.ascontiguousarray(ids[missing[:granted]])
            fetch = asyncio.get_running_loop().create_task(self._prefetch(wanted), name="ucm-cache-prefetch")
            self._prefetches.add(fetch)
            fetch.add_done_callback(self._prefetches.discard)

    async def _prefetch(self, ids: U8) -> None:
        try:
            for part in cut_parts(np.arange(len(ids)), self._buffer.block_size):
                slots = await self.obtain(np.ascontiguousarray(ids[part]), wait=False)
                self._counts["prefetched"] += int(np.count_nonzero(slots >= 0))
                self._table.release(slots)
        except Exception:
            _log.exception("a prefetch of %d blocks failed", len(ids))
        finally:
            self._share.give_back(len(ids))

    # ---- blocks for whoever holds them

    async def obtain(self, ids: U8, *, wait: bool) -> I64:
        """Bring blocks into slots and lease them.

        Parameters
        ----------
        ids
            uint8, shape (n, 16), each once.
        wait
            Whether to wait for those that others are reading.

        Returns
        -------
        numpy.ndarray
            int64, shape (n,): leased once each; -1 where a block is not stored or found no slot.
        """
        slots = np.full(len(ids), -1, dtype=np.int64)
        todo = np.arange(len(ids))
        try:
            while len(todo):
                todo = await self._obtain(ids, slots, todo, wait=wait)
        except BaseException:
            self._table.release(slots)
            raise
        return slots

    async def _obtain(self, ids: U8, slots: I64, todo: I64, *, wait: bool) -> I64:
        """Claim blocks and read them; returns those that others have read meanwhile."""
        claim = await self._buffer.claim(np.ascontiguousarray(ids[todo]))
        hit, mine, theirs = (claim.states == state for state in (CLAIM_HIT, CLAIM_MINE, CLAIM_THEIRS))
        slots[todo[hit]] = claim.slots[hit]
        if mine.any():
            await self._read(ids, slots, todo[mine], claim.slots[mine], claim.generations[mine])
        if not wait or not theirs.any():
            return todo[:0]
        return await self._others(todo[theirs], claim.slots[theirs], claim.generations[theirs])

    async def _read(self, ids: U8, slots: I64, mine: I64, claimed: I64, generations: npt.NDArray[np.uint32]) -> None:
        """Fill claimed slots; those that come well are leased and go into `slots`."""
        at = 0
        try:
            for part in cut_parts(mine, self._buffer.block_size):
                now = slice(at, at + len(part))
                status, _ = await self._filler.fill(ids[part], claimed[now], generations[now])
                at = now.stop
                slots[part] = np.where(status == Status.OK, claimed[now], -1)
        finally:
            if at < len(claimed):
                self._table.fail(claimed[at:], int(Status.CANCELLED))
                self._waiting.look()

    async def _others(self, todo: I64, slots: I64, generations: npt.NDArray[np.uint32]) -> I64:
        """Wait for blocks that others read, not for ever; returns those worth another claim."""
        left_s = self._waiting.left_s(slots, generations)
        if not left_s:
            return todo[:0]
        told = await self._waiting.change(slots, generations, left_s)
        self._counts["waits"] += len(todo)
        failed = (told >= WATCH_FAILED) & ~np.isin(told.astype(np.int64) - WATCH_FAILED, _GIVEN_UP)
        return np.asarray(todo[~failed])

    async def aclose(self) -> None:
        """Wait for the prefetches under way."""
        if self._prefetches:
            await asyncio.wait(self._prefetches)


_GIVEN_UP: Final = (Status.CANCELLED, Status.CLOSED)
