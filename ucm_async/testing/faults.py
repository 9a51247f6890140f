"""An engine that fails on demand: errors, short transfers, delays, and requests that hang until they are let go.

The memory stays safe whatever is injected. A request either really runs on the engine inside, or is withheld; one that
hangs runs when it is released, so that its bytes arrive as late as a slow disk would bring them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from ..abc import Engine
from ..engines.requests import (
    FLAG_IF_WELL,
    IOVEC,
    OP_MASK,
    OP_OPEN,
    OP_READ,
    OP_READV,
    OP_WRITE,
    OP_WRITEV,
    PENDING_RESULT,
    Requests,
)
from ..engines.waits import completed
from ..errors import StoreClosedError
from ..types import I64

__all__ = ["Fault", "FaultyEngine", "Plan", "scripted", "seeded"]

UNKNOWN_OPCODE: Final = 0xFF
ALIGNMENT: Final = 4096
NO_PATH: Final = np.zeros(1, dtype=np.uint8)
"""The empty path, which nothing has."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of a request.

    Attributes
    ----------
    kind
        "error": it is withheld and ends with ``-number``. "short": only the first half is transferred, in whole pages
        (data requests). "delay": its result appears `delay_s` late. "hang": it starts when it is released.
    number
        An errno.
    delay_s
        In seconds.
    """

    kind: Literal["error", "short", "delay", "hang"]
    number: int = errno.EIO
    delay_s: float = 0.0


Plan: TypeAlias = Callable[[int, Any], Fault | None]
"""Gets the number of a request, counted from 0 over the engine's life, and the request; returns its fault, if any."""


def scripted(faults: Mapping[int, Fault]) -> Plan:
    """Return a plan that strikes the requests with these numbers."""
    return lambda number, _: faults.get(number)


def seeded(seed: int, rates: Mapping[Fault, float]) -> Plan:
    """Return a plan that strikes at random, the same for the same seed.

    Parameters
    ----------
    seed
        Of the generator.
    rates
        The share of requests, 0 ... 1, that gets each fault; their sum is at most 1.
    """
    generator = random.Random(seed)

    def plan(_: int, __: Any) -> Fault | None:
        drawn = generator.random()
        for fault, rate in rates.items():
            if drawn < rate:
                return fault
            drawn -= rate
        return None

    return plan


class FaultyEngine(Engine):
    """Wraps an engine and changes what becomes of its requests.

    Parameters
    ----------
    inner
        Owned from now on.
    plan
        Asked for every request, in order of submission; may be replaced at any time.

    Notes
    -----
    `aclose` releases what hangs: a kernel does not free a request that it still works on either. Nor does it end one
    when every task of a loop is cancelled: what hangs or is delayed then goes on at once, and the future of the batch
    is done in the end.
    """

    name = "faulty"

    def __init__(self, inner: Engine, plan: Plan) -> None:
        self.inner = inner
        self.plan = plan
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._injected: Counter[str] = Counter()
        self._hanging = 0
        self._released = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def submit(self, requests: Requests, chunk: int = 1) -> asyncio.Future[None]:
        """Start a batch; see `ucm_async.abc.Engine.submit`. Requests of one chunk hang together."""
        if self._closed:
            raise StoreClosedError("the faulty engine is closed")
        faults = self._draw(requests)
        if not faults:
            return self.inner.submit(requests, chunk)
        requests["result"] = PENDING_RESULT
        future: asyncio.Future[None] = self._loop.create_future()
        task = self._loop.create_task(self._run(requests, chunk, faults, future))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: _conclude(requests, future))
        return future

    def release(self) -> None:
        """Let everything go that hangs now; what will hang later does."""
        self._released.set()
        self._released = asyncio.Event()

    @property
    def hanging(self) -> int:
        """Requests that hang now."""
        return self._hanging

    def _draw(self, requests: Requests) -> dict[int, Fault]:
        faults = {}
        for row in range(len(requests)):
            fault = self.plan(self._number, requests[row])
            self._number += 1
            if fault is not None:
                faults[row] = fault
                self._injected[fault.kind] += 1
        return faults

    async def _run(
        self, requests: Requests, chunk: int, faults: dict[int, Fault], future: asyncio.Future[None]
    ) -> None:
        chunks = np.arange(len(requests)) // chunk
        hang = np.isin(chunks, [row // chunk for row, fault in faults.items() if fault.kind == "hang"])
        parts = (
            self._loop.create_task(self._part(requests, np.flatnonzero(~hang), chunk, faults)),
            self._loop.create_task(self._hang(requests, np.flatnonzero(hang), chunk, faults)),
        )
        while not all(part.done() for part in parts):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(parts)
        for part in parts:
            if not part.cancelled() and (wrong := part.exception()) is not None and not future.done():
                future.set_exception(wrong)  # a mistake in the plan

    async def _hang(self, requests: Requests, rows: I64, chunk: int, faults: dict[int, Fault]) -> None:
        if len(rows) and not self._closed:
            self._hanging += len(rows)
            with contextlib.suppress(asyncio.CancelledError):
                await self._released.wait()
            self._hanging -= len(rows)
        if len(rows):
            await self._part(requests, rows, chunk, faults)

    async def _part(self, requests: Requests, rows: I64, chunk: int, faults: dict[int, Fault]) -> None:
        """Run some rows of a batch on the engine inside, in a copy, and publish the results that the faults allow."""
        work = requests[rows]
        struck = {place: faults[row] for place, row in enumerate(rows.tolist()) if row in faults}
        forced = {place: -fault.number for place, fault in struck.items() if fault.kind == "error"}
        vectors = [_alter(work, place, fault) for place, fault in struck.items()]
        for place, fault in struck.items():
            if fault.kind == "short":
                forced |= dict.fromkeys(_withhold_guarded(work, place, chunk), -errno.ECANCELED)
        with contextlib.suppress(asyncio.CancelledError):
            await completed(self.inner.submit(work, chunk))
        del vectors  # the shortened lists of ranges had to live until here
        for place, result in forced.items():
            work["result"][place] = result
        slow = np.zeros(len(rows), dtype=np.bool_)
        slow[[place for place, fault in struck.items() if fault.kind == "delay"]] = True
        requests["result"][rows[~slow]] = work["result"][~slow]
        if slow.any():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(max(fault.delay_s for fault in struck.values()))
            requests["result"][rows[slow]] = work["result"][slow]

    async def aclose(self) -> None:
        """Release what hangs, wait for everything, and close the engine inside. Idempotent."""
        self._closed = True
        self.release()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.inner.aclose()

    def statistics(self) -> Mapping[str, Any]:
        """Return those of the engine inside, under this name, and how many faults of each kind were ``injected``."""
        return {
            **self.inner.statistics(),
            "name": self.name,
            "injected": dict(self._injected),
            "hanging": self._hanging,
        }


def _conclude(requests: Requests, future: asyncio.Future[None]) -> None:
    """End a batch: what was cancelled before it could begin has failed."""
    never = requests["result"] == PENDING_RESULT
    requests["result"][never] = -errno.ECANCELED
    if not future.done():
        future.set_result(None)


def _alter(work: Requests, place: int, fault: Fault) -> Any:
    """Change one request as its fault wants it; returns what must live until the batch is done."""
    code = int(work["opcode"][place]) & OP_MASK
    if fault.kind == "error":
        # It must fail inside as well, for the links and chains behind it; and it must not touch anything.
        work["opcode"][place] = OP_OPEN if code == OP_OPEN else UNKNOWN_OPCODE
        work["address"][place] = NO_PATH.ctypes.data
    if fault.kind != "short":
        return None
    if code in (OP_READ, OP_WRITE):
        work["length"][place] = _half(int(work["length"][place]))
        return None
    if code in (OP_READV, OP_WRITEV):
        vectors = _half_of_vectors(int(work["address"][place]), int(work["length"][place]))
        work["address"][place], work["length"][place] = vectors.ctypes.data, len(vectors)
        return vectors
    raise ValueError(f"a short transfer needs a data request, not opcode {code}")


def _withhold_guarded(work: Requests, place: int, chunk: int) -> list[int]:
    """Withhold what FLAG_IF_WELL guards behind a short transfer in its chain; returns where that is.

    To the engine inside, the shortened request went well.
    """
    behind = range(place + 1, min((place // chunk + 1) * chunk, len(work)))
    guarded = [other for other in behind if work["opcode"][other] & FLAG_IF_WELL]
    work["opcode"][guarded] = UNKNOWN_OPCODE
    return guarded


def _half(size: int) -> int:
    return size // 2 // ALIGNMENT * ALIGNMENT


def _half_of_vectors(address: int, count: int) -> Any:
    """Return a copy of the iovecs that ends at half of the bytes."""
    vectors = np.frombuffer(ctypes.string_at(address, count * IOVEC.itemsize), dtype=IOVEC).copy()
    ends = vectors["length"].cumsum()
    start = ends - vectors["length"]
    half = np.uint64(_half(int(ends[-1]) if count else 0))
    vectors["length"] = np.minimum(vectors["length"], np.maximum(half, start) - start)
    return vectors[vectors["length"] > 0] if half else vectors[:0]
