"""Whose memory it is: nothing lands in a caller's buffer after its await has ended, and nothing is taken from it."""

from __future__ import annotations

import asyncio
import ctypes
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status
from ucm_async.engines.requests import OP_STAT
from ucm_async.stages.posix.layout import block_paths
from ucm_async.testing.faults import Fault

from .conftest import Opener
from .support import (
    BLOCK,
    ENGINES,
    POISON,
    READS,
    SHARD,
    WRITES,
    Array,
    Faults,
    assert_rows,
    by_shard,
    check_blocks,
    content,
    inject,
    page_aligned,
    poisoned,
    quiet,
    statuses,
    strike,
    until,
)

IDS = ucm.block_ids(range(12))
HANG = Fault("hang")
OTHER_POISON = 0x5A


async def stored(store: ucm.Store) -> Faults:
    assert (await store.dump(IDS, None, content(IDS))).ok.all()
    return inject(store)


async def end(task: ucm.Task, how: str) -> ucm.TaskResult:
    """End a task before its bytes are in: in each way that there is."""
    if how == "cancel":
        assert task.cancel()
    elif how == "await":

        async def wait() -> None:
            await task

        waiter = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    return await task


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["timeout", "cancel", "await"])
async def test_a_load_that_ended_writes_no_more(open_store: Opener, engine: str, how: str) -> None:
    store = await open_store(io_engine=engine)
    faults = await stored(store)
    faults.load.plan = strike(HANG, *READS)
    out = poisoned(len(IDS))
    task = store.load(IDS, None, out, timeout=0.05 if how == "timeout" else 60)
    await until(lambda: faults.load.hanging)
    result = await end(task, how)
    assert set(statuses(result)) == {Status.TIMEOUT if how == "timeout" else Status.CANCELLED}
    assert result.settled
    out[:] = OTHER_POISON  # it is the caller's again
    faults.stop()
    await quiet(store)
    assert (out == OTHER_POISON).all()
    assert faults.injected()["hang"]
    await check_blocks(store, IDS)


async def test_a_load_that_ended_lets_go_of_its_buffer(store: ucm.Store) -> None:
    """A bytearray cannot be resized while it is exported."""
    faults = await stored(store)
    faults.load.plan = strike(HANG, *READS)
    out = bytearray(BLOCK)
    task = store.load(IDS[:1], None, [out])
    await until(lambda: faults.load.hanging)
    with pytest.raises(BufferError):
        out.clear()
    task.cancel()
    await task
    out.clear()
    faults.stop()
    await quiet(store)


@pytest.mark.parametrize("seed", range(4))
async def test_loads_that_end_at_random_moments(open_store: Opener, seed: int) -> None:
    """Without injectors: the copies of the real engines race with the end of the task."""
    store = await open_store(io_engine=ENGINES[seed], block_size=1 << 20, shard_size=1 << 18)
    ids = IDS[:8]
    expected = content(ids, 1 << 20)
    assert (await store.dump(ids, None, expected)).ok.all()
    generator = np.random.default_rng(seed)
    out, ended = poisoned(len(ids), 1 << 20), 0
    for _ in range(60):
        out[:] = POISON
        task = store.load(ids, None, out, timeout=float(generator.uniform(0, 0.006)))
        result = await task
        snapshot = out.copy()
        assert_rows(result, out, expected)
        ended += not result.ok.all()
        await asyncio.sleep(0.002)
        assert np.array_equal(out, snapshot)
    assert ended > 5
    await quiet(store)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_registered_memory_says_when_it_is_settled(open_store: Opener, engine: str, how: str) -> None:
    store = await open_store(io_engine=engine)
    faults = await stored(store)
    faults.load.plan = strike(HANG, *READS)
    out = page_aligned(len(IDS))
    with store.register(out):
        task = store.load(IDS, None, out, timeout=0.05 if how == "timeout" else 60)
        await until(lambda: faults.load.hanging)
        result = await end(task, how)
        assert not result.settled
        settled = asyncio.ensure_future(task.settled())
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert not settled.done(), "the kernel still has the memory"
        faults.stop()
        await settled
        snapshot = out.copy()
        await quiet(store)
        assert np.array_equal(out, snapshot)


async def test_settled_at_once_where_nothing_is_late(store: ucm.Store) -> None:
    await stored(store)
    out = page_aligned(len(IDS))
    with store.register(out):
        task = store.load(IDS, None, out)
        result = await task
        assert result.settled
        async with asyncio.timeout(1):
            await task.settled()
            await task.settled()
    assert_rows(result, out, content(IDS))


# ---- sources of dumps


async def expect_old_or_nothing(store: ucm.Store, ids: Array) -> None:
    """The bytes that were there when the task was alive, or a miss; never the ones that came later."""
    await quiet(store)
    await check_blocks(store, ids, allowed=(Status.OK, Status.MISS))
    assert (await store.dump(ids, None, content(ids))).ok.all()
    await check_blocks(store, ids)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["timeout", "cancel", "await"])
async def test_a_dump_that_ended_reads_no_more(open_store: Opener, engine: str, how: str) -> None:
    store = await open_store(io_engine=engine)
    faults = inject(store)
    faults.dump.plan = strike(HANG, *WRITES)
    source = content(IDS)
    task = store.dump(IDS, None, source, timeout=0.05 if how == "timeout" else 60)
    await until(lambda: faults.dump.hanging)
    result = await end(task, how)
    assert not result.ok.any()
    source[:] = POISON
    faults.stop()
    assert faults.injected()["hang"]
    await expect_old_or_nothing(store, IDS)


@pytest.mark.parametrize("seed", range(4))
async def test_dumps_that_end_at_random_moments(open_store: Opener, seed: int) -> None:
    """The copies of the real engines race with the end of the task, and with the caller who changes the source."""
    store = await open_store(io_engine=ENGINES[seed], block_size=1 << 20, shard_size=1 << 18)
    generator = np.random.default_rng(seed)
    ended = 0
    source = np.empty((4, 1 << 20), dtype=np.uint8)
    for n in range(60):
        ids = ucm.block_ids(range(4 * n, 4 * n + 4))
        expected = content(ids, 1 << 20)
        source[:] = expected
        result = await store.dump(ids, None, source, timeout=float(generator.uniform(0, 0.004)))
        source[:] = POISON
        ended += not result.ok.all()
        out = poisoned(4, 1 << 20)
        loaded = await store.load(ids, None, out)
        assert_rows(loaded, out, expected)
        assert set(statuses(loaded)) <= {Status.OK, Status.MISS}
        assert loaded.ok[result.ok].all()
    assert ended > 5
    await quiet(store)


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_a_registered_source_that_is_changed_too_early(store: ucm.Store, how: str) -> None:
    """Breaking the rule (`settled` is False) may cost the block: the checksum was taken before. Never wrong bytes."""
    faults = inject(store)
    faults.dump.plan = strike(HANG, *WRITES)
    source = page_aligned(len(IDS))
    source[:] = content(IDS)
    with store.register(source):
        task = store.dump(IDS, None, source, timeout=0.05 if how == "timeout" else 60)
        await until(lambda: faults.dump.hanging)
        result = await end(task, how)
        assert not result.settled
        source[:] = POISON
        faults.stop()
        await task.settled()
    await quiet(store)
    counts = await check_blocks(store, IDS, allowed=(Status.OK, Status.MISS, Status.CORRUPT))
    assert counts[Status.OK] == 0
    assert (await store.dump(IDS, None, content(IDS))).ok.all()
    await check_blocks(store, IDS)


async def test_a_registered_source_is_settled_when_the_kernel_is_through(store: ucm.Store) -> None:
    faults = inject(store)
    faults.dump.plan = strike(HANG, *WRITES)
    source = page_aligned(len(IDS))
    source[:] = content(IDS)
    with store.register(source):
        task = store.dump(IDS, None, source, timeout=0.05)
        await until(lambda: faults.dump.hanging)
        assert not (await task).settled
        settled = asyncio.ensure_future(task.settled())
        for _ in range(10):
            await asyncio.sleep(0.005)
        assert not settled.done()
        faults.stop()
        await settled
        source[:] = POISON
    await expect_old_or_nothing(store, IDS)


async def test_shards_whose_task_ended_do_not_complete_a_block(store: ucm.Store) -> None:
    """Half of the shards of a block come from a task that was cancelled: they count only if they were taken whole."""
    generator = np.random.default_rng(3)
    for n in range(40):
        ids = ucm.block_ids(range(4 * n, 4 * n + 4))
        rows, shards, data = by_shard(ids, generator.permutation(16))
        half = len(rows) // 2
        gone = store.dump(rows[:half], shards[:half], data[:half], timeout=float(generator.uniform(0, 0.002)))
        kept = store.dump(rows[half:], shards[half:], data[half:].copy())
        first = await gone
        data[:half] = POISON
        assert (await kept).ok.all()
        out = poisoned(16, SHARD)
        loaded = await store.load(rows, shards, out)
        expected = by_shard(ids)[2].reshape(4, 4, SHARD)
        place = [int(np.flatnonzero((ids == row).all(axis=1))[0]) for row in rows]
        assert_rows(loaded, out, expected[place, shards])
        assert set(statuses(loaded)) <= {Status.OK, Status.MISS}
        again = by_shard(ids)
        assert (await store.dump(*again)).ok.all()
        await check_blocks(store, ids)
        del first
    await quiet(store)


@pytest.mark.parametrize("call", ["delete", "lookup"])
async def test_a_cancelled_call_touches_no_other_block(store: ucm.Store, call: str) -> None:
    """The path of a file operation must live as long as it may still begin: it might become another block's path."""
    assert (await store.dump(IDS, None, content(IDS))).ok.all()
    faults = inject(store)
    unknown = ucm.block_ids(range(5000, 5040))
    engine = faults.dump_files if call == "delete" else faults.load_files
    hang = strike(HANG, OP_STAT)  # before it removes a file, a delete asks how long it is
    addresses: list[int] = []

    def remember(number: int, request: Any) -> Fault | None:
        fault = hang(number, request)
        if fault is not None:
            addresses.append(int(request["address"]))
        return fault

    engine.plan = remember
    for i in range(len(unknown)):
        waiting = asyncio.ensure_future(getattr(store, call)(unknown[i : i + 1]))
        await until(lambda i=i: len(addresses) > i)
        waiting.cancel()
        await asyncio.wait([waiting])
    del waiting
    others = [block_paths(IDS[i : i + 1]) for i in range(len(IDS))]  # memory of the same size, used again
    paths = [one.tobytes() for one in block_paths(unknown)]
    assert [ctypes.string_at(address, 36) for address in addresses] == paths
    faults.stop()
    await quiet(store)
    del others
    assert (await store.lookup(IDS)).all()
    await check_blocks(store, IDS)
