"""A lane: slices of one turn of the loop leave together, bounds hold, every row is settled whatever the stage does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import numpy as np
import pytest

from tests.tasks.doubles import ROW_BYTES, make_task, slices_of
from ucm_async.errors import WouldBlock
from ucm_async.pipeline import Lane
from ucm_async.pipeline.lane import LATE_BATCHES_MAX
from ucm_async.tasks import SliceBatch, Task
from ucm_async.types import Status


class Recorder:
    """A stage's side of the lane: keeps the batches, and serves them when `gate` is set."""

    def __init__(self) -> None:
        self.batches: list[SliceBatch] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, batch: SliceBatch) -> None:
        self.batches.append(batch)
        await self.gate.wait()
        batch.report(np.arange(len(batch)), Status.OK)

    @property
    def sizes(self) -> list[int]:
        return [len(batch.slices) for batch in self.batches]


def lane_of(
    handler: Callable[[SliceBatch], Awaitable[None]], *, queues: int = 1, depth: int = 100, rows: int = 1000
) -> Lane:
    return Lane("test", handler, queues=queues, depth=depth, batch_bytes=rows * ROW_BYTES)


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    yield Recorder()


async def serve(lane: Lane, tasks: list[Task]) -> None:
    """Run the lane until every task has settled."""
    async with anyio.create_task_group() as group:
        lane.start(group)
        for task in tasks:
            await task
        group.cancel_scope.cancel()


def put(lane: Lane, count: int, *, rows: int = 1) -> list[Task]:
    tasks = [make_task(rows) for _ in range(count)]
    for number, task in enumerate(tasks):
        (one,) = slices_of(task, (0, rows))
        lane.put_nowait(one, number % lane.queues)
    return tasks


async def test_slices_of_one_turn_leave_as_one_batch(recorder: Recorder) -> None:
    lane = lane_of(recorder)
    await serve(lane, put(lane, 10))
    assert recorder.sizes == [10]
    told = lane.statistics()
    assert (told.slices, told.batches, told.queued, told.running, told.dropped) == (10, 1, 0, 0, 0)


async def test_a_batch_has_an_upper_bound(recorder: Recorder) -> None:
    lane = lane_of(recorder, rows=4)
    await serve(lane, put(lane, 10))
    assert recorder.sizes == [4, 4, 2]
    lane = lane_of(recorder, rows=4)
    await serve(lane, put(lane, 2, rows=7))  # a slice alone may exceed it
    assert recorder.sizes[3:] == [1, 1]


async def test_what_comes_while_the_stage_is_busy_goes_together(recorder: Recorder) -> None:
    lane = lane_of(recorder)
    recorder.gate.clear()
    async with anyio.create_task_group() as group:
        lane.start(group)
        tasks = put(lane, 1)
        while not recorder.batches:
            await asyncio.sleep(0)
        for _ in range(3):
            tasks += put(lane, 2)
            await asyncio.sleep(0)
        assert lane.statistics().running == 1
        assert lane.statistics().queued == 6
        recorder.gate.set()
        for task in tasks:
            await task
        group.cancel_scope.cancel()
    assert recorder.sizes == [1, 6]


async def test_each_queue_has_a_batch_in_the_stage(recorder: Recorder) -> None:
    lane = lane_of(recorder, queues=3)
    recorder.gate.clear()
    async with anyio.create_task_group() as group:
        lane.start(group)
        tasks = put(lane, 9)
        while len(recorder.batches) < 3:
            await asyncio.sleep(0)
        assert lane.statistics().running == 3
        recorder.gate.set()
        for task in tasks:
            await task
        group.cancel_scope.cancel()
    assert recorder.sizes == [3, 3, 3]


async def test_what_cannot_be_treated_alike_is_another_batch(recorder: Recorder) -> None:
    lane = lane_of(recorder)
    plain, direct, other = make_task(1), make_task(1, direct=True), make_task(1)
    for task in (plain, direct, other):
        lane.put_nowait(slices_of(task, (0, 1))[0], 0)
    await serve(lane, [plain, direct, other])
    assert [[one.task for one in batch.slices] for batch in recorder.batches] == [[plain, other], [direct]]


async def test_a_full_inbox(recorder: Recorder) -> None:
    lane = lane_of(recorder, depth=2)
    tasks = put(lane, 2)
    late = make_task(1)
    (one,) = slices_of(late, (0, 1))
    with pytest.raises(WouldBlock, match="test: inbox 0 is full"):
        lane.put_nowait(one, 0)
    putting = asyncio.ensure_future(lane.put(one, 0))
    await asyncio.sleep(0)
    assert not putting.done()
    await serve(lane, [*tasks, late])
    assert lane.statistics().slices == 3


async def test_slices_whose_task_has_settled_are_dropped(recorder: Recorder) -> None:
    lane = lane_of(recorder)
    tasks = put(lane, 4)
    tasks[0].cancel()
    tasks[2].cancel()
    await serve(lane, tasks)
    assert [one.task for batch in recorder.batches for one in batch.slices] == [tasks[1], tasks[3]]
    assert lane.statistics().dropped == 2


async def test_if_all_are_dropped_the_stage_hears_nothing(recorder: Recorder) -> None:
    finished: list[Task] = []
    lane = lane_of(recorder)
    task = make_task(1, on_finished=finished.append)
    lane.put_nowait(slices_of(task, (0, 1))[0], 0)
    task.cancel()
    other = put(lane, 1)
    await serve(lane, other)
    assert finished == [task]
    assert recorder.sizes == [1]


async def test_a_stage_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """Its rows are IO_ERROR with the reason, the traceback is logged, the lane goes on."""
    calls = 0

    async def raise_once(batch: SliceBatch) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            batch.report(np.array([0]), Status.OK)
            raise ZeroDivisionError("oh")
        batch.report_rest(Status.OK)

    lane = lane_of(raise_once, rows=3)
    first, second = put(lane, 1, rows=3)[0], put(lane, 1, rows=3)[0]
    await serve(lane, [first, second])
    assert first.result().status.tolist() == [Status.OK, Status.IO_ERROR, Status.IO_ERROR]
    assert "ZeroDivisionError: oh" in str(first.result().failures[1])
    assert second.result().ok.all()
    assert "ZeroDivisionError" in caplog.text


async def test_a_stage_that_forgets_rows() -> None:
    async def forget(batch: SliceBatch) -> None:
        batch.report(np.array([1]), Status.OK)

    lane = lane_of(forget)
    (task,) = put(lane, 1, rows=3)
    await serve(lane, [task])
    assert task.result().status.tolist() == [Status.IO_ERROR, Status.OK, Status.IO_ERROR]
    assert "without reporting" in str(task.result().failures[0])


async def test_a_lane_that_is_stopped_with_work_inside(recorder: Recorder) -> None:
    lane = lane_of(recorder)
    recorder.gate.clear()
    (task,) = put(lane, 1)
    async with anyio.create_task_group() as group:
        lane.start(group)
        while not recorder.batches:
            await asyncio.sleep(0)
        group.cancel_scope.cancel()
    assert (await task).status.tolist() == [Status.CLOSED]


async def test_the_short_way_is_taken_only_by_what_is_small_and_alone(recorder: Recorder) -> None:
    offered: list[Task] = []

    def begin(one, otherwise) -> bool:  # type: ignore[no-untyped-def]
        offered.append(one.task)
        one.succeed()
        return True

    lane = Lane("test", recorder, queues=1, depth=10, batch_bytes=1 << 20, begin=begin)
    (small,) = put(lane, 1)
    assert small.done()
    (large,) = put(lane, 1, rows=5000)
    (behind,) = put(lane, 1)
    assert offered == [small]
    await serve(lane, [large, behind])
    told = lane.statistics()
    assert (told.slices, told.short_way, told.batches) == (3, 1, 1)


async def test_a_stage_says_what_is_small(recorder: Recorder) -> None:
    offered: list[int] = []

    def begin(one, otherwise) -> bool:  # type: ignore[no-untyped-def]
        offered.append(one.nbytes)
        return False

    for rows in (4, 3):
        lane = Lane("test", recorder, queues=1, depth=10, batch_bytes=1 << 20, begin=begin)
        lane.short_way_bytes_max = 3 * ROW_BYTES
        await serve(lane, put(lane, 1, rows=rows))
    assert offered == [3 * ROW_BYTES]


async def test_parts_of_a_larger_task_are_not_small(recorder: Recorder) -> None:
    """They would all be served before the call that submits them returns."""
    lane = Lane("test", recorder, queues=2, depth=10, batch_bytes=1 << 20, begin=lambda *_: pytest.fail("offered"))
    task = make_task(2)
    for queue, one in enumerate(slices_of(task, (0, 1), (1, 2))):
        lane.put_nowait(one, queue)
    await serve(lane, [task])
    assert lane.statistics().short_way == 0


@pytest.mark.parametrize("room", [True, False])
async def test_the_short_way_may_end_in_the_inbox(recorder: Recorder, room: bool) -> None:
    back: list[Callable[[], None]] = []

    def begin(one, otherwise) -> bool:  # type: ignore[no-untyped-def]
        back.append(otherwise)
        return len(back) == 1

    lane = Lane("test", recorder, queues=1, depth=1, batch_bytes=1 << 20, begin=begin)
    tasks = put(lane, 1 if room else 2)
    assert not any(task.done() for task in tasks)
    back[0]()
    await serve(lane, tasks)
    told = lane.statistics()
    assert (told.short_way, told.slices) == (0, len(tasks))


class Hanging:
    """A stage that never ends with a batch, until it is let go; batches of tasks in `fine` it serves at once."""

    def __init__(self) -> None:
        self.fine: list[Task] = []
        self.inside = 0
        self.let_go = asyncio.Event()

    async def __call__(self, batch: SliceBatch) -> None:
        if not any(one.task in self.fine for one in batch.slices):
            self.inside += 1
            await self.let_go.wait()
        batch.report(np.arange(len(batch)), Status.OK)


@pytest.fixture
async def hanging() -> AsyncIterator[Hanging]:
    yield Hanging()


async def abandoned(lane: Lane, hanging: Hanging) -> Task:
    """Put a task, and give it up when the stage hangs on it."""
    before = hanging.inside
    (task,) = put(lane, 1)
    while hanging.inside == before:
        await asyncio.sleep(0)
    task.cancel()
    return task


async def test_a_batch_that_nobody_waits_for_does_not_hold_up_the_next(hanging: Hanging) -> None:
    lane = lane_of(hanging)
    async with anyio.create_task_group() as group:
        lane.start(group)
        for late in range(1, 6):
            await abandoned(lane, hanging)
            assert lane.statistics().late == late
        hanging.fine = put(lane, 3)
        for task in hanging.fine:
            assert (await task).ok.all()
        assert lane.statistics().running == 5
        hanging.let_go.set()
        while lane.statistics().running:
            await asyncio.sleep(0)
        assert lane.statistics().late == 0
        hanging.fine = put(lane, 1)
        assert (await hanging.fine[0]).ok.all()
        group.cancel_scope.cancel()


async def test_a_batch_that_one_task_still_waits_for_is_not_late(hanging: Hanging) -> None:
    lane = lane_of(hanging)
    first, second = put(lane, 2)
    async with anyio.create_task_group() as group:
        lane.start(group)
        while not hanging.inside:
            await asyncio.sleep(0)
        first.cancel()
        assert lane.statistics().late == 0
        second.cancel()
        assert lane.statistics().late == 1
        group.cancel_scope.cancel()


async def test_late_batches_are_bounded(hanging: Hanging) -> None:
    """More of them hold up what comes after: nobody may hang a thousand batches on a dead disk."""
    lane = lane_of(hanging)
    async with anyio.create_task_group() as group:
        lane.start(group)
        for _ in range(LATE_BATCHES_MAX):
            await abandoned(lane, hanging)
        last = await abandoned(lane, hanging)
        assert last.done()
        assert lane.statistics().late == LATE_BATCHES_MAX
        hanging.fine = put(lane, 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not hanging.fine[0].done()
        hanging.let_go.set()
        assert (await hanging.fine[0]).ok.all()
        group.cancel_scope.cancel()
