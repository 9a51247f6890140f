"""A table of the Cache without its blocks: in shared memory, full, and asked in batches of random ids."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from ..native import CLAIM_MINE, BlockTable, Mapping
from ..types import U8
from .setting import BenchError

__all__ = ["FilledTable", "random_ids", "shared_memory"]

_SHM: Final = "/dev/shm"
_HUGE_PAGE_BYTES: Final = 2 << 20
_FILL: Final = 1000
_PROBES: Final = 64


@contextmanager
def shared_memory(nbytes: int) -> Iterator[int]:
    """Yield a descriptor of `nbytes` bytes of shared memory without a name."""
    fd = os.open(_SHM, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC)
    try:
        os.truncate(fd, -(-nbytes // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES)
        yield fd
    finally:
        os.close(fd)


def random_ids(count: int, seed: int = 0) -> U8:
    """Return ids as digests are: uint8, shape (count, 16)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 16), np.uint8)


class FilledTable:
    """A `BlockTable` that is full. Made, filled and asked from a thread; a lookup is about as fast in any table.

    Attributes
    ----------
    ids
        uint8, shape (slots, 16): what is in it.
    nbytes
        Of the table.
    page_mode
        See `ucm_async.native.Mapping`.
    create_s, insert_ns, attach_s, repair_s
        Seconds to get the memory and format it; nanoseconds an id to claim and publish; seconds to map the table and
        join it from a second view; and to rebuild it, as after a crash.
    """

    def __init__(self, slots: int) -> None:
        self.ids = random_ids(slots)
        self.nbytes = BlockTable.bytes_needed(slots)
        with shared_memory(self.nbytes) as fd:
            started = time.perf_counter()
            memory = Mapping(os.fstat(fd).st_size, fd)
            self._table = BlockTable(memory, slots, "s3fifo", True)
            self._table.join(os.getpid(), 1)
            self.create_s = time.perf_counter() - started
            self.page_mode = memory.page_mode
            self.insert_ns = self._fill()
            self.attach_s = self._attach(fd, slots)
        started = time.perf_counter()
        self._table.repair()
        self.repair_s = time.perf_counter() - started

    def _fill(self) -> float:
        slots, states = np.empty(_FILL, np.int64), np.empty(_FILL, np.uint8)
        generations = np.empty(_FILL, np.uint32)
        started = time.perf_counter()
        for at in range(0, len(self.ids), _FILL):
            part = self.ids[at : at + _FILL]
            count = len(part)
            self._table.claim(part, slots[:count], states[:count], generations[:count])
            if (states[:count] != CLAIM_MINE).any():
                raise BenchError("an empty table did not take a new id")
            self._table.publish(slots[:count])
        return (time.perf_counter() - started) / len(self.ids) * 1e9

    @staticmethod
    def _attach(fd: int, slots: int) -> float:
        started = time.perf_counter()
        table = BlockTable(Mapping(os.fstat(fd).st_size, fd), slots, "s3fifo")
        table.join(os.getpid(), 2)
        took = time.perf_counter() - started
        table.leave()
        return took

    def probe_ns(self, batch: int) -> float:
        """Probe batches of ids that are there, in random order; returns nanoseconds an id."""
        order = np.random.default_rng(1).permutation(len(self.ids))[: batch * _PROBES]
        batches = [np.ascontiguousarray(self.ids[order[at : at + batch]]) for at in range(0, len(order), batch)]
        out = np.empty(batch, np.uint8)
        asked = found = 0
        started = time.perf_counter()
        for part in batches:
            found += self._table.probe(part, out[: len(part)])
            asked += len(part)
        took = time.perf_counter() - started
        if found != asked:
            raise BenchError(f"probe: {asked - found} of {asked} ids were not found")
        return took / asked * 1e9
