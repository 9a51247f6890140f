"""Threads that encode and decode, each with a context of its own while it does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from ...engines.waits import completed
from .codecs import Context
from .pool import ContextPool

__all__ = ["Workers", "all_of", "default_threads"]

T = TypeVar("T")

THREADS_MAX: Final = 16
"""Beyond it the memory is the bound, on any machine that we know."""


def default_threads() -> int:
    """Return how many processors this process may use, at most 16."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, THREADS_MAX)


class Workers:
    """A bounded pool of threads and contexts for one lane. Belongs to one loop.

    Parameters
    ----------
    name
        Of the threads.
    pool
        As many contexts as there are to be threads.
    threads
        How many.
    """

    def __init__(self, name: str, pool: ContextPool, threads: int) -> None:
        self._pool = pool
        self._executor = ThreadPoolExecutor(threads, name)

    @classmethod
    async def create(cls, name: str, threads: int, shard_bytes: int) -> Workers:
        """Make the contexts while the loop goes on."""
        return cls(name, await ContextPool.create(threads, shard_bytes), threads)

    async def run(self, job: Callable[[Context], T]) -> T:
        """Run `job` in a thread, first come first served. A cancellation waits for its end: it works on our slots."""
        async with self._pool.leased() as context:
            running = asyncio.get_running_loop().run_in_executor(self._executor, job, context)
            await completed(running)
            return running.result()

    async def aclose(self) -> None:
        """Refuse new jobs, and join the threads, which have none."""
        self._pool.close()
        await asyncio.to_thread(self._executor.shutdown)

    def statistics(self) -> Mapping[str, Any]:
        """Return the counters of the contexts."""
        return self._pool.statistics()


async def all_of(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines side by side until all have ended, also if one fails or the wait is cancelled."""
    if len(coroutines) == 1:
        return [await coroutines[0]]
    out: list[T] = []
    for result in await asyncio.gather(*coroutines, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        out.append(result)
    return out
