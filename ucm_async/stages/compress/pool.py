"""Contexts made at set-up and leased per job, each to one at a time, first come first served."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ...errors import StoreClosedError, WouldBlock
from .codecs.base import Context

__all__ = ["ContextPool"]


class ContextPool:
    """A fixed number of `Context`, for the jobs of one event loop.

    Parameters
    ----------
    contexts
        How many there are: as many jobs can run at a time.
    shard_bytes
        The longest raw shard that they will see.

    Notes
    -----
    The constructor allocates and touches all of it, about 1 ms a context and more for large shards: on a loop, use
    ``await ContextPool.create(...)``. Call the methods on one loop; a leased context may be used in any thread. It is
    given back when its job is over, and not when the wait for the job is cancelled.
    """

    def __init__(self, contexts: int, shard_bytes: int) -> None:
        if contexts < 1:
            raise ValueError(f"contexts: {contexts}, must be at least 1")
        self._all = [Context(shard_bytes) for _ in range(contexts)]
        self._free = list(self._all)  # a stack: what was used last is still in cache
        self._waiters: deque[asyncio.Future[Context]] = deque()
        self._leased_max = 0
        self._leases = 0
        self._waits = 0
        self._waited_s = 0.0
        self._waited_s_max = 0.0
        self._closed = False

    @classmethod
    async def create(cls, contexts: int, shard_bytes: int) -> ContextPool:
        """Make a pool while the loop goes on. Parameters as of the class."""
        return await asyncio.to_thread(cls, contexts, shard_bytes)

    def lease_nowait(self) -> Context:
        """Take a context.

        Raises
        ------
        WouldBlock
            None is free, or others wait already.
        StoreClosedError
            The pool is closed.
        """
        self._check()
        if self._waiters or not self._free:
            raise WouldBlock(f"0 of {len(self._all)} contexts free, {len(self._waiters)} waiting")
        return self._take()

    async def lease(self) -> Context:
        """Take a context, waiting behind those who came earlier. Nothing is leased if the wait is cancelled.

        Raises
        ------
        StoreClosedError
            The pool is closed, or was meanwhile.
        """
        self._check()
        if not self._waiters and self._free:
            return self._take()
        self._waits += 1
        granted: asyncio.Future[Context] = asyncio.get_running_loop().create_future()
        self._waiters.append(granted)
        started = time.monotonic()
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.release(granted.result())  # the grant and the cancellation crossed
            raise
        finally:
            waited = time.monotonic() - started
            self._waited_s += waited
            self._waited_s_max = max(self._waited_s_max, waited)

    @asynccontextmanager
    async def leased(self) -> AsyncIterator[Context]:
        """Have a context for the length of an ``async with`` block, in which its job must end. As `lease`."""
        context = await self.lease()
        try:
            yield context
        finally:
            self.release(context)

    def release(self, context: Context) -> None:
        """Give a context back.

        Raises
        ------
        RuntimeError
            It is not leased, or of another pool.
        """
        if context in self._free or context not in self._all:
            raise RuntimeError("a context was released twice, or is of another pool")
        self._free.append(context)
        while self._waiters and self._free:
            granted = self._waiters.popleft()
            if not granted.done():
                granted.set_result(self._take())

    def close(self) -> None:
        """Refuse new leases and those that wait. Memory goes with the last lease. Idempotent."""
        self._closed = True
        while self._waiters:
            granted = self._waiters.popleft()
            if not granted.done():
                granted.set_exception(StoreClosedError("the context pool is closed"))

    def statistics(self) -> Mapping[str, Any]:
        """Return plain counters; the waits that are over are summed up, in seconds."""
        return {
            "contexts": len(self._all),
            "context_bytes": sum(one.nbytes for one in self._all),
            "leased": len(self._all) - len(self._free),
            "leased_max": self._leased_max,
            "leases": self._leases,
            "waits": self._waits,
            "waiting": len(self._waiters),
            "waited_s": self._waited_s,
            "waited_s_max": self._waited_s_max,
        }

    def _check(self) -> None:
        if self._closed:
            raise StoreClosedError("the context pool is closed")

    def _take(self) -> Context:
        context = self._free.pop()
        self._leases += 1
        self._leased_max = max(self._leased_max, len(self._all) - len(self._free))
        return context
