"""Bringing segments to the medium: one fdatasync a segment and batch."""

from __future__ import annotations

import asyncio
from typing import Final

import numpy as np

from ...abc import Engine
from ...engines import requests as rq
from ...engines.waits import completed
from ...types import I64, U64, Bools
from .slab import STORED, TAKEN
from .slabs import Slabs

__all__ = ["Syncs"]

_STATE: Final = np.uint64(0xFF)
_VERSION_SHIFT: Final = np.uint64(16)
_NOTHING: Final = np.uint64(2**64 - 1)


class Syncs:
    """Syncs segments, and remembers what was in those of which that failed.

    The kernel forgets what it could not write, and the next fdatasync says that all is well. So nothing that was in the
    segment then, written or being written, is ever taken for synced; what is written later is.
    """

    def __init__(self, slabs: Slabs) -> None:
        self._slabs = slabs
        self._versions: dict[tuple[int, int], U64] = {}  # of what was in a segment when it failed, by slot
        self._turn = asyncio.Lock()

    def _segments(self, backend: I64, slots: I64) -> list[tuple[int, int]]:
        return list(zip(backend.tolist(), (slots // self._slabs.slots_of(backend)).tolist(), strict=True))

    def distrusted(self, backend: I64, slots: I64) -> Bools:
        """Tell which slots have what a failed sync may have lost: bool, shape (n,)."""
        if not self._versions:
            return np.zeros(len(slots), dtype=np.bool_)
        now = self._slabs.words(backend, slots) >> _VERSION_SHIFT
        at = slots % self._slabs.slots_of(backend)
        then = [self._versions.get(segment) for segment in self._segments(backend, slots)]
        same = [one is not None and one[i] == version for one, i, version in zip(then, at, now, strict=True)]
        return np.array(same, dtype=np.bool_)

    async def sync(self, backend: I64, slots: I64, pool: Engine) -> I64:
        """Bring what was written to slots to the medium: int64, shape (n,), 0 or -errno for each."""
        async with self._turn:  # of two at the same time only one would be told of an error
            return await self._sync(backend, slots, pool)

    async def _sync(self, backend: I64, slots: I64, pool: Engine) -> I64:
        segments = self._segments(backend, slots)
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
                self._versions[position, number] = self._versions_in(position, number)
        return np.array([results[segment] for segment in segments], dtype=np.int64)

    def _versions_in(self, position: int, number: int) -> U64:
        geometry = self._slabs.geometry(position)
        slots = geometry.first(number) + np.arange(geometry.slots)
        words = self._slabs.words(np.full(geometry.slots, position), slots)
        there = np.isin(words & _STATE, (TAKEN, STORED))
        return np.asarray(np.where(there, words >> _VERSION_SHIFT, _NOTHING))
