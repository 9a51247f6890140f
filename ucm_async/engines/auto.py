"""Picks between a ring and threads, batch by batch.

The policy is measured, on ext4 with O_DIRECT and two processors.

Reads of 64 KiB, loop included, as a multiple of a bare ``preadv`` one after another: one read took 1.1 through either
ring and 1.5 through threads; 64 reads took 0.43 and 0.53. Chains that open, read, check and close 2,000 files of 64 KiB
ran at 0.9 (aio) to 1.0 (io_uring) of the speed of a C program that only reads them. So there is no number of reads for
which threads are quicker, and the ring gets them all.

Writes that extend a file make ``io_submit`` wait for the file system. Chains that create, write, close and rename files
of 1 MiB: 1,480 and 1,580 MB/s with eight threads, 1,420 and 1,620 with io_uring, but 650 and 1,210 with aio. With an
``OP_FALLOCATE`` before the write it was 1,520 and 1,710 with aio, and no less than before with the others. So aio gets
writes only if the batch allocates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..abc import Engine
from ..errors import StoreClosedError
from .base import ContextEngine
from .psync import PsyncEngine
from .requests import OP_FALLOCATE, OP_MASK, OP_WRITE, OP_WRITEV, Requests

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
        # For a few requests numpy's own calls would take longer.
        codes = {opcode & OP_MASK for opcode in requests["opcode"].tolist()}
        if codes & _WRITES and OP_FALLOCATE not in codes:
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

    def submit_small(self, requests: Requests, chunk: int, on_done: Callable[[], None]) -> bool:
        """See `ucm_async.abc.Engine.submit_small`."""
        return not self._closed and self._ring.submit_small(requests, chunk, on_done)

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
