"""Threads behind the engine contract: file operations, copies, and the data of `psync`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..native import ThreadPool
from .base import FEW, ContextEngine, _Token
from .requests import OP_COPY, OP_MASK, OP_READ, OP_WRITEV, Requests

__all__ = ["PoolEngine", "make_pool"]


class PoolEngine(ContextEngine):
    """A bounded pool of threads that never need the GIL. Takes every opcode; `chunk` requests are one job.

    Parameters
    ----------
    threads
        How many requests run at once.
    name
        Of the threads, for ``top`` and debuggers.
    """

    name = "pool"

    def __init__(self, threads: int, name: str = "ucm") -> None:
        self._pool = ThreadPool(threads, name)
        super().__init__(self._pool)

    def submit_small(self, requests: Requests, chunk: int, on_done: Callable[[], None]) -> bool:
        """See `ucm_async.abc.Engine.submit_small`; a thread runs the chains as it runs any others."""
        self._begin(requests, on_done, chunk)
        return True

    def _start(self, requests: Requests, token: _Token, chunk: int) -> None:
        self._pool.submit(requests, token, chunk)

    def _count(self, requests: Requests) -> None:
        """Count bytes of data and copies only: other results are descriptors, sizes and checksums."""
        if len(requests) <= FEW:
            self._count_few(requests)
            return
        results = requests["result"]
        codes = requests["opcode"] & OP_MASK
        good = results >= 0
        self._errors += len(results) - int(np.count_nonzero(good))
        self._bytes += int(results.sum(where=good & (codes >= OP_READ) & (codes <= OP_WRITEV)))
        self._bytes += int(requests["length"].sum(where=good & (codes == OP_COPY)))

    def _count_few(self, requests: Requests) -> None:
        fields = (requests[name].tolist() for name in ("opcode", "length", "result"))
        for opcode, length, result in zip(*fields, strict=True):
            code = opcode & OP_MASK
            if result < 0:
                self._errors += 1
            elif OP_READ <= code <= OP_WRITEV:
                self._bytes += result
            elif code == OP_COPY:
                self._bytes += length

    @property
    def depth(self) -> int:
        """How many threads there are."""
        return self._pool.threads


def make_pool(threads: int, name: str) -> PoolEngine:
    """Return a pool for file operations or copies, on the running loop."""
    return PoolEngine(threads, name)
