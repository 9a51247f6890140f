"""Picks between a ring and threads, batch by batch.

The policy is measured (O_DIRECT reads of 64 KiB on ext4, loop included, as a multiple of a bare ``preadv`` one after
another): one read took 1.1 through either ring and 1.5 through threads; 64 reads took 0.43 and 0.53. So there is no
number of requests for which threads answer sooner, and the ring gets everything that it does not block on. What it
blocks on is ``io_submit`` of writes that extend files: 32 of them kept the loop for 3.3 ms, the whole time they took,
against 0.08 ms with io_uring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..abc import Engine
from ..errors import StoreClosedError
from .base import ContextEngine
from .psync import PsyncEngine
from .requests import OP_MASK, OP_WRITE, OP_WRITEV, Requests

__all__ = ["AutoEngine", "pick"]

_WRITES: Final = frozenset((OP_WRITE, OP_WRITEV))


def pick(requests: Requests, chunk: int, ring: str) -> tuple[str, str]:
    """Tell who runs a batch, and why. Pure.

    Parameters
    ----------
    requests, chunk
        The arguments of ``submit``.
    ring
        The ring that is there: "uring" or "aio".

    Returns
    -------
    tuple of str
        "psync" or `ring`, and the reason, a key of the statistics.
    """
    if ring == "aio":
        codes = set(requests["opcode"].tolist())  # for a few requests numpy's own calls would take longer
        if any(code & OP_MASK in _WRITES for code in codes):
            return "psync", "writes may extend files"
    return ring, "data" if chunk == 1 else "chains"


class AutoEngine(Engine):
    """A ring for whatever does not block its submission, threads for the rest.

    Parameters
    ----------
    ring
        The aio or uring engine that was found; owned from now on.
    threads
        Of psync, which is made when it is first needed.
    """

    name = "auto"

    def __init__(self, ring: ContextEngine, threads: int) -> None:
        self._ring = ring
        self._threads = threads
        self._psync: PsyncEngine | None = None
        self._picked: dict[str, int] = {}
        self._closed = False

    def submit(self, requests: Requests, chunk: int = 1) -> asyncio.Future[None]:
        """Start a batch; see `ucm_async.abc.Engine.submit`."""
        if self._closed:
            raise StoreClosedError("the auto engine is closed")
        return self._pick(requests, chunk).submit(requests, chunk)

    def submit_small(self, requests: Requests, chunk: int, nbytes: int, on_done: Callable[[], None]) -> bool:
        """See `ucm_async.abc.Engine.submit_small`."""
        return not self._closed and self._ring.submit_small(requests, chunk, nbytes, on_done)

    def _pick(self, requests: Requests, chunk: int) -> ContextEngine:
        name, why = pick(requests, chunk, self._ring.name)
        key = f"{name}: {why}"
        self._picked[key] = self._picked.get(key, 0) + 1
        return self._ring if name == self._ring.name else self._make_psync()

    def _make_psync(self) -> PsyncEngine:
        if self._psync is None:
            self._psync = PsyncEngine(self._threads)
            self._psync.why = f"for what would block {self._ring.name}"
        return self._psync

    def _parts(self) -> list[ContextEngine]:
        return [self._ring] if self._psync is None else [self._ring, self._psync]

    async def aclose(self) -> None:
        """Wait until nothing is in flight, then free the engines. Idempotent."""
        self._closed = True
        await asyncio.gather(*(engine.aclose() for engine in self._parts()))

    def statistics(self) -> Mapping[str, Any]:
        """Return the sums, how many batches were ``picked`` for whom and why, and each engine's own below its name."""
        parts = {engine.name: engine.statistics() for engine in self._parts()}
        summed = ("requests", "batches", "bytes", "errors", "in_flight", "waiting")
        return {
            "name": self.name,
            **{key: sum(part[key] for part in parts.values()) for key in summed},
            "depth": self._ring.depth,
            "ring": self._ring.name,
            "why": self._ring.why,
            "picked": dict(self._picked),
            "closed": self._closed,
            **parts,
        }
