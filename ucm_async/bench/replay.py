"""Do to a store what an inference frontend does, and compare every byte that comes back.

For each request: look up how much of its prefix is stored, load that under a deadline, make the rest (here: stamped
blocks instead of a model's prefill) and dump it. What fails to load is made again, as an engine would recompute it.

Several requests are in flight, yet the hit ratio is exactly that of the sequence: a request waits until the blocks that
an earlier one is still making have been dumped, as a scheduler does with requests that share a prefix.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, Protocol

import numpy as np

from ..types import BLOCK_ID_BYTES, U8, Bools, Durability, Status, block_ids
from .blocks import BlockMaker
from .memory import huge_rows
from .report import Flow, Report
from .workloads import InfiniteCache, Request

__all__ = ["ReplayOptions", "ReplayStore", "replay"]

_READ_AHEAD: Final = 64  # requests parsed in one go, off the loop
_POISON: Final = 0xA5


class _Result(Protocol):
    @property
    def status(self) -> U8: ...


class _Task(Awaitable[_Result], Protocol):
    async def settled(self) -> None: ...


class ReplayStore(Protocol):
    """The verbs of a store that a replay needs."""

    async def lookup_on_prefix(self, ids: U8) -> int:
        """Index of the last block of the longest stored prefix, -1 if none."""

    def load(self, ids: U8, shard_index: None, dst: U8, *, timeout: float | None) -> _Task:
        """Start to load whole blocks into the rows of `dst`."""

    def dump(self, ids: U8, shard_index: None, src: U8, *, durability: Durability) -> _Task:
        """Start to store the rows of `src`."""

    def register(self, memory: U8) -> AbstractContextManager[object]:
        """Let the engine read and write `memory` itself until the exit."""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How a replay asks.

    Attributes
    ----------
    block_bytes
        The store's ``block_size``.
    timeout_s
        Deadline of each load; None waits as long as it takes.
    concurrency
        Requests in flight, each with its own memory.
    durability
        Of the dumps.
    registered
        Register that memory, so that the engine reads and writes it without a copy.
    memory_bytes
        Memory of each request in flight; a request whose blocks need more is loaded in several calls.
    """

    block_bytes: int
    timeout_s: float | None = 1.0
    concurrency: int = 4
    durability: Durability = "stored"
    registered: bool = False
    memory_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency: {self.concurrency}, must be at least 1")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(f"timeout_s: {self.timeout_s}, must be positive or None")

    @property
    def rows(self) -> int:
        """Blocks that the memory of one request holds; at least one."""
        return max(1, self.memory_bytes // self.block_bytes)


async def replay(
    store: ReplayStore,
    requests: Iterable[Request],
    options: ReplayOptions,
    report: Report | None = None,
    on_request: Callable[[], None] = lambda: None,
) -> Report:
    """Serve `requests` from `store` and count.

    Parameters
    ----------
    store
        An open store whose blocks are ``options.block_bytes`` long, one shard each.
    requests
        Read lazily, in threads, a few ahead.
    options
        How to ask.
    report
        Filled while the replay runs, so that an interrupted one can still be told; a new one if None.
    on_request
        Called on the loop after each request.

    Returns
    -------
    Report
        `report`, with ``wall_s`` set.

    Notes
    -----
    Failed rows are counted, not raised. What `requests` raises ends the replay and is raised as it is. On cancellation
    the requests in flight are abandoned; `report` tells of those that were done.
    """
    report = Report() if report is None else report
    maker = await asyncio.to_thread(BlockMaker, options.block_bytes)  # reads the samples
    work = _Replay(store, requests, options, maker, report, on_request).work
    started = time.perf_counter()
    workers = [asyncio.create_task(work()) for _ in range(options.concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for one in workers:
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        report.wall_s = time.perf_counter() - started
    return report


@dataclass(slots=True)
class _Turn:
    """A request that was admitted."""

    request: Request
    ids: U8
    waits: set[asyncio.Event]  # of earlier requests that are making blocks of this one
    made: asyncio.Event
    ideal_hits: int


class _Replay:
    def __init__(
        self,
        store: ReplayStore,
        requests: Iterable[Request],
        options: ReplayOptions,
        maker: BlockMaker,
        report: Report,
        on_request: Callable[[], None],
    ) -> None:
        self._store = store
        self._requests = iter(requests)
        self._options = options
        self._report = report
        self._on_request = on_request
        self._maker = maker
        self._ideal = InfiniteCache()
        self._ready: deque[tuple[Request, U8]] = deque()
        self._admission = asyncio.Lock()
        self._in_making: dict[int, asyncio.Event] = {}

    async def work(self) -> None:
        memory = await asyncio.to_thread(huge_rows, self._options.rows, self._options.block_bytes)
        with self._store.register(memory) if self._options.registered else nullcontext():
            while (turn := await self._admit()) is not None:
                try:
                    await self._serve(turn, memory)
                finally:
                    self._leave(turn)
                self._on_request()

    # Admission is in the order of the workload, so a request only ever waits for earlier ones: no cycle.

    async def _admit(self) -> _Turn | None:
        async with self._admission:
            if not self._ready:
                self._ready.extend(await asyncio.to_thread(self._read_ahead))
            if not self._ready:
                return None
            request, ids = self._ready.popleft()
            hashes = request.block_hashes
            waits = {self._in_making[one] for one in hashes if one in self._in_making}
            made = asyncio.Event()
            self._in_making.update((one, made) for one in hashes if one not in self._ideal)
            return _Turn(request, ids, waits, made, self._ideal.serve(hashes))

    def _read_ahead(self) -> list[tuple[Request, U8]]:
        return [(one, block_ids(one.block_hashes)) for one in islice(self._requests, _READ_AHEAD)]

    def _leave(self, turn: _Turn) -> None:
        for one in turn.request.block_hashes:
            if self._in_making.get(one) is turn.made:
                del self._in_making[one]
        turn.made.set()

    async def _serve(self, turn: _Turn, memory: U8) -> None:
        for earlier in turn.waits:
            await earlier.wait()
        ids, report = turn.ids, self._report
        stored = await self._store.lookup_on_prefix(ids) + 1 if len(ids) else 0
        loaded = await self._load(ids[:stored], memory)
        await self._dump(_without_repeats(np.concatenate([ids[:stored][~loaded], ids[stored:]])), memory)
        report.requests += 1
        report.blocks_asked += len(ids)
        report.prefix_hits += stored
        report.ideal_hits += turn.ideal_hits

    async def _load(self, ids: U8, memory: U8) -> Bools:
        """Load and compare; returns which rows came, right or wrong."""
        loaded = np.zeros(len(ids), np.bool_)
        for part in _parts(len(ids), len(memory)):
            rows = memory[: part.stop - part.start]
            # Left as they are, the bytes of the last load would pass for this one's where blocks repeat.
            await asyncio.to_thread(rows.fill, _POISON)
            status = await self._call(
                self._report.load, partial(self._store.load, ids[part], None, rows, timeout=self._options.timeout_s)
            )
            loaded[part] = came = status == Status.OK
            wrong = await asyncio.to_thread(self._maker.wrong_bytes, rows, ids[part])
            self._report.wrong_bytes += int(wrong[came].sum())
            self._report.wrong_blocks += int(np.count_nonzero(wrong[came]))
        return loaded

    async def _dump(self, ids: U8, memory: U8) -> None:
        for part in _parts(len(ids), len(memory)):
            rows = memory[: part.stop - part.start]
            await asyncio.to_thread(self._maker.make, ids[part], rows)
            await self._call(
                self._report.dump, partial(self._store.dump, ids[part], None, rows, durability=self._options.durability)
            )

    async def _call(self, flow: Flow, submit: Callable[[], _Task]) -> U8:
        with flow.awaiting():
            task = submit()
            result = await task
        if self._options.registered:
            await task.settled()  # a late read must not land in what the next request puts there
        flow.count(result.status, self._options.block_bytes)
        return result.status


def _parts(rows: int, at_most: int) -> Iterator[slice]:
    return (slice(start, min(start + at_most, rows)) for start in range(0, rows, at_most))


def _without_repeats(ids: U8) -> U8:
    """Keep the first of equal rows: a store refuses to dump one block twice in a call."""
    _, first = np.unique(np.ascontiguousarray(ids).view(f"V{BLOCK_ID_BYTES}").ravel(), return_index=True)
    kept: U8 = ids[np.sort(first)]
    return kept
