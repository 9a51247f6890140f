"""Requests that hang: deadlines are kept, the others are served, and everything comes back in the end.

"Promptly" is told generously (two seconds for a deadline of 50 ms): these tests are about never, not about late.
"""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import ucm_async as ucm
import ucm_async.store
from ucm_async import Status
from ucm_async.engines import requests as rq
from ucm_async.testing.faults import Fault

from .conftest import Opener
from .support import (
    ENGINES,
    READS,
    WRITES,
    Array,
    Faults,
    assert_rows,
    check_blocks,
    content,
    held,
    home,
    inject,
    page_aligned,
    poisoned,
    quiet,
    statuses,
    strike,
    temporary,
    until,
)

IDS = ucm.block_ids(range(12))
DEADLINE_S = 0.05
PARTLY_S = 0.25
"""A deadline by which the rows that do not hang must be in, on a busy machine, too."""
LONG_S = 60.0
PROMPTLY_S = 2.0
HANG = Fault("hang")


async def stored(store: ucm.Store, ids: Array = IDS) -> Faults:
    assert (await store.dump(ids, None, content(ids))).ok.all()
    return inject(store)


async def in_time(task: ucm.Task) -> ucm.TaskResult:
    """Await a task; it must settle long before the hang ends, which is never."""
    async with asyncio.timeout(PROMPTLY_S):
        return await task


async def after_a_hang(
    store: ucm.Store, faults: Faults, task: ucm.Task, seconds: float = DEADLINE_S, *, hangs: int = 1
) -> ucm.TaskResult:
    """Await a task that was given time, until `seconds` from when so many hang: on a busy machine it begins late."""
    await until(lambda: faults.injected()["hang"] >= hangs)
    return await in_time(asyncio.ensure_future(store.wait(task, timeout=seconds)))  # type: ignore[arg-type]


async def expect_one_timeout(store: ucm.Store, faults: Faults, hangs: int = 1) -> None:
    out = poisoned(len(IDS))
    result = await after_a_hang(store, faults, store.load(IDS, None, out, timeout=LONG_S), PARTLY_S, hangs=hangs)
    assert_rows(result, out, content(IDS))
    assert sorted(statuses(result)) == [Status.OK] * (len(IDS) - 1) + [Status.TIMEOUT]
    (row,) = result.failures
    assert isinstance(result.failures[row], TimeoutError)


@pytest.mark.parametrize("engine", ENGINES)
async def test_one_read_of_a_batch(open_store: Opener, engine: str) -> None:
    store = await open_store(io_engine=engine)
    faults = await stored(store)
    faults.load.plan = strike(HANG, *READS, skip=4, times=1)
    await expect_one_timeout(store, faults)
    assert faults.load.hanging
    # While it hangs: many more loads than there are lanes, each of them whole.
    for _ in range(3 * store.config.queue_number):
        await in_time(asyncio.ensure_future(check_blocks(store, IDS)))  # type: ignore[arg-type]
    assert held(store)["load slots"] == 1  # the others came back at the deadline
    faults.load.release()
    await quiet(store)


async def test_one_after_another_hangs(store: ucm.Store) -> None:
    """Each keeps its own slots, and no lane; so the store serves on, batch after batch."""
    faults = await stored(store)
    for n in range(2 * store.config.queue_number + 1):
        faults.load.plan = strike(HANG, *READS, skip=n, times=1)
        await expect_one_timeout(store, faults, n + 1)
    assert faults.load.hanging > 2 * store.config.queue_number
    await check_blocks(store, IDS)
    faults.stop()
    await quiet(store)


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("ending", ["cancel", "timeout"])
async def test_loads_that_hang_and_end_leave_the_lanes(store: ucm.Store, ending: str, registered: bool) -> None:
    """More of them than lanes, and as many later loads as it takes to fill an inbox behind each."""
    faults = await stored(store)
    faults.load.plan = strike(HANG, *READS)
    out = page_aligned(1)
    with store.register(out):
        for n in range(2 * store.config.queue_number):
            memory = out if registered else poisoned(1)
            task = store.load(IDS[:1], None, memory, timeout=LONG_S)
            await until(lambda n=n: faults.injected()["hang"] > n)
            if ending == "cancel":
                task.cancel()
            assert statuses(await after_a_hang(store, faults, task)) != [Status.OK]
        faults.load.plan = lambda _, __: None
        async with asyncio.timeout(10):
            for _ in range(store.config.queue_number * store.config.queue_depth + 8):
                await check_blocks(store, IDS[1:2])
        assert faults.load.hanging
        faults.stop()
        await quiet(store)


async def test_everything_hangs(store: ucm.Store) -> None:
    """More loads than there are slots: every deadline is kept, and everything works as soon as the disk does."""
    faults = await stored(store)
    slots = store.statistics().pipeline["Posix"]["stage"]["load"]["arena"]["slots"]
    faults.load.plan = strike(HANG, *READS)
    for _ in range(2 * (slots // len(IDS) + 1)):
        result = await in_time(store.load(IDS, None, poisoned(len(IDS)), timeout=DEADLINE_S))
        assert set(statuses(result)) == {Status.TIMEOUT}
    faults.stop()
    await check_blocks(store, IDS)
    await quiet(store)


@pytest.mark.parametrize("code", [rq.OP_OPEN, rq.OP_CLOSE])
async def test_a_file_operation_hangs(store: ucm.Store, code: int) -> None:
    faults = await stored(store)
    faults.load.plan = strike(HANG, code, skip=4, times=1)
    task = store.load(IDS, None, poisoned(len(IDS)), timeout=LONG_S)
    result = await after_a_hang(store, faults, task, PARTLY_S)
    assert faults.injected() == {"hang": 1}
    assert statuses(result).count(Status.OK) >= len(IDS) - 1
    faults.stop()
    await check_blocks(store, IDS)
    await quiet(store)


# ---- dumps


@pytest.mark.parametrize("engine", ENGINES)
async def test_one_write_of_a_batch(open_store: Opener, engine: str) -> None:
    """A batch of dumps ends as one; what matters is that the deadline is kept and nothing is lost or stuck."""
    store = await open_store(io_engine=engine)
    faults = inject(store)
    faults.dump.plan = strike(HANG, *WRITES, skip=4, times=1)
    result = await after_a_hang(store, faults, store.dump(IDS, None, content(IDS), timeout=LONG_S))
    assert faults.dump.hanging
    assert set(statuses(result)) <= {Status.OK, Status.TIMEOUT}
    others = ucm.block_ids(range(100, 110))
    assert (await in_time(store.dump(others, None, content(others)))).ok.all()
    await check_blocks(store, others)
    faults.stop()
    await quiet(store)
    await check_blocks(store, IDS, allowed=(Status.OK, Status.MISS))
    assert (await store.dump(IDS, None, content(IDS))).ok.all()
    await check_blocks(store, IDS)


@pytest.mark.parametrize("ending", ["cancel", "timeout"])
async def test_dumps_that_hang_and_end_leave_the_lanes(store: ucm.Store, ending: str) -> None:
    faults = inject(store)
    faults.dump.plan = strike(HANG, *WRITES)
    for n in range(2 * store.config.queue_number):
        task = store.dump(IDS[n : n + 1], None, content(IDS[n : n + 1]), timeout=LONG_S)
        await until(lambda n=n: faults.injected()["hang"] > n)
        if ending == "cancel":
            task.cancel()
        assert statuses(await after_a_hang(store, faults, task)) != [Status.OK]
    faults.dump.plan = lambda _, __: None
    others = ucm.block_ids(range(1000, 1000 + store.config.queue_number * store.config.queue_depth + 8))
    async with asyncio.timeout(10):
        for i in range(len(others)):
            assert (await store.dump(others[i : i + 1], None, content(others[i : i + 1]))).ok.all()
    faults.stop()
    await quiet(store)
    await check_blocks(store, others)
    await check_blocks(store, IDS, allowed=(Status.OK, Status.MISS))


async def test_retries_of_a_block_whose_write_hangs(store: ucm.Store) -> None:
    """They wait for the first one, up to their deadlines; blocks that hang on nothing are dumped meanwhile."""
    faults = inject(store)
    faults.dump.plan = strike(HANG, *WRITES, times=1)
    for _ in range(3 * store.config.queue_number):
        result = await in_time(store.dump(IDS[:1], None, content(IDS[:1]), timeout=DEADLINE_S))
        assert statuses(result) == [Status.TIMEOUT]
    for i in range(1, len(IDS)):
        assert (await in_time(store.dump(IDS[i : i + 1], None, content(IDS[i : i + 1])))).ok.all()
    assert faults.dump.hanging
    faults.stop()
    assert (await in_time(store.dump(IDS[:1], None, content(IDS[:1])))).ok.all()
    await check_blocks(store, IDS)
    await quiet(store)


async def test_loads_go_on_while_dumps_hang_and_dumps_while_loads_do(store: ucm.Store) -> None:
    faults = await stored(store)
    others = ucm.block_ids(range(100, 112))
    faults.dump.plan = strike(HANG, *WRITES)
    hanging = [store.dump(others[i : i + 1], None, content(others[i : i + 1])) for i in range(len(others))]
    for _ in range(10):
        await in_time(asyncio.ensure_future(check_blocks(store, IDS)))  # type: ignore[arg-type]
    faults.stop()
    for task in hanging:
        assert (await in_time(task)).ok.all()
    faults.load.plan = strike(HANG, *READS)
    waiting = [store.load(IDS[i : i + 1], None, poisoned(1)) for i in range(len(IDS))]
    more = ucm.block_ids(range(200, 212))
    assert (await in_time(store.dump(more, None, content(more)))).ok.all()
    assert (await in_time(asyncio.ensure_future(store.lookup(more)))).all()  # type: ignore[arg-type]
    faults.stop()
    for task in waiting:
        assert (await in_time(task)).ok.all()
    await quiet(store)


# ---- the end of the store


@pytest.mark.parametrize("lane", ["load", "dump"])
async def test_closing_does_not_wait_for_ever(
    open_store: Opener, lane: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says that the kernel still holds memory, and gives up."""
    monkeypatch.setattr(ucm_async.store, "LATE_COMPLETIONS_S_MAX", 0.2)
    store = await open_store()
    faults = await stored(store)
    late = ucm.block_ids([99])
    faults.load.plan, faults.dump.plan = strike(HANG, *READS), strike(HANG, *WRITES)
    if lane == "load":
        task = store.load(IDS, None, poisoned(len(IDS)), timeout=LONG_S)
    else:
        task = store.dump(late, None, content(late), timeout=LONG_S)
    result = await after_a_hang(store, faults, task)
    assert set(statuses(result)) == {Status.TIMEOUT}
    async with asyncio.timeout(PROMPTLY_S):
        await store.aclose()
    assert "kernel" in caplog.text
    caplog.clear()
    faults.stop()
    await until(lambda: not faults.load.hanging and not faults.dump.hanging)


async def test_closing_waits_for_what_is_late(open_store: Opener) -> None:
    """A read that comes back in the end finds its slot still there."""
    store = await open_store()
    faults = await stored(store)
    faults.load.plan = strike(HANG, *READS, times=1)
    task = store.load(IDS, None, poisoned(len(IDS)), timeout=LONG_S)
    result = await after_a_hang(store, faults, task, PARTLY_S)
    assert Status.TIMEOUT in statuses(result)
    root = home(store)
    closing = asyncio.ensure_future(store.aclose())
    await asyncio.sleep(0.02)
    assert not closing.done()
    faults.stop()
    await closing
    assert temporary(root) == []


async def test_a_switch_of_engines_while_reads_hang(open_store: Opener) -> None:
    """What the old engine has it finishes; what comes goes to the new one, at once."""
    store = await open_store(io_engine="psync")
    faults = await stored(store)
    faults.load.plan = strike(HANG, *READS, times=1)
    task = store.load(IDS, None, poisoned(len(IDS)), timeout=LONG_S)
    result = await after_a_hang(store, faults, task, PARTLY_S)
    assert statuses(result).count(Status.TIMEOUT) == 1
    switching = asyncio.ensure_future(store.setup(io_engine="auto"))
    await asyncio.sleep(0)
    await check_blocks(store, IDS)
    faults.load.release()
    await switching
    await check_blocks(store, IDS)
    assert np.asarray(await store.lookup(IDS)).all()
