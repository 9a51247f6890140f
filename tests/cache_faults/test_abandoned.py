"""Loads that end while their block is being read: the caller's memory is his again, and the slot becomes a hit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm
from tests.faults.support import POISON, Array, assert_rows, content, page_aligned, poisoned, statuses
from ucm_async import Status
from ucm_async.stages.cache import CacheStage

from .conftest import Opener
from .roles import at_rest
from .stages import CONTROLLED, Controlled, stage_of
from .support import cache_keys

SLOTS = 16
IDS = ucm.block_ids(range(6))
OTHER_POISON = 0x5A
WAYS = ["timeout", "cancel", "await"]

pytestmark = pytest.mark.parametrize("share", [True, False])


async def until(condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never came")


async def end(task: ucm.Task, way: str) -> ucm.TaskResult:
    """End a task before its bytes are in."""
    if way == "cancel":
        assert task.cancel()
    elif way == "await":
        waiting = asyncio.ensure_future(_await(task))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    return await task


async def _await(task: ucm.Task) -> ucm.TaskResult:
    return await task


async def nothing_is_held(store: ucm.Store) -> None:
    assert await at_rest(store) == {}
    states = stage_of(store, CacheStage)._buffer.table.count_states()
    assert not states["held"] and not states["filling"], states


async def all_hits(store: ucm.Store, ids: Array) -> None:
    """What was read for somebody who has gone is in the cache, read once."""
    below = stage_of(store, Controlled)
    out = poisoned(len(ids))
    result = await store.load(ids, None, out)
    assert result.ok.all()
    assert_rows(result, out, content(ids))
    assert {below.loaded[bytes(one)] for one in ids} == {1}


@pytest.mark.parametrize("way", WAYS)
async def test_a_load_that_ended_writes_no_more(open_store: Opener, share: bool, way: str) -> None:
    store = await open_store(CONTROLLED, **cache_keys(slots=SLOTS, share_buffer_enable=share))
    below = stage_of(store, Controlled)
    below.loads.clear()
    out = poisoned(len(IDS))
    task = store.load(IDS, None, out, timeout=0.05 if way == "timeout" else 30)
    await until(lambda: below.loaded)
    result = await end(task, way)
    assert set(statuses(result)) == {Status.TIMEOUT if way == "timeout" else Status.CANCELLED}
    out[:] = OTHER_POISON
    below.loads.set()
    await nothing_is_held(store)
    assert (out == OTHER_POISON).all()
    await all_hits(store, IDS)


@pytest.mark.parametrize("way", WAYS)
async def test_into_registered_memory(open_store: Opener, share: bool, way: str) -> None:
    """It is the caller's again when the task says that it is settled."""
    store = await open_store(CONTROLLED, **cache_keys(slots=SLOTS, share_buffer_enable=share))
    below = stage_of(store, Controlled)
    below.loads.clear()
    out = page_aligned(len(IDS))
    with store.register(out):
        task = store.load(IDS, None, out, timeout=0.05 if way == "timeout" else 30)
        await until(lambda: below.loaded)
        await end(task, way)
        below.loads.set()
        await task.settled()
        out[:] = OTHER_POISON
        await nothing_is_held(store)
        assert (out == OTHER_POISON).all()
    await all_hits(store, IDS)


@pytest.mark.parametrize("way", WAYS)
async def test_others_who_wait_for_the_same(open_store: Opener, share: bool, way: str) -> None:
    """One goes, one comes to his deadline, one gets his bytes: the block is read once."""
    store = await open_store(CONTROLLED, **cache_keys(slots=SLOTS, share_buffer_enable=share))
    below = stage_of(store, Controlled)
    below.loads.clear()
    outs = [poisoned(len(IDS)) for _ in range(4)]
    first = store.load(IDS, None, outs[0], timeout=0.05 if way == "timeout" else 30)
    await until(lambda: below.loaded)
    late = store.load(IDS, None, outs[1], timeout=0.05)
    patient = [store.load(IDS, None, out, timeout=30) for out in outs[2:]]
    await end(first, way)
    assert set(statuses(await late)) == {Status.TIMEOUT}
    below.loads.set()
    for task, out in zip(patient, outs[2:], strict=True):
        result = await task
        assert result.ok.all()
        assert_rows(result, out, content(IDS))
    assert (np.array(outs[:2]) == POISON).all()
    await nothing_is_held(store)
    await all_hits(store, IDS)


async def test_more_than_there_are_slots(open_store: Opener, share: bool) -> None:
    """Some of them go round the cache; when all are given up nothing stays behind."""
    store = await open_store(CONTROLLED, **cache_keys(slots=4, share_buffer_enable=share))
    below = stage_of(store, Controlled)
    below.loads.clear()
    ids = ucm.block_ids(range(40))
    outs = [poisoned(4) for _ in range(10)]
    tasks = [store.load(ids[4 * n : 4 * n + 4], None, out) for n, out in enumerate(outs)]
    await until(lambda: below.loaded)
    await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    for task in tasks:
        await task
    for out in outs:
        out[:] = OTHER_POISON
    below.loads.set()
    await nothing_is_held(store)
    assert (np.array(outs) == OTHER_POISON).all()


async def test_a_lease_that_is_given_up(open_store: Opener, share: bool) -> None:
    store = await open_store(CONTROLLED, **cache_keys(slots=SLOTS, share_buffer_enable=share))
    below = stage_of(store, Controlled)
    below.loads.clear()
    leasing = asyncio.ensure_future(store.lease(IDS).__aenter__())
    await until(lambda: below.loaded)
    leasing.cancel()
    await asyncio.gather(leasing, return_exceptions=True)
    assert leasing.cancelled()
    async with store.lease(IDS, timeout=0.05) as views:
        assert views == [None] * len(IDS)
    below.loads.set()
    await nothing_is_held(store)
    await all_hits(store, IDS)


@pytest.mark.parametrize("way", WAYS)
async def test_a_dump_that_ended_takes_nothing_more(open_store: Opener, share: bool, way: str) -> None:
    """The source is changed as soon as the dump has ended: what is stored is what it was before, or nothing."""
    store = await open_store(CONTROLLED, **cache_keys(slots=SLOTS, share_buffer_enable=share))
    below = stage_of(store, Controlled)
    below.dumps.clear()
    source = content(IDS)
    task = store.dump(IDS, None, source, timeout=0.05 if way == "timeout" else 30)
    await asyncio.sleep(0.02)
    result = await end(task, way)
    assert not result.ok.any()
    source[:] = OTHER_POISON
    below.dumps.set()
    await nothing_is_held(store)
    out = poisoned(len(IDS))
    assert_rows(await store.load(IDS, None, out), out, content(IDS))


async def test_at_random_moments(open_store: Opener, share: bool, tmp_path: Path) -> None:
    """Real reads and copies race with the end of their tasks."""
    keys = cache_keys(tmp_path, slots=SLOTS, share_buffer_enable=share)
    store = await open_store("Cache|Posix", **keys)
    ids = ucm.block_ids(range(48))
    expected = content(ids)
    assert (await store.dump(ids, None, expected)).ok.all()
    generator = np.random.default_rng(share)
    ended = 0
    for n in range(120):
        some = generator.choice(len(ids), 8, replace=False)
        out = poisoned(8)
        task = store.load(np.ascontiguousarray(ids[some]), None, out, timeout=float(generator.uniform(0, 0.004)))
        if n % 3 == 0:
            await asyncio.sleep(float(generator.uniform(0, 0.002)))
            task.cancel()
        result = await task
        after = out.copy()
        assert_rows(result, out, expected[some])
        assert set(statuses(result)) <= {Status.OK, Status.TIMEOUT, Status.CANCELLED}
        ended += not result.ok.all()
        await asyncio.sleep(0.002)
        assert np.array_equal(out, after), "written to after the end"
    assert ended > 5
    await nothing_is_held(store)
