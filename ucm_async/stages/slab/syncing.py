"""Bringing segments to the medium: one fdatasync a segment and batch."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from typing import Final

import numpy as np

from ...abc import Engine
from ...engines import requests as rq
from ...engines.waits import completed
from ...types import I64
from .slab import Slab
from .slabs import Slabs

__all__ = ["Syncs"]

_log = logging.getLogger("ucm_async.slab")

MARK_PAUSE_S: Final = 1
"""A segment's mark tells seconds, so it is written no more often."""


class Syncs:
    """Syncs segments, and sees to it that what was in those of which that failed is not taken for synced.

    The kernel forgets what it could not write, and the next fdatasync says that all is well. So nothing that was in the
    segment then, written or being written, is ever trusted again; what is written later is. The table of slots knows,
    for all stores; the checkpoint keeps it; and a mark in the segment is for who finds neither.
    """

    def __init__(self, slabs: Slabs) -> None:
        self._slabs = slabs
        self._turn = asyncio.Lock()
        self._marked: dict[tuple[int, int], float] = {}  # when, by segment

    async def sync(self, backend: I64, slots: I64, pool: Engine) -> I64:
        """Bring what was written to slots to the medium: int64, shape (n,), 0 or -errno for each."""
        async with self._turn:  # of two at the same time only one would be told of an error
            return await self._sync(backend, slots, pool)

    async def _sync(self, backend: I64, slots: I64, pool: Engine) -> I64:
        numbers = (slots // self._slabs.slots_of(backend)).tolist()
        segments = list(zip(backend.tolist(), numbers, strict=True))
        first = {segment: i for i, segment in reversed(list(enumerate(segments)))}
        at = np.array(list(first.values()), dtype=np.int64)
        requests = rq.new_requests(len(at))
        requests["opcode"] = rq.OP_FDATASYNC
        requests["fd"] = self._slabs.descriptors(backend[at], slots[at])
        if len(at):
            await completed(pool.submit(requests, 1))
        results = dict(zip(first, requests["result"].tolist(), strict=True))
        for (position, number), result in results.items():
            if result < 0:
                await self._distrust(position, number, pool)
        result = np.array([results[segment] for segment in segments], dtype=np.int64)
        # An error is told once: what another batch had written by then may be lost as well.
        result[(result == 0) & self._slabs.distrusted(backend, slots)] = -errno.EIO
        return result

    async def _distrust(self, position: int, number: int, pool: Engine) -> None:
        """Note that what is in a segment may be lost: where all stores see it, then where it lasts without them."""
        slab = self._slabs.slabs[position]
        assert slab is not None, "nobody writes to a backend that could not be opened"
        slab.table.distrust(slab.geometry.first(number), slab.geometry.slots)
        now = slab.backend.system.now()
        if now - self._marked.get((position, number), 0.0) >= MARK_PAUSE_S:
            self._marked[position, number] = now
            await self._mark(slab, number, int(now) + 1, pool)

    @staticmethod
    async def _mark(slab: Slab, number: int, lost_s: int, pool: Engine) -> None:
        kind = int(slab.memory.kinds[number])
        failed = await slab.files.mend(slab.geometry, kind, number, pool, lost_s)
        if failed:  # the table and the checkpoint know
            _log.warning("%s: segment %d cannot be marked: %s", slab.backend.home, number, os.strerror(failed))
