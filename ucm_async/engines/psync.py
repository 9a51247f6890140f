"""Plain ``preadv`` and ``pwritev`` on threads: works on every file system and every machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .base import Context
from .pool import PoolEngine
from .requests import Requests

__all__ = ["JOBS_PER_THREAD", "PsyncEngine", "job_size"]

JOBS_PER_THREAD: Final = 4
"""Jobs a thread gets of one large batch: enough that a slow request does not leave the others without work."""


def job_size(requests: int, chunk: int, threads: int) -> int:
    """Return how many requests of a batch make a job.

    A chain is a job of its own: what went wrong in one must not count for the next. A job of one small request costs
    more in waking a thread than the request itself takes, so a large batch of those is cut into only
    `JOBS_PER_THREAD` jobs a thread.
    """
    if chunk > 1:
        return chunk
    return max(1, -(-requests // (threads * JOBS_PER_THREAD)))


class PsyncEngine(PoolEngine):
    """Synchronous system calls on a bounded thread pool, several requests a job.

    Parameters
    ----------
    threads
        How many system calls run at once.
    """

    name = "psync"

    def __init__(self, threads: int) -> None:
        super().__init__(threads, "ucm-psync")

    def _begin(self, context: Context, requests: Requests, on_done: Callable[[], None], chunk: int) -> None:
        super()._begin(context, requests, on_done, job_size(len(requests), chunk, self.depth))
