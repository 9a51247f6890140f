"""Tasks without a store: memory of arrays, and a sink in the place of a lane."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from ucm_async.errors import WouldBlock
from ucm_async.tasks import WHOLE_BLOCK, Memory, Slice, Task, TaskManager, memory_of_buffers
from ucm_async.types import I64, U8, Status, block_ids

ROW_BYTES = 64


def whole(count: int) -> tuple[U8, I64]:
    """Return the ids and shard indexes of `count` whole blocks."""
    return block_ids(range(count)), np.full(count, WHOLE_BLOCK, dtype=np.int64)


def memory_of(rows: object, count: int) -> Memory:
    return memory_of_buffers("dst", rows, count, ROW_BYTES, (ROW_BYTES,), writable=True)


def make_task(
    count: int, *, direct: bool = False, rows: object = None, on_finished: Callable[[Task], None] = lambda _: None
) -> Task:
    """Return a task over memory of its own; the caller reports its rows."""
    ids, shards = whole(count)
    memory = memory_of(bytearray(count * ROW_BYTES) if rows is None else rows, count)
    memory.direct = direct
    return Task("load", ids, shards, memory, loop=asyncio.get_running_loop(), on_finished=on_finished)


def slices_of(task: Task, *cuts: tuple[int, int]) -> list[Slice]:
    task.expect_slices(len(cuts))
    return [Slice(task, start, stop) for start, stop in cuts]


class Sink:
    """A lane that keeps what it gets; `room` slices fit into each of its queues."""

    def __init__(self, queues: int = 2, room: int = 1000) -> None:
        self.queues = queues
        self.whole_blocks = False
        self.inboxes: list[list[Slice]] = [[] for _ in range(queues)]
        self._room = [asyncio.Semaphore(room) for _ in range(queues)]

    def put_nowait(self, one: Slice, queue: int) -> None:
        if self._room[queue].locked():
            raise WouldBlock("full")
        self._room[queue]._value -= 1
        self.inboxes[queue].append(one)

    async def put(self, one: Slice, queue: int) -> None:
        await self._room[queue].acquire()
        self.inboxes[queue].append(one)

    def take(self, queue: int) -> Slice:
        """Take the oldest slice of a queue, which makes room for another."""
        one = self.inboxes[queue].pop(0)
        self._room[queue].release()
        return one

    def settle_all(self, status: Status = Status.OK) -> None:
        """Settle every slice that is here."""
        for queue in range(self.queues):
            while self.inboxes[queue]:
                self.take(queue).report_rest(status)


def make_manager(load: Sink, dump: Sink | None = None, *, slice_bytes: int = 1 << 20, task_max: int = 8) -> TaskManager:
    loop = asyncio.get_running_loop()
    return TaskManager(load, dump or Sink(), slice_bytes=slice_bytes, task_max=task_max, loop=loop)
