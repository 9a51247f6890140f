"""The task manager: round-robin, bounds, backpressure, draining."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref

import numpy as np
import pytest

from ucm_async.errors import BusyError, StoreClosedError
from ucm_async.tasks import LaneName, Memory, Task, TaskManager
from ucm_async.types import Status

from .doubles import ROW_BYTES, Sink, make_manager, memory_of, whole


def submit(manager: TaskManager, count: int, lane: LaneName = "load", rows: object = None) -> Task:
    memory = memory_of(bytearray(count * ROW_BYTES) if rows is None else rows, count)
    return manager.submit(lane, *whole(count), memory, deadline=math.inf)


async def test_slices_go_round_robin() -> None:
    sink = Sink(queues=3)
    manager = make_manager(sink)
    tasks = [submit(manager, 1) for _ in range(7)]
    assert [[tasks.index(one.task) for one in inbox] for inbox in sink.inboxes] == [[0, 3, 6], [1, 4], [2, 5]]
    sink.settle_all()


async def test_a_large_task_is_cut() -> None:
    sink = Sink(queues=2)
    manager = make_manager(sink, slice_bytes=16 * ROW_BYTES)
    task = submit(manager, 100)
    found = sorted((one.start, one.stop) for inbox in sink.inboxes for one in inbox)
    assert found[0][0] == 0
    assert found[-1][1] == 100
    assert max(stop - start for start, stop in found) <= 16
    sink.settle_all()
    assert (await task).ok.all()


async def test_lanes_are_apart() -> None:
    load, dump = Sink(), Sink()
    manager = make_manager(load, dump)
    first, second = submit(manager, 1, "load"), submit(manager, 1, "dump")
    assert load.inboxes[0][0].task is first
    assert dump.inboxes[0][0].task is second
    dump.settle_all()
    assert second.done()
    assert not first.done()
    load.settle_all()


async def test_no_rows_are_done_at_once() -> None:
    manager = make_manager(Sink())
    nothing = Memory(np.zeros((0, 1), dtype=np.uint64), (ROW_BYTES,))
    task = manager.submit("load", *whole(0), nothing, deadline=math.inf)
    assert task.done()
    assert (await task).loaded_prefix == 0
    assert manager.statistics().finished == 1


async def test_too_many_tasks_are_busy() -> None:
    sink = Sink()
    manager = make_manager(sink, task_max=2)
    first, second = submit(manager, 1), submit(manager, 1)
    rows = bytearray(2 * ROW_BYTES)
    third = submit(manager, 2, rows=rows)
    assert third.done()
    rows.append(0)
    result = await third
    assert result.status.tolist() == [Status.BUSY] * 2
    error = result.failures[1]
    assert isinstance(error, BusyError)
    assert "2 tasks are under way (task_max)" in str(error)
    sink.settle_all()
    assert first.done()
    assert second.done()
    fourth = submit(manager, 1)
    assert not fourth.done()
    sink.settle_all()
    assert manager.statistics().rows == {**{status.name: 0 for status in Status}, "OK": 3, "BUSY": 2}


async def test_a_full_lane_keeps_slices_waiting_in_order() -> None:
    sink = Sink(queues=2, room=1)
    manager = make_manager(sink, task_max=100)
    tasks = [submit(manager, 1) for _ in range(50)]
    assert manager.statistics().waiting_slices == 48
    served: list[int] = []
    while len(served) < 50:
        for queue in range(2):
            if sink.inboxes[queue]:
                one = sink.take(queue)
                served.append(tasks.index(one.task))
                one.report_rest(Status.OK)
        await asyncio.sleep(0)
    assert served == list(range(50))
    assert manager.statistics().waiting_slices == 0


async def test_a_waiting_slice_of_a_settled_task_does_not_reach_the_lane() -> None:
    sink = Sink(queues=1, room=1)
    manager = make_manager(sink, task_max=100)
    tasks = [submit(manager, 1) for _ in range(4)]
    await asyncio.sleep(0)  # the feeder waits with the second one
    tasks[2].cancel()
    reached = []
    for _ in range(10):
        if sink.inboxes[0]:
            one = sink.take(0)
            reached.append(tasks.index(one.task))
            one.report_rest(Status.OK)
        await asyncio.sleep(0)
    assert reached == [0, 1, 3]
    assert manager.statistics().finished == 4


async def test_drain_waits_for_what_is_under_way_now() -> None:
    load, dump = Sink(), Sink()
    manager = make_manager(load, dump)
    submit(manager, 1, "load")
    submit(manager, 1, "dump")
    draining = asyncio.ensure_future(manager.drain("dump"))
    await asyncio.sleep(0)
    later = submit(manager, 1, "dump")
    dump.take(0).report_rest(Status.OK)
    await draining
    assert not later.done()
    load.settle_all()
    dump.settle_all()


async def test_drain_can_wait_for_late_completions() -> None:
    sink = Sink()
    manager = make_manager(sink)
    task = submit(manager, 1)
    task.cancel()
    await manager.drain()
    draining = asyncio.ensure_future(manager.drain(finished=True))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not draining.done()
    sink.settle_all()
    await draining


async def test_aclose_refuses_and_drains() -> None:
    sink = Sink()
    manager = make_manager(sink)
    task = submit(manager, 1)
    closing = asyncio.ensure_future(manager.aclose())
    await asyncio.sleep(0)
    assert manager.closed
    rows = bytearray(ROW_BYTES)
    with pytest.raises(StoreClosedError):
        submit(manager, 1, rows=rows)
    rows.append(0)
    assert not closing.done()
    sink.settle_all()
    await closing
    assert task.done()
    await manager.aclose()


async def test_the_longest_wait() -> None:
    sink = Sink()
    manager = make_manager(sink)
    assert manager.longest_wait_s() == 0
    task = submit(manager, 1)
    assert manager.longest_wait_s() == math.inf
    task.set_deadline(asyncio.get_running_loop().time() + 100)
    assert 0 < manager.longest_wait_s() < 101
    task.cancel()
    assert manager.longest_wait_s() == 0
    sink.settle_all()


async def test_a_task_that_nobody_awaits_is_cleaned_up() -> None:
    """Its memory is given back and nothing refers to it any more."""
    sink = Sink()
    manager = make_manager(sink)
    rows = np.zeros((1, ROW_BYTES), dtype=np.uint8)
    gone = weakref.ref(rows)
    submit(manager, 1, rows=rows)
    del rows
    assert gone() is not None
    sink.settle_all()
    gc.collect()
    assert gone() is None
    assert manager.statistics().finished == 1


async def test_statistics() -> None:
    sink = Sink()
    manager = make_manager(sink)
    first = submit(manager, 2)
    submit(manager, 1)
    first.cancel()
    told = manager.statistics()
    assert (told.submitted, told.settled, told.finished) == (2, 1, 0)
    sink.settle_all(Status.MISS)
    told = manager.statistics()
    assert (told.submitted, told.settled, told.finished) == (2, 2, 2)
    assert (told.rows["CANCELLED"], told.rows["MISS"]) == (2, 1)
