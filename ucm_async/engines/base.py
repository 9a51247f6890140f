"""From a native context to asyncio: a batch goes in, one future comes out.

The context's descriptor is watched by the loop. When it is readable, one `reap` brings every batch that is done, and
the futures get their results in that same callback. Nothing is polled, no task is made, and nothing is copied: the
array that was submitted is the array in which the results appear.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol

import numpy as np

from ..abc import Engine
from ..errors import StoreClosedError
from .requests import Requests

__all__ = ["FEW", "Context", "ContextEngine"]

FEW: Final = 48
"""Up to as many requests, Python counts quicker than numpy's calls begin."""


class Context(Protocol):
    """What `ContextEngine` needs of a native context; the stub of the extension tells the rest."""

    def submit(self, requests: Any, token: object, /) -> None:
        """Start a batch."""

    def reap(self) -> list[Any]:
        """Return the tokens of the batches that are done."""

    def fileno(self) -> int:
        """Return what becomes readable."""

    def close(self) -> list[Any]:
        """Wait for everything, free it, and return the tokens that are left."""


_Token = tuple[Callable[[], None], Requests]
"""Travels with the batch: what to call when it is done; and the array, kept alive whatever the caller drops."""


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class ContextEngine(Engine):
    """Adapter of one native context. Made on a running loop, and used from it only.

    Parameters
    ----------
    context
        Owned by the engine from now on.

    Attributes
    ----------
    why
        Why it is this engine, for the statistics.

    Notes
    -----
    A cancelled future is only forgotten: its batch stays with the kernel, is counted in ``in_flight`` and is waited for
    by `aclose`.
    """

    def __init__(self, context: Context) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self.why = ""
        self._requests = 0
        self._batches = 0
        self._bytes = 0
        self._errors = 0
        self._in_flight = 0
        self._unfinished = 0  # batches, the empty ones too
        self._in_flight_max = 0
        self._idle: asyncio.Future[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._loop.add_reader(context.fileno(), self.poll)

    def submit(self, requests: Requests, chunk: int = 1) -> asyncio.Future[None]:
        """Start a batch; see `ucm_async.abc.Engine.submit`."""
        if self._closing is not None:
            raise StoreClosedError(f"the {self.name} engine is closed")
        future: asyncio.Future[None] = self._loop.create_future()
        self._begin(requests, partial(_resolve, future), chunk)
        return future

    def _begin(self, requests: Requests, on_done: Callable[[], None], chunk: int) -> None:
        self._start(requests, (on_done, requests), chunk)
        count = len(requests)
        self._requests += count
        self._batches += 1
        self._unfinished += 1
        self._in_flight += count
        self._in_flight_max = max(self._in_flight_max, self._in_flight)

    def _start(self, requests: Requests, token: _Token, chunk: int) -> None:
        """Hand the batch to the context. `chunk` means nothing to a ring: its requests are all for themselves."""
        self._context.submit(requests, token)

    def poll(self) -> int:
        """Take in what is done and settle its futures; the loop calls it, anyone may. Returns how many batches."""
        done: list[_Token] = self._context.reap()
        for on_done, requests in done:
            self._in_flight -= len(requests)
            self._count(requests)
            on_done()
        self._unfinished -= len(done)
        if self._idle is not None and self._unfinished == 0 and not self._idle.done():
            self._idle.set_result(None)
        return len(done)

    def _count(self, requests: Requests) -> None:
        results = requests["result"]
        if len(results) <= FEW:
            few = results.tolist()
            self._errors += sum(one < 0 for one in few)
            self._bytes += sum(one for one in few if one > 0)
        else:
            good = results >= 0
            self._errors += len(results) - int(np.count_nonzero(good))
            self._bytes += int(results.sum(where=good))

    async def aclose(self) -> None:
        """Wait until nothing is in flight, then free the context. Idempotent; a cancelled close goes on by itself."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._drain())
        await asyncio.shield(self._closing)

    async def _drain(self) -> None:
        if self._unfinished:
            self._idle = self._loop.create_future()
            await self._idle
        self._loop.remove_reader(self._context.fileno())
        # Joining threads and freeing rings takes milliseconds, which the loop does not have.
        for on_done, _ in await asyncio.to_thread(self._context.close):
            on_done()

    def statistics(self) -> Mapping[str, Any]:
        """Return plain counters; ``waiting`` requests are not with the kernel yet, ``depth`` is how many may be."""
        waiting = int(getattr(self._context, "waiting", 0))
        return {
            "name": self.name,
            "requests": self._requests,
            "batches": self._batches,
            "bytes": self._bytes,
            "errors": self._errors,
            "in_flight": self._in_flight,
            "in_flight_max": self._in_flight_max,
            "waiting": waiting,
            "depth": self.depth,
            "why": self.why,
            "closed": self._closing is not None,
        }

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and are not taken in yet."""
        return self._in_flight

    @property
    def depth(self) -> int:
        """How many requests can be with the kernel at once."""
        return int(getattr(self._context, "depth", 0))
