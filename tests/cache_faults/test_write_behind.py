"""The stage below fails, or hangs, while dumps that were OK in the cache are written to it."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

import ucm_async as ucm
from tests.faults.support import BLOCK, SHARD, Array, assert_rows, check_blocks, content, poisoned, statuses
from ucm_async import Status
from ucm_async.stages.cache import CacheStage

from .conftest import Opener, Starter
from .roles import at_rest
from .stages import CONTROLLED, Controlled, stage_of
from .support import cache_keys, inspect, shard_rows

SLOTS = 32
IDS = ucm.block_ids(range(8))
BAD, GOOD = IDS[::2].copy(), IDS[1::2].copy()

ERRORS = {Status.IO_ERROR: ucm.BackendIOError, Status.NO_SPACE: ucm.NoSpaceError}


def spoil(store: ucm.Store, status: Status) -> Controlled:
    """Nothing is stored yet, and dumps of `BAD` fail."""
    below: Controlled = stage_of(store, Controlled)
    below.missing = set(map(bytes, IDS))
    below.failing = dict.fromkeys(map(bytes, BAD), status)
    return below


async def expect_misses_and_others_unharmed(store: ucm.Store) -> None:
    found = await store.lookup(IDS)
    assert found.tolist() == [False, True] * (len(IDS) // 2)
    out = poisoned(len(IDS))
    result = await store.load(IDS, None, out)
    assert statuses(result) == [Status.MISS, Status.OK] * (len(IDS) // 2)
    assert_rows(result, out, content(IDS))
    assert await at_rest(store) == {}
    assert not stage_of(store, CacheStage)._buffer.table.count_states()["dirty"]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("status", ERRORS)
async def test_a_failure_is_told_by_flush(
    open_store: Opener, share: bool, status: Status, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(CONTROLLED, **cache_keys(slots=SLOTS, share_buffer_enable=share))
    below = spoil(store, status)
    with caplog.at_level(logging.ERROR, "ucm_async.cache"):
        assert (await store.dump(IDS, None, content(IDS), durability="cached")).ok.all()
        failures = await store.flush()
    assert set(failures) == set(map(bytes, BAD))
    assert {type(error) for error in failures.values()} == {ERRORS[status]}
    assert len(caplog.records) == len(BAD)
    assert await store.flush() == {}, "each is told once"
    assert {below.dumped[bytes(one)] for one in GOOD} == {1}
    await expect_misses_and_others_unharmed(store)
    # When the stage below is well again, all can be dumped anew.
    below.failing.clear()
    assert (await store.dump(BAD, None, content(BAD), durability="cached")).ok.all()
    assert await store.flush() == {}
    await check_blocks(store, IDS)


async def test_a_failure_of_shards(open_store: Opener) -> None:
    store = await open_store(CONTROLLED, **cache_keys(slots=SLOTS))
    spoil(store, Status.IO_ERROR)
    rows, shards = shard_rows(IDS, np.random.default_rng(1))
    place = (rows[:, None] == IDS[None]).all(axis=2).argmax(axis=1)
    data = content(IDS).reshape(len(IDS), -1, SHARD)[place, shards]
    for part in np.array_split(np.arange(len(rows)), 3):
        assert (await store.dump(rows[part], shards[part], data[part], durability="cached")).ok.all()
    assert set(await store.flush()) == set(map(bytes, BAD))
    await expect_misses_and_others_unharmed(store)


async def test_a_failure_that_passes(open_store: Opener) -> None:
    """The next try is good: nobody is told anything."""
    store = await open_store(CONTROLLED, **cache_keys(slots=SLOTS))
    below = spoil(store, Status.IO_ERROR)
    stage = stage_of(store, CacheStage)
    assert (await store.dump(IDS, None, content(IDS), durability="cached")).ok.all()
    while not stage.statistics()["counts"].get("behind_retries"):
        await asyncio.sleep(0.001)
    below.failing.clear()
    assert await store.flush() == {}
    assert (await store.lookup(IDS)).all()
    assert not below.missing


async def test_a_failure_while_closing(open_store: Opener, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody asks any more: it is in the log."""
    store = await open_store(CONTROLLED, **cache_keys(slots=SLOTS))
    spoil(store, Status.IO_ERROR)
    assert (await store.dump(IDS, None, content(IDS), durability="cached")).ok.all()
    with caplog.at_level(logging.ERROR, "ucm_async.cache"):
        await store.aclose()
    assert len(caplog.records) == len(BAD)


@pytest.mark.parametrize("share", [True, False])
async def test_the_stage_below_hangs(open_store: Opener, share: bool) -> None:
    """What may be owed is bounded: the dumps above that wait, up to their deadlines; loads go on."""
    owed = 4
    keys = cache_keys(slots=SLOTS, share_buffer_enable=share, dump_behind_bytes=owed * BLOCK)
    store = await open_store(CONTROLLED, **keys)
    below = stage_of(store, Controlled)
    below.dumps.clear()
    some: list[Array] = [ucm.block_ids([n]) for n in range(3 * owed)]
    for one in some[:owed]:
        assert (await store.dump(one, None, content(one), durability="cached")).ok.all()
    late = [store.dump(one, None, content(one), durability="cached", timeout=0.05) for one in some[owed : 2 * owed]]
    patient = [store.dump(one, None, content(one), durability="cached") for one in some[2 * owed :]]
    assert {status for task in late for status in statuses(await task)} == {Status.TIMEOUT}
    await check_blocks(store, ucm.block_ids(range(owed)))
    await check_blocks(store, ucm.block_ids(range(100, 140)))
    assert stage_of(store, CacheStage).statistics()["behind"]["owed_bytes"] == owed * BLOCK
    assert not any(task.done() for task in patient)
    below.dumps.set()
    for task in patient:
        assert (await task).ok.all()
    assert await store.flush() == {}
    assert await at_rest(store) == {}


def test_who_owes_dies(start: Starter) -> None:
    """Nobody else will write it: it must not look as if it were stored."""
    keys = cache_keys(slots=SLOTS)
    options = {"stage_options": {"Controlled": {"dump_delay_s": 60}}}
    debtor = start("puppet", pipeline=CONTROLLED, keys=keys | options)
    other = start("puppet", pipeline="Cache|Fake", keys=keys)
    for child in (debtor, other):
        child.expect("ready")
    numbers = list(range(4))
    assert debtor.ask("dump", numbers, "cached") == ["OK"] * 4
    assert other.ask("load", numbers) == ["OK"] * 4
    debtor.kill()
    third = start("puppet", pipeline="Cache|Fake", keys=keys)
    third.expect("ready")
    for child in (other, third):
        assert child.ask("lookup", numbers) == [False] * 4
        assert child.ask("load", numbers) == ["MISS"] * 4
    with inspect(keys["unique_id"]) as table:
        table.check_at_rest()
    other.leave()
    third.leave()
