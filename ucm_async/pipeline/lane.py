"""A lane: bounded inboxes, one a queue, and a worker for each that drives the stage."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from anyio.abc import TaskGroup

from ..abc import Stage
from ..errors import BackendIOError, WouldBlock
from ..tasks import Slice, SliceBatch, make_batches
from ..types import Status

__all__ = ["Lane", "LaneStatistics"]

LATE_BATCHES_MAX: Final = 64
"""Batches that nobody waits for any more and that the stage still has, for each lane; more of them hold up a worker."""

_log = logging.getLogger("ucm_async.pipeline")


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """Counts of a lane since the store was opened.

    Attributes
    ----------
    slices, batches
        How many slices came, and how many batches they made: the difference was coalesced.
    short_way
        Small slices that an idle lane served at once, without a batch.
    queued, running
        Slices in the inboxes now, and batches in the stage now.
    dropped
        Slices whose task had settled before their turn came.
    late
        Of those that run, batches that nobody waits for any more; others are served beside them.
    """

    slices: int
    batches: int
    short_way: int
    queued: int
    running: int
    dropped: int
    late: int


class Lane:
    """The load side or the dump side of an operator.

    Slices that arrive in one turn of the loop wait in the same inboxes when the workers wake, and leave as one batch;
    no timer is involved.

    Parameters
    ----------
    name
        For logs and task names.
    handler
        Called with one batch at a time by each worker.
    queues
        How many inboxes and workers there are: the number of batches that can be in the stage at a time.
    depth
        Slices that each inbox holds.
    batch_bytes
        Upper bound of a batch of several slices.
    begin
        Offered a small slice that finds its inbox empty, with what to call if it must be queued after all: see
        `ucm_async.abc.Stage.begin_load`.

    Attributes
    ----------
    short_way_bytes_max
        Larger slices are not offered to `begin`, nor parts of larger tasks: what it does is done before `load` returns.
    whole_blocks
        Whether the stage works on whole blocks; see `ucm_async.tasks.cut_slices`.
    """

    def __init__(
        self,
        name: str,
        handler: Callable[[SliceBatch], Awaitable[None]],
        *,
        queues: int,
        depth: int,
        batch_bytes: int,
        begin: Callable[[Slice, Callable[[], None]], bool] | None = None,
    ) -> None:
        self.name = name
        self.queues = queues
        self._handler = handler
        self._batch_bytes = batch_bytes
        self._inboxes: list[asyncio.Queue[Slice]] = [asyncio.Queue(depth) for _ in range(queues)]
        self._begin = begin
        self.short_way_bytes_max = Stage.short_way_bytes_max
        self.whole_blocks = False
        self._slices = self._batches = self._running = self._dropped = self._short = self._late = 0
        self._closed = False
        self._returning: set[asyncio.Task[None]] = set()

    def start(self, group: TaskGroup) -> None:
        """Start the workers; they end when `group` is cancelled."""
        self._group = group
        for inbox in self._inboxes:
            self._start_worker(inbox, deque())

    def _start_worker(self, inbox: asyncio.Queue[Slice], todo: deque[SliceBatch]) -> None:
        self._group.start_soon(self._work, inbox, todo, name=f"ucm-{self.name}-{self._inboxes.index(inbox)}")

    def put_nowait(self, one: Slice, queue: int) -> None:
        """Put a slice into an inbox; `WouldBlock` if it is full. A small one may be served at once instead."""
        inbox = self._inboxes[queue]
        if self._closed:
            one.report_rest(Status.CLOSED)
            return
        if (
            self._begin is not None
            and inbox.empty()
            and one.nbytes <= self.short_way_bytes_max
            and one.is_all
            and self._begin(one, partial(self._put_after_all, one, queue))
        ):
            self._short += 1
            return
        try:
            inbox.put_nowait(one)
        except asyncio.QueueFull:
            raise WouldBlock(f"{self.name}: inbox {queue} is full") from None

    async def put(self, one: Slice, queue: int) -> None:
        """Put a slice, waiting for room."""
        inbox = self._inboxes[queue]
        await inbox.put(one)
        if self._closed:
            self._close(inbox, deque())

    def _put_after_all(self, one: Slice, queue: int) -> None:
        """Queue a slice that could not be served on the short way."""
        self._short -= 1
        try:
            self._inboxes[queue].put_nowait(one)
        except asyncio.QueueFull:
            returning = asyncio.get_running_loop().create_task(self.put(one, queue))
            self._returning.add(returning)
            returning.add_done_callback(self._returning.discard)

    async def _work(self, inbox: asyncio.Queue[Slice], todo: deque[SliceBatch]) -> None:
        """Serve an inbox until another worker has taken over; `todo` is handed over with it."""
        relieved = False
        try:
            while not relieved:
                if not todo:
                    slices = self._take(await inbox.get(), inbox)
                    todo.extend(make_batches(slices) if slices else ())
                    continue
                relieved = await self._serve(todo.popleft(), inbox, todo)
        except asyncio.CancelledError:
            self._close(inbox, todo)
            raise

    def _close(self, inbox: asyncio.Queue[Slice], todo: deque[SliceBatch]) -> None:
        """Settle what no worker will serve: they are going."""
        self._closed = True
        while todo:
            todo.popleft().report_rest(Status.CLOSED)
        while not inbox.empty():
            inbox.get_nowait().report_rest(Status.CLOSED)

    async def _serve(self, batch: SliceBatch, inbox: asyncio.Queue[Slice], todo: deque[SliceBatch]) -> bool:
        """Drive the stage with one batch; True if another worker has taken over meanwhile.

        That happens when nobody waits for the batch any more: a disk that hangs must not hold up what comes after.
        """
        running, relieved = True, False

        def relieve() -> None:
            nonlocal relieved
            if running and not relieved and self._late < LATE_BATCHES_MAX:
                relieved = True
                self._late += 1
                self._start_worker(inbox, todo)

        batch.when_abandoned(relieve)
        self._batches += 1
        self._running += 1
        try:
            await self._run(batch)
        finally:
            running = False
            self._running -= 1
            self._late -= relieved
        return relieved

    def _take(self, first: Slice, inbox: asyncio.Queue[Slice]) -> list[Slice]:
        """Take what else waits, up to a batch, and drop what nobody waits for any more."""
        taken: list[Slice] = []
        room = self._batch_bytes
        one = first
        while True:
            self._slices += 1
            if one.task.alive:
                taken.append(one)
                room -= one.nbytes
            else:
                self._dropped += 1
                one.report_rest(Status.CANCELLED)
            if room <= 0 or inbox.empty():
                return taken
            one = inbox.get_nowait()

    async def _run(self, batch: SliceBatch) -> None:
        """Drive the stage; whatever it does, every row is settled afterwards."""
        try:
            await self._handler(batch)
            batch.report_rest(Status.IO_ERROR, _FORGOTTEN)
        except Exception as error:
            _log.exception("%s: a batch of %d rows failed", self.name, len(batch))
            batch.report_rest(Status.IO_ERROR, BackendIOError(f"{type(error).__name__}: {error}"))
        except BaseException:
            batch.report_rest(Status.CLOSED)
            raise

    def statistics(self) -> LaneStatistics:
        """Return the counts as they are now."""
        return LaneStatistics(
            slices=self._slices + self._short,
            short_way=self._short,
            batches=self._batches,
            queued=sum(inbox.qsize() for inbox in self._inboxes),
            running=self._running,
            dropped=self._dropped,
            late=self._late,
        )


_FORGOTTEN = BackendIOError("the stage returned without reporting the row")
