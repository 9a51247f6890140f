"""Bringing segments to the medium: one fdatasync a segment and batch."""

from __future__ import annotations

import asyncio

import numpy as np

from ...abc import Engine
from ...engines import requests as rq
from ...engines.waits import completed
from ...types import I64, Bools
from .slabs import Slabs

__all__ = ["Syncs"]


class Syncs:
    """Syncs segments, and remembers those of which that failed once.

    The kernel forgets what it could not write, and the next fdatasync says that all is well. So there is no next one:
    until the store is opened anew, nothing in that segment gets to be synced.
    """

    def __init__(self, slabs: Slabs) -> None:
        self._slabs = slabs
        self._errors: dict[tuple[int, int], int] = {}
        self._turn = asyncio.Lock()

    def _segments(self, backend: I64, slots: I64) -> list[tuple[int, int]]:
        per = [self._slabs.geometry(position).slots for position in backend.tolist()]
        return [
            (position, slot // count)
            for position, slot, count in zip(backend.tolist(), slots.tolist(), per, strict=True)
        ]

    def failed(self, backend: I64, slots: I64) -> Bools:
        """Tell which slots are in a segment that could not be synced."""
        if not self._errors:
            return np.zeros(len(slots), dtype=np.bool_)
        return np.array([one in self._errors for one in self._segments(backend, slots)], dtype=np.bool_)

    async def sync(self, backend: I64, slots: I64, pool: Engine) -> I64:
        """Bring what was written to slots to the medium: int64, shape (n,), 0 or -errno for each."""
        async with self._turn:  # of two at the same time only one would be told of an error
            return await self._sync(backend, slots, pool)

    async def _sync(self, backend: I64, slots: I64, pool: Engine) -> I64:
        segments = self._segments(backend, slots)
        first = {segment: i for i, segment in reversed(list(enumerate(segments))) if segment not in self._errors}
        if first:
            at = np.array(list(first.values()))
            requests = rq.new_requests(len(at))
            requests["opcode"] = rq.OP_FDATASYNC
            requests["fd"] = self._slabs.descriptors(backend[at], slots[at])
            await completed(pool.submit(requests, 1))
            results = zip(first, requests["result"].tolist(), strict=True)
            self._errors |= {segment: result for segment, result in results if result < 0}
        return np.array([self._errors.get(segment, 0) for segment in segments], dtype=np.int64)
