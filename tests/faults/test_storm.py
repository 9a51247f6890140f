"""Cancellation storms: hundreds of loads and dumps that end at random moments, while others go on."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status
from ucm_async.engines.requests import OP_MASK
from ucm_async.testing.faults import Fault, seeded

from .conftest import Opener
from .support import (
    ENGINES,
    READS,
    SHARD,
    SHARDS,
    WRITES,
    Array,
    Faults,
    assert_rows,
    by_shard,
    check_blocks,
    content,
    files_below,
    home,
    inject,
    page_aligned,
    poisoned,
    quiet,
)

IDS = ucm.block_ids(range(64))
CALLS = 120
ALLOWED = {Status.OK, Status.MISS, Status.TIMEOUT, Status.CANCELLED}


class Storm:
    """Random calls on one store, each ended at a random moment or left alone; what is OK must be right."""

    def __init__(self, store: ucm.Store, seed: int, registered: Array) -> None:
        self.store = store
        self.generator = np.random.default_rng(seed)
        self.registered = registered
        self.free = list(range(len(registered)))
        self.ended = 0

    async def call(self) -> None:
        await asyncio.sleep(float(self.generator.uniform(0, 0.05)))
        kind = self.generator.integers(4)
        count = int(self.generator.integers(1, 8))
        ids = np.ascontiguousarray(IDS[self.generator.choice(len(IDS), count, replace=False)])
        if kind == 0:
            await self.load(ids)
        elif kind == 1:
            await self.load_registered(ids[:1])
        elif kind == 2:
            source = content(ids)
            await self.finish(self.store.dump(ids, None, source, timeout=self.timeout()))
            source[:] = 0
        else:
            rows, shards, data = by_shard(ids, self.generator.permutation(count * SHARDS))
            await self.finish(self.store.dump(rows, shards, data, timeout=self.timeout()))
            data[:] = 0

    async def load(self, ids: Array) -> None:
        out, expected = poisoned(len(ids)), content(ids)
        result = await self.finish(self.store.load(ids, None, out, timeout=self.timeout()))
        snapshot = out.copy()
        assert_rows(result, out, expected)
        await asyncio.sleep(0.01)
        assert np.array_equal(out, snapshot), "written to after the end"

    async def load_registered(self, ids: Array) -> None:
        if not self.free:
            return
        slot = self.free.pop()
        out, expected = self.registered[slot : slot + 1], content(ids)
        task = self.store.load(ids, None, out, timeout=self.timeout())
        result = await self.finish(task)
        assert_rows(result, out, expected)
        await task.settled()
        snapshot = out.copy()
        await asyncio.sleep(0.01)
        assert np.array_equal(out, snapshot), "written to after it had settled"
        self.free.append(slot)

    def timeout(self) -> float:
        return float(self.generator.choice([0.0, 0.0005, 0.002, 0.01, 30.0]))

    async def finish(self, task: ucm.Task) -> ucm.TaskResult:
        """Wait for a task, or end it in one of the ways that there are."""
        way = self.generator.integers(4)
        if way == 0:
            waiter = asyncio.ensure_future(_awaiting(task))
            await asyncio.sleep(float(self.generator.uniform(0, 0.004)))
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)
        elif way == 1:
            await asyncio.sleep(float(self.generator.uniform(0, 0.004)))
            task.cancel()
        result = await task
        self.ended += not result.ok.all()
        assert {Status(int(one)) for one in result.status} <= ALLOWED, result.failures
        return result


async def _awaiting(task: ucm.Task) -> ucm.TaskResult:
    return await task


def slow_down(faults: Faults, seed: int) -> None:
    """Delay some of the reads and writes, so that storms meet them half-way."""
    rates = {Fault("delay", delay_s=0.005): 0.2, Fault("delay", delay_s=0.03): 0.1}
    for engine, codes, plan in (
        (faults.load, READS, seeded(seed, rates)),
        (faults.dump, WRITES, seeded(seed + 1, rates)),
    ):

        def only_data(number: int, request: Any, plan: Any = plan, codes: Any = codes) -> Fault | None:
            return plan(number, request) if int(request["opcode"]) & OP_MASK in codes else None

        engine.plan = only_data


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
async def test_storm(open_store: Opener, engine: str, injected: bool) -> None:
    store = await open_store(io_engine=engine)
    half = IDS[::2].copy()
    assert (await store.dump(half, None, content(half))).ok.all()
    faults = inject(store)
    if injected:
        slow_down(faults, seed=3)
    registered = page_aligned(16)
    with store.register(registered):
        storm = Storm(store, seed=ENGINES.index(engine), registered=registered)
        await asyncio.gather(*(storm.call() for _ in range(CALLS)))
        assert storm.ended > CALLS / 8
        assert not injected or faults.injected()["delay"] > 5
        faults.stop()
        await aftermath(store)


async def aftermath(store: ucm.Store) -> None:
    """Nothing is leaked, the counts are consistent, and the store serves."""
    rows, shards, data = by_shard(IDS)
    assert (await store.dump(rows, shards, data)).ok.all()
    assert (await store.lookup(IDS)).all()
    await check_blocks(store, IDS)
    out = poisoned(len(rows), SHARD)
    result = await store.load(rows, shards, out)
    assert result.ok.all()
    assert_rows(result, out, data)
    await quiet(store)
    assert len(files_below(home(store))) == len(IDS)
    counts = store.statistics().tasks
    assert counts.submitted == counts.settled == counts.finished
    assert counts.rows["CORRUPT"] == counts.rows["IO_ERROR"] == 0
    assert counts.rows["CANCELLED"] and counts.rows["TIMEOUT"] and counts.rows["OK"]


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_storm_that_ends_with_the_store(open_store: Opener, engine: str) -> None:
    """Closing in the middle of it: every task settles, and what was OK is there at the next open."""
    store = await open_store(io_engine=engine)
    root = home(store)
    tasks = [store.dump(IDS[i : i + 4], None, content(IDS[i : i + 4])) for i in range(0, len(IDS), 4)]
    outs = [poisoned(4) for _ in tasks]
    loads = [store.load(IDS[4 * i : 4 * i + 4], None, out) for i, out in enumerate(outs)]
    for task in tasks[::3]:
        task.cancel()
    await store.aclose()
    stored = np.concatenate([(await task).ok for task in tasks])
    for i, (load, out) in enumerate(zip(loads, outs, strict=True)):
        assert_rows(await load, out, content(IDS[4 * i : 4 * i + 4]))
    again = await open_store(io_engine=engine)
    found = await again.lookup(IDS)
    assert found[stored].all()
    await check_blocks(again, np.ascontiguousarray(IDS[found]))
    assert len(files_below(root)) == found.sum()
    with pytest.raises(ucm.StoreClosedError):
        store.load(IDS[:1], None, poisoned(1))
