"""Shards arrive in any order, from any task; a block is there when all of them are, and not before."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status

from .conftest import Opener
from .support import SHARD, SHARDS, by_shard, check_blocks, home, poisoned, quiet, temporary

IDS = ucm.block_ids(range(8))


@pytest.mark.parametrize("seed", [None, *range(5)])
async def test_reverse_and_random_order(store: ucm.Store, seed: int | None) -> None:
    n = len(IDS) * SHARDS
    order = np.arange(n)[::-1] if seed is None else np.random.default_rng(seed).permutation(n)
    rows, shards, data = by_shard(IDS, order)
    result = await store.dump(rows, shards, data)
    assert result.ok.all(), result.failures
    assert (await store.lookup(IDS)).all()
    await check_blocks(store, IDS)


@pytest.mark.parametrize("seed", range(5))
async def test_from_two_tasks_at_once(store: ucm.Store, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(IDS) * SHARDS)
    rows, shards, data = by_shard(IDS, order)
    half = len(order) // 2
    tasks = [store.dump(rows[part], shards[part], data[part]) for part in (slice(half), slice(half, None))]
    for result in await asyncio.gather(*tasks):
        assert result.ok.all(), result.failures
    assert (await store.lookup(IDS)).all()
    await check_blocks(store, IDS)


async def test_one_task_a_shard(store: ucm.Store) -> None:
    rows, shards, data = by_shard(IDS, np.random.default_rng(1).permutation(len(IDS) * SHARDS))
    tasks = [store.dump(rows[i : i + 1], shards[i : i + 1], data[i : i + 1]) for i in range(len(rows))]
    for result in await asyncio.gather(*tasks):
        assert result.ok.all(), result.failures
    await check_blocks(store, IDS)


@pytest.mark.parametrize("missing", range(SHARDS))
async def test_one_missing(store: ucm.Store, open_store: Opener, missing: int) -> None:
    """Not visible to anybody, no matter which one is missing; and whole as soon as it comes."""
    rows, shards, data = by_shard(IDS)
    present = shards != missing
    assert (await store.dump(rows[present], shards[present], data[present])).ok.all()
    other = await open_store()
    for reader in (store, other):
        assert not (await reader.lookup(IDS)).any()
        assert await reader.lookup_on_prefix(IDS) == -1
        out = poisoned(len(IDS) * SHARDS, SHARD)
        assert (await reader.load(rows, shards, out)).status.tolist() == [Status.MISS] * len(rows)
    await quiet(store, partial=len(IDS))
    late = np.flatnonzero(~present)[::-1]
    assert (await store.dump(rows[late], shards[late], data[late])).ok.all()
    for reader in (store, other):
        assert (await reader.lookup(IDS)).all()
        await check_blocks(reader, IDS)


async def test_halves_in_two_stores_never_meet(store: ucm.Store, open_store: Opener) -> None:
    """Each writer fills a copy of its own: half of it here and half there is no block."""
    other = await open_store()
    rows, shards, data = by_shard(IDS)
    even = shards % 2 == 0
    assert (await store.dump(rows[even], shards[even], data[even])).ok.all()
    assert (await other.dump(rows[~even], shards[~even], data[~even])).ok.all()
    for one in (store, other):
        assert not (await one.lookup(IDS)).any()
    assert (await store.dump(rows[~even], shards[~even], data[~even])).ok.all()
    for one in (store, other):
        assert (await one.lookup(IDS)).all()
        await check_blocks(one, IDS)
    # The other's halves are of no use any more; what is dumped there of a stored block is stored already.
    assert (await other.dump(rows[even], shards[even], data[even])).ok.all()
    await check_blocks(other, IDS)


async def test_a_closed_store_leaves_no_halves(open_store: Opener) -> None:
    store = await open_store()
    rows, shards, data = by_shard(IDS)
    some = shards != 2
    assert (await store.dump(rows[some], shards[some], data[some])).ok.all()
    root = home(store)
    assert len(temporary(root)) == len(IDS)
    await store.aclose()
    assert temporary(root) == []
    reopened = await open_store()
    assert not (await reopened.lookup(IDS)).any()


async def test_a_shard_twice_is_one_shard(store: ucm.Store) -> None:
    """Counting writes instead of shards would commit a block with a hole."""
    rows, shards, data = by_shard(IDS[:1])
    for _ in range(SHARDS):
        assert (await store.dump(rows[:1], shards[:1], data[:1])).ok.all()
    assert not (await store.lookup(IDS[:1])).any()
    assert (await store.dump(rows[1:], shards[1:], data[1:])).ok.all()
    await check_blocks(store, IDS[:1])


@pytest.mark.parametrize("ending", ["cancel", "timeout"])
async def test_a_task_that_ends_leaves_the_rows_of_another_alone(store: ucm.Store, ending: str) -> None:
    """Two tasks bring shards of the same blocks in one turn of the loop, so that they travel together; one ends."""
    for round_ in range(10):
        ids = ucm.block_ids(range(100 * round_, 100 * round_ + 4))
        rows, shards, data = by_shard(ids)
        even = shards % 2 == 0
        ended = store.dump(rows[even], shards[even], data[even], timeout=None if ending == "cancel" else 0.0005)
        other = store.dump(rows[~even], shards[~even], data[~even])
        await asyncio.sleep(0)
        if ending == "cancel":
            ended.cancel()
        assert (await other).ok.all(), (await other).failures
        await ended
        again = await store.dump(rows[even], shards[even], data[even])
        assert again.ok.all(), again.failures
        assert (await store.lookup(ids)).all()
        await check_blocks(store, ids)
