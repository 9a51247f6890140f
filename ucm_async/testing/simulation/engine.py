"""An engine on a simulated disk: chains side by side, every request at its own time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ...abc import Engine
from ...engines import requests as rq
from ...errors import StoreClosedError
from .chain import Chain

if TYPE_CHECKING:
    from .process import SimulatedProcess

__all__ = ["SimulatedEngine"]


class _Batch:
    __slots__ = ("chains", "left", "on_done", "requests", "unfinished")

    def __init__(self, requests: rq.Requests, chains: list[Chain], on_done: Callable[[], None]) -> None:
        self.requests = requests  # alive as long as requests are under way, whoever forgets them
        self.chains = chains
        self.left = len(chains)
        self.unfinished = True
        self.on_done = on_done


class SimulatedEngine(Engine):
    """Runs packed requests on the disk of a simulated process, and their copies in real memory.

    Runs on any event loop; on a `SimulatedLoop` it takes no time and gives the same run again.

    Parameters
    ----------
    process
        Whose descriptors and disk the requests speak of.
    depth
        Chains under way at a time; the rest waits in order.
    """

    name = "simulated"

    def __init__(self, process: SimulatedProcess, depth: int = 16) -> None:
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._depth = depth
        self._waiting: deque[tuple[_Batch, Chain]] = deque()
        self._batches: dict[_Batch, None] = {}
        self._under_way = 0
        self._closed = False
        self._idle: asyncio.Future[None] | None = None
        self._counts = {"requests": 0, "batches": 0, "bytes": 0, "errors": 0, "in_flight": 0, "in_flight_max": 0}

    def submit(self, requests: rq.Requests, chunk: int = 1) -> asyncio.Future[None]:
        """Start a batch; see `ucm_async.abc.Engine.submit`."""
        if self._closed:
            raise StoreClosedError("the simulated engine is closed")
        future: asyncio.Future[None] = self._loop.create_future()
        self._begin(requests, chunk, partial(_resolve, future))
        return future

    def submit_small(self, requests: rq.Requests, chunk: int, on_done: Callable[[], None]) -> bool:
        """See `ucm_async.abc.Engine.submit_small`."""
        if self._closed:
            return False
        self._begin(requests, chunk, on_done)
        return True

    def _begin(self, requests: rq.Requests, chunk: int, on_done: Callable[[], None]) -> None:
        requests["result"] = rq.PENDING_RESULT
        count = len(requests)
        chains = [Chain(requests[start : start + chunk], self._process) for start in range(0, count, chunk)]
        batch = _Batch(requests, chains, on_done)
        self._batches[batch] = None
        counts = self._counts
        counts["requests"] += count
        counts["batches"] += 1
        counts["in_flight"] += count
        counts["in_flight_max"] = max(counts["in_flight_max"], counts["in_flight"])
        if not chains or self._process.dead:
            self._loop.call_soon(self._end_early, batch)
            return
        self._waiting.extend((batch, chain) for chain in chains)
        self._start_waiting()

    def _start_waiting(self) -> None:
        while self._waiting and self._under_way < self._depth:
            batch, chain = self._waiting.popleft()
            self._under_way += 1
            self._wait_for(batch, chain, chain.begin())

    def _wait_for(self, batch: _Batch, chain: Chain, seconds: float | None) -> None:
        if seconds is None:
            self._loop.call_soon(self._chain_done, batch)
        else:
            self._loop.call_later(seconds, self._go_on, batch, chain)

    def _go_on(self, batch: _Batch, chain: Chain) -> None:
        if not batch.unfinished:
            return  # the process has died
        late = self._process.disk.hung_until_s - self._loop.time()
        if late > 0:
            self._loop.call_later(late, self._go_on, batch, chain)
            return
        self._wait_for(batch, chain, chain.go_on())

    def _chain_done(self, batch: _Batch) -> None:
        if not batch.unfinished:
            return
        self._under_way -= 1
        batch.left -= 1
        if batch.left == 0:
            self._end(batch)
        self._start_waiting()

    def _end_early(self, batch: _Batch) -> None:
        if batch.unfinished:
            for chain in batch.chains:
                chain.abandon()
            self._end(batch)

    def _end(self, batch: _Batch) -> None:
        batch.unfinished = False
        del self._batches[batch]
        self._count(batch.requests)
        batch.on_done()
        if self._idle is not None and not self._batches and not self._idle.done():
            self._idle.set_result(None)

    def _count(self, requests: rq.Requests) -> None:
        counts = self._counts
        counts["in_flight"] -= len(requests)
        for opcode, _, _, _, length, _, result in requests.tolist():
            code = opcode & rq.OP_MASK
            if result < 0:
                counts["errors"] += 1
            elif rq.OP_READ <= code <= rq.OP_WRITEV:
                counts["bytes"] += result
            elif code == rq.OP_COPY:
                counts["bytes"] += length

    def abandon(self) -> None:
        """Let everything end with an error, soon: the process is dead."""
        self._waiting.clear()
        self._under_way = 0
        for batch in self._batches:
            self._loop.call_soon(self._end_early, batch)

    async def aclose(self) -> None:
        """Wait until everything is done. Idempotent."""
        self._closed = True
        while self._batches:
            if self._idle is None or self._idle.done():
                self._idle = self._loop.create_future()
            await asyncio.shield(self._idle)

    def statistics(self) -> Mapping[str, Any]:
        """Return plain counters, as every engine has them."""
        return {"name": self.name, **self._counts, "depth": self._depth, "closed": self._closed}


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
