"""From native contexts to asyncio: a batch goes in, one future comes out.

The descriptor of each context is watched by the loop. When it is readable, one `reap` brings every batch that is done,
and the futures get their results in that same callback. Nothing is polled, no task is made, and nothing is copied: the
array that was submitted is the array in which the results appear.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from ..abc import Engine
from ..errors import StoreClosedError
from .requests import Requests

__all__ = ["Context", "ContextEngine"]


class Context(Protocol):
    """What `ContextEngine` needs of a native context; the stub of the extension tells the rest."""

    def submit(self, requests: Any, token: object, chunk: int = 1, /) -> None:
        """Start a batch of chains."""

    def reap(self) -> list[Any]:
        """Return the tokens of the batches that are done."""

    def fileno(self) -> int:
        """Return what becomes readable."""

    def close(self) -> list[Any]:
        """Wait for everything, free it, and return the tokens that are left."""

    @property
    def bytes(self) -> int:
        """Bytes that the batches which were reaped transferred and copied."""

    @property
    def errors(self) -> int:
        """Their failed requests."""


_Token = tuple[Callable[[], None], int]
"""Travels with the batch: what to call when it is done, and how many requests it has."""


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class ContextEngine(Engine):
    """Adapter of native contexts. Made on a running loop, and used from it only.

    Parameters
    ----------
    *contexts
        Owned by the engine from now on. The first one gets every batch, unless a subclass chooses.

    Attributes
    ----------
    why
        Why it is this engine, for the statistics.

    Notes
    -----
    A cancelled future is only forgotten: its batch stays with the kernel, is counted in ``in_flight`` and is waited for
    by `aclose`.
    """

    def __init__(self, *contexts: Context) -> None:
        self._loop = asyncio.get_running_loop()
        self._contexts = contexts
        self.why = ""
        self._requests = 0
        self._batches = 0
        self._in_flight = 0
        self._unfinished = 0  # batches, the empty ones too
        self._in_flight_max = 0
        self._idle: asyncio.Future[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        for context in contexts:
            self._loop.add_reader(context.fileno(), self._reap, context)

    def submit(self, requests: Requests, chunk: int = 1) -> asyncio.Future[None]:
        """Start a batch; see `ucm_async.abc.Engine.submit`."""
        if self._closing is not None:
            raise StoreClosedError(f"the {self.name} engine is closed")
        future: asyncio.Future[None] = self._loop.create_future()
        self._begin(self._choose(requests, chunk), requests, partial(_resolve, future), chunk)
        return future

    def _choose(self, requests: Requests, chunk: int) -> Context:
        """Return the context that gets a batch."""
        return self._contexts[0]

    def _begin(self, context: Context, requests: Requests, on_done: Callable[[], None], chunk: int) -> None:
        count = len(requests)
        token: _Token = (on_done, count)
        context.submit(requests, token, chunk)
        self._requests += count
        self._batches += 1
        self._unfinished += 1
        self._in_flight += count
        self._in_flight_max = max(self._in_flight_max, self._in_flight)

    def poll(self) -> int:
        """Take in what is done and settle its futures before the loop sees it. Returns how many batches."""
        return sum(map(self._reap, self._contexts))

    def _reap(self, context: Context) -> int:
        done: list[_Token] = context.reap()
        for on_done, count in done:
            self._in_flight -= count
            on_done()
        self._unfinished -= len(done)
        if self._idle is not None and self._unfinished == 0 and not self._idle.done():
            self._idle.set_result(None)
        return len(done)

    async def aclose(self) -> None:
        """Wait until nothing is in flight, then free the contexts. Idempotent; a cancelled close goes on by itself."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._drain())
        await asyncio.shield(self._closing)

    async def _drain(self) -> None:
        if self._unfinished:
            self._idle = self._loop.create_future()
            await self._idle
        for context in self._contexts:
            self._loop.remove_reader(context.fileno())
        # Joining threads and freeing rings takes milliseconds, which the loop does not have.
        for on_done, _ in await asyncio.to_thread(self._free):
            on_done()

    def _free(self) -> list[_Token]:
        return [token for context in self._contexts for token in context.close()]

    def statistics(self) -> Mapping[str, Any]:
        """Return plain counters; ``waiting`` requests are not with the kernel yet, ``depth`` is how many may be."""
        waiting = sum(int(getattr(context, "waiting", 0)) for context in self._contexts)
        return {
            "name": self.name,
            "requests": self._requests,
            "batches": self._batches,
            "bytes": sum(context.bytes for context in self._contexts),
            "errors": sum(context.errors for context in self._contexts),
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
        return int(getattr(self._contexts[0], "depth", 0))
