"""Picks between threads and a ring, batch by batch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from ..abc import Engine
from ..errors import StoreClosedError
from .base import ContextEngine
from .psync import PsyncEngine
from .requests import OP_MASK, OP_READ, OP_WRITE, OP_WRITEV, Requests

__all__ = ["FEW_REQUESTS", "AutoEngine", "pick"]

FEW_REQUESTS: Final = 2
"""Up to as many requests on an idle engine go to threads, whose answer is the quicker one."""


def pick(requests: int, *, writes: bool, busy: bool, ring: str, direct: bool) -> str:
    """Tell who runs a batch: "psync", or `ring` itself. Pure.

    Parameters
    ----------
    requests
        How many there are.
    writes
        Whether one of them writes. A write may extend its file, and ``io_submit`` then waits for the file system.
    busy
        Whether the ring has requests in flight: what comes then joins them.
    ring
        "uring" or "aio".
    direct
        Whether the files are opened with O_DIRECT.
    """
    if ring == "aio" and (writes or not direct):
        return "psync"
    if requests <= FEW_REQUESTS and not busy:
        return "psync"
    return ring


class AutoEngine(Engine):
    """A ring for many requests, threads for a few, and for what would block the ring's submission.

    Parameters
    ----------
    ring
        The aio or uring engine that the probe found; owned from now on.
    threads
        Of psync.
    direct
        Whether the files are opened with O_DIRECT.
    """

    name = "auto"

    def __init__(self, ring: ContextEngine, threads: int, *, direct: bool) -> None:
        self._ring = ring
        self._psync = PsyncEngine(threads)
        self._psync.why = "for a few requests, and for what would block the ring"
        self._direct = direct
        self._closed = False

    def submit(self, requests: Requests, chunk: int = 1) -> asyncio.Future[None]:
        """Start a batch; see `ucm_async.abc.Engine.submit`."""
        if self._closed:
            raise StoreClosedError("the auto engine is closed")
        choice = pick(
            len(requests),
            writes=_writes(requests),
            busy=self._ring.in_flight > 0,
            ring=self._ring.name,
            direct=self._direct,
        )
        # What is no data request, or is linked, only a thread can run.
        if choice == "psync" or chunk > 1 or not _is_data(requests):
            return self._psync.submit(requests, chunk)
        return self._ring.submit(requests)

    async def aclose(self) -> None:
        """Wait until nothing is in flight, then free both engines. Idempotent."""
        self._closed = True
        await asyncio.gather(self._ring.aclose(), self._psync.aclose())

    def statistics(self) -> Mapping[str, Any]:
        """Return the sums, and each engine's own counters below its name."""
        parts = {engine.name: engine.statistics() for engine in (self._ring, self._psync)}
        summed = ("requests", "batches", "bytes", "errors", "in_flight", "waiting")
        return {
            "name": self.name,
            **{key: sum(part[key] for part in parts.values()) for key in summed},
            "depth": self._ring.depth,
            "ring": self._ring.name,
            "why": self._ring.why,
            "closed": self._closed,
            **parts,
        }


def _writes(requests: Requests) -> bool:
    codes = requests["opcode"] & OP_MASK
    return bool(((codes == OP_WRITE) | (codes == OP_WRITEV)).any())


def _is_data(requests: Requests) -> bool:
    codes = requests["opcode"]
    return bool(((codes >= OP_READ) & (codes <= OP_WRITEV)).all())
