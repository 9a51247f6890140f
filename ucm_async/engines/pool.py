"""Threads behind the engine contract: file operations, copies, and the data of `psync`."""

from __future__ import annotations

from collections.abc import Callable

from ..abc import Engine
from ..native import ThreadPool
from .base import ContextEngine
from .requests import Requests
from .system import current_system

__all__ = ["PoolEngine", "make_pool"]


class PoolEngine(ContextEngine):
    """A bounded pool of threads that never need the GIL. Each chain is one thread's job.

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
        if self._closing is not None:
            return False
        self._begin(self._pool, requests, on_done, chunk)
        return True

    @property
    def depth(self) -> int:
        """How many threads there are."""
        return self._pool.threads


def make_pool(threads: int, name: str) -> Engine:
    """Return a pool for file operations or copies, on the running loop."""
    return current_system().make_engine("pool", threads) or PoolEngine(threads, name)
