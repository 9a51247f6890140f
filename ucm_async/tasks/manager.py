"""The task manager: from a checked call to slices in the first stage's lanes, and the count of what is under way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from ..errors import BusyError, StoreClosedError, WouldBlock
from ..types import I64, U8, Durability, Status
from .batch import Slice
from .memory import Memory
from .slicing import cut_slices
from .task import LaneName, Task

__all__ = ["SliceSink", "TaskManager", "TaskStatistics"]

_UNCOUNTED_MAX: Final = 256


class SliceSink(Protocol):
    """Where slices go: a lane of the first stage."""

    queues: int
    whole_blocks: bool

    def put_nowait(self, one: Slice, queue: int) -> None:
        """Put a slice into the inbox of one of the queues; `WouldBlock` if that is full."""

    async def put(self, one: Slice, queue: int) -> None:
        """Put a slice, waiting for room."""


@dataclass(frozen=True, slots=True)
class TaskStatistics:
    """Counts of tasks since the store was opened.

    Attributes
    ----------
    submitted, settled, finished
        Tasks; `submitted - settled` are awaited, `settled - finished` have late completions still to come.
    waiting_slices
        Slices that found the first inbox full and wait for room.
    rows
        Rows of settled tasks by the name of their `Status`.
    """

    submitted: int
    settled: int
    finished: int
    waiting_slices: int
    rows: dict[str, int]


class TaskManager:
    """Makes tasks, cuts them into slices and feeds these, round-robin, to the queues of a lane.

    Parameters
    ----------
    load, dump
        The lanes of the first stage.
    slice_bytes
        Upper bound of a slice.
    task_max
        Tasks that may be unfinished at a time; what comes above that settles as BUSY at once.
    loop
        The store's loop.
    """

    def __init__(
        self, load: SliceSink, dump: SliceSink, *, slice_bytes: int, task_max: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._sinks: dict[LaneName, SliceSink] = {"load": load, "dump": dump}
        self._waiting: dict[LaneName, deque[tuple[Slice, int]]] = {"load": deque(), "dump": deque()}
        self._feeders: dict[LaneName, asyncio.Task[None]] = {}
        self._next_queue: dict[LaneName, int] = {"load": 0, "dump": 0}
        self._slice_bytes = slice_bytes
        self._task_max = task_max
        self._loop = loop
        self._tasks: dict[Task, None] = {}  # in the order of submission, so that what waits for them is served in order
        self._idle: list[tuple[Callable[[Task], bool], asyncio.Future[None]]] = []
        self._closed = False
        self._submitted = 0
        self._finished = 0
        self._rows = np.zeros(len(Status), dtype=np.int64)
        self._uncounted: list[U8] = []

    def submit(
        self,
        lane: LaneName,
        ids: U8,
        shards: I64,
        memory: Memory,
        *,
        deadline: float,
        durability: Durability = "stored",
    ) -> Task:
        """Start a task. Never waits.

        Raises
        ------
        StoreClosedError
            After `aclose` began.
        """
        if self._closed:
            memory.release()
            raise StoreClosedError("the store is closed")
        task = Task(lane, ids, shards, memory, durability=durability, loop=self._loop, on_finished=self._on_finished)
        self._submitted += 1
        if len(ids) == 0 or len(self._tasks) >= self._task_max:
            self._settle_at_once(task)
            return task
        self._tasks[task] = None
        sink = self._sinks[lane]
        cuts = cut_slices(
            ids, memory.row_bytes, slice_bytes=self._slice_bytes, queues=sink.queues, whole_blocks=sink.whole_blocks
        )
        task.expect_slices(len(cuts))
        for start, stop in cuts:
            queue = self._next_queue[lane]
            self._next_queue[lane] = (queue + 1) % sink.queues
            self._feed(lane, Slice(task, start, stop), queue)
        task.set_deadline(deadline)  # last: the disk is at work meanwhile, or the task has settled already
        return task

    def _settle_at_once(self, task: Task) -> None:
        task.expect_slices(1)
        if len(task.ids):
            why = BusyError(f"{self._task_max} tasks are under way (task_max)")
            Slice(task, 0, len(task.ids)).report_rest(Status.BUSY, why)
        else:
            task.settle(Status.OK)
            task.slice_finished()

    def _feed(self, lane: LaneName, one: Slice, queue: int) -> None:
        """Hand a slice on, or keep it in order behind those that wait already."""
        if not self._waiting[lane]:
            try:
                self._sinks[lane].put_nowait(one, queue)
                return
            except WouldBlock:
                pass
        self._waiting[lane].append((one, queue))
        if lane not in self._feeders:
            self._feeders[lane] = self._loop.create_task(self._feed_waiting(lane), name=f"ucm-feed-{lane}")

    async def _feed_waiting(self, lane: LaneName) -> None:
        waiting = self._waiting[lane]
        try:
            while waiting:
                one, queue = waiting[0]
                if one.task.alive:
                    await self._sinks[lane].put(one, queue)
                else:
                    one.report_rest(Status.CANCELLED)
                waiting.popleft()
        finally:  # somebody may cancel every task of the loop, this one too
            while waiting:
                waiting.popleft()[0].report_rest(Status.CLOSED)
            del self._feeders[lane]

    def _on_finished(self, task: Task) -> None:
        self._tasks.pop(task, None)
        self._finished += 1
        self._uncounted.append(task.result().status)
        if len(self._uncounted) >= _UNCOUNTED_MAX:
            self._count_rows()
        if self._idle:
            self._wake_idle()

    def _count_rows(self) -> None:
        """Count the rows of many tasks at a time: for one it would take as long as all else that is done for it."""
        if self._uncounted:
            self._rows += np.bincount(np.concatenate(self._uncounted), minlength=len(Status))
            self._uncounted.clear()

    def _wake_idle(self) -> None:
        still = []
        for wanted, future in self._idle:
            if any(wanted(task) for task in self._tasks):
                still.append((wanted, future))
            elif not future.done():
                future.set_result(None)
        self._idle = still

    async def drain(self, lane: LaneName | None = None, *, finished: bool = False) -> None:
        """Wait until the tasks that are under way now have settled (or, with `finished`, let go of everything).

        Parameters
        ----------
        lane
            Only tasks of that lane.
        finished
            Also wait for late completions of settled tasks.
        """
        tasks = [task for task in self._tasks if lane is None or task.lane == lane]
        for task in tasks:
            if task.alive:
                await task.wait_settled()
        if finished:
            pending = set(tasks)
            if any(task in pending for task in self._tasks):
                future = self._loop.create_future()
                self._idle.append((pending.__contains__, future))
                await future

    async def aclose(self) -> None:
        """Refuse new tasks, let those under way settle (at their deadlines at the latest) and finish. Idempotent."""
        self._closed = True
        await self.drain(finished=True)

    def longest_wait_s(self) -> float:
        """Seconds until the last deadline of the tasks under way; infinite if one has none."""
        return max((max(task.time_left_s(), 0.0) for task in self._tasks if task.alive), default=0.0)

    @property
    def closed(self) -> bool:
        """True once `aclose` was called."""
        return self._closed

    def statistics(self) -> TaskStatistics:
        """Return the counts as they are now."""
        self._count_rows()
        alive = sum(task.alive for task in self._tasks)
        return TaskStatistics(
            submitted=self._submitted,
            settled=self._submitted - alive,
            finished=self._finished,
            waiting_slices=sum(map(len, self._waiting.values())),
            rows={status.name: int(self._rows[status]) for status in Status},
        )
