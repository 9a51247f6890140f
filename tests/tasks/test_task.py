"""A task settles once, is finished when its last slice is back, and keeps its promises about memory in between."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from ucm_async.errors import BackendIOError, BlockMissError, WrongLoopError
from ucm_async.tasks import Task
from ucm_async.types import Status

from .doubles import ROW_BYTES, make_task, slices_of


async def settled(task: Task) -> list[Status]:
    return [Status(one) for one in (await task).status.tolist()]


async def test_it_settles_with_its_last_row() -> None:
    task = make_task(4)
    first, second = slices_of(task, (0, 2), (2, 4))
    second.report(np.array([1, 0]), Status.OK)
    first.report(np.array([0]), Status.MISS)
    assert not task.done()
    assert repr(task) == "<Task load 1 of 4 rows to come>"
    first.report(np.array([1]), Status.OK)
    assert task.done()
    assert repr(task) == "<Task load settled>"
    assert await settled(task) == [Status.MISS, Status.OK, Status.OK, Status.OK]
    assert task.result().loaded_prefix == 0


async def test_the_first_report_of_a_row_counts() -> None:
    task = make_task(3)
    (one,) = slices_of(task, (0, 3))
    one.report(np.array([0]), Status.CORRUPT)
    one.report(np.array([0, 1]), Status.OK)
    one.report_rest(Status.IO_ERROR)
    one.report_rest(Status.OK)
    assert await settled(task) == [Status.CORRUPT, Status.OK, Status.IO_ERROR]


async def test_rows_can_be_reported_with_a_status_each() -> None:
    task = make_task(3)
    (one,) = slices_of(task, (0, 3))
    one.report(np.array([1]), Status.OK)
    one.report(np.array([0, 1, 2]), np.array([Status.MISS, Status.MISS, Status.BUSY], dtype=np.uint8))
    assert await settled(task) == [Status.MISS, Status.OK, Status.BUSY]


async def test_the_reason_of_a_failure_is_kept() -> None:
    task = make_task(3)
    (one,) = slices_of(task, (0, 3))
    one.report(np.array([1]), Status.IO_ERROR, BackendIOError.from_errno(5, "read"))
    one.report_rest(Status.MISS)
    failures = (await task).failures
    assert "read: Input/output error (EIO)" in str(failures[1])
    assert isinstance(failures[0], BlockMissError)
    assert (failures[1].row, failures[1].block_id) == (1, task.ids[1].tobytes())
    error = failures[1]
    assert isinstance(error, OSError)
    assert error.errno == 5


async def test_the_errno_of_a_failure_is_that_of_its_system_call() -> None:
    task = make_task(1)
    (one,) = slices_of(task, (0, 1))
    one.report_rest(Status.IO_ERROR, BackendIOError.from_errno(13, "open"))
    error = (await task).failures[0]
    assert isinstance(error, OSError)
    assert error.errno == 13


async def test_a_deadline_settles_what_is_not_in() -> None:
    task = make_task(3)
    (one,) = slices_of(task, (0, 3))
    one.report(np.array([1]), Status.OK)
    task.set_deadline(asyncio.get_running_loop().time())
    assert await settled(task) == [Status.TIMEOUT, Status.OK, Status.TIMEOUT]
    one.report_rest(Status.OK)
    assert await settled(task) == [Status.TIMEOUT, Status.OK, Status.TIMEOUT]


async def test_the_earliest_deadline_counts() -> None:
    task = make_task(1)
    now = asyncio.get_running_loop().time()
    task.set_deadline(now + 100)
    task.set_deadline(math.inf)
    assert task.deadline == now + 100
    task.set_deadline(now)
    task.set_deadline(now + 100)
    assert await settled(task) == [Status.TIMEOUT]
    assert task.time_left_s() <= 0


async def test_who_waits_is_told_that_there_is_less_time() -> None:
    task, told = make_task(2), []
    now = asyncio.get_running_loop().time()
    task.when_hurried(lambda: told.append(task.deadline))
    task.set_deadline(now + 100)
    task.set_deadline(now + 200)  # changes nothing
    task.set_deadline(now + 50)
    assert told == [now + 100, now + 50]
    task.cancel()  # nobody needs the rest any more
    assert told == [now + 100, now + 50, now + 50]
    task.when_hurried(lambda: told.append(0))
    task.set_deadline(now)
    assert len(told) == 3


async def test_nobody_is_told_when_all_is_in() -> None:
    task, told = make_task(1), []
    task.when_hurried(lambda: told.append(1))
    (one,) = slices_of(task, (0, 1))
    one.report(np.array([0]), Status.OK)
    assert task.done() and not told


async def test_no_deadline() -> None:
    assert make_task(1).time_left_s() == math.inf


async def test_memory_is_released_when_it_settles_and_shut_by_the_gate() -> None:
    rows = bytearray(2 * ROW_BYTES)
    task = make_task(2, rows=rows)
    with pytest.raises(BufferError):
        rows.append(0)
    task.cancel()
    assert (await task).settled
    rows.append(0)


async def test_direct_memory_is_released_when_the_last_slice_is_back() -> None:
    """The kernel may still write there."""
    rows = bytearray(2 * ROW_BYTES)
    task = make_task(2, rows=rows, direct=True)
    first, second = slices_of(task, (0, 1), (1, 2))
    task.cancel()
    assert not (await task).settled
    waiter = asyncio.ensure_future(task.settled())
    first.report_rest(Status.OK)
    await asyncio.sleep(0)
    assert not waiter.done()
    with pytest.raises(BufferError):
        rows.append(0)
    second.report_rest(Status.OK)
    await waiter
    rows.append(0)
    await task.settled()


async def test_finished_is_told_once_and_last() -> None:
    told: list[Task] = []
    task = make_task(2, on_finished=told.append)
    first, second = slices_of(task, (0, 1), (1, 2))
    task.cancel()
    first.report_rest(Status.OK)
    assert told == []
    second.report_rest(Status.OK)
    assert told == [task]


async def test_several_awaits_and_one_cancelled() -> None:
    """A cancelled await cancels the task for all who wait: they get the result."""
    task = make_task(2)

    async def wait() -> object:
        return await task

    first, second = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    first.cancel()
    result = await second
    assert task.result() is result
    assert (task.result().status == Status.CANCELLED).all()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_waiting_without_the_power_to_cancel() -> None:
    task = make_task(1)
    (one,) = slices_of(task, (0, 1))
    waiter = asyncio.ensure_future(task.wait_settled())
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert not task.done()
    one.report_rest(Status.OK)
    await task.wait_settled()


async def test_wait_for_and_timeout_of_asyncio() -> None:
    task = make_task(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(task, 0.001)
    assert await settled(task) == [Status.CANCELLED]
    other = make_task(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await other
    assert other.done()


async def test_another_loop() -> None:
    task = make_task(1)

    async def wait() -> object:
        return await task

    with pytest.raises(WrongLoopError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, wait())
    task.cancel()
    assert await asyncio.to_thread(asyncio.run, wait()) is task.result()  # what has settled is for everyone
