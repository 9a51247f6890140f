"""The Empty composition: it takes everything and keeps nothing, with every promise about tasks and memory kept."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest

from ucm_async import Status, Store, open_store
from ucm_async.testing.stores import BLOCK_BYTES, SHARD_BYTES, all_ok, make_blocks, statuses, to_shards


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with open_store("Empty", block_size=BLOCK_BYTES, shard_size=SHARD_BYTES) as store:
        yield store


async def test_dumps_are_fine_and_gone(store: Store) -> None:
    ids, data = make_blocks(4)
    assert all_ok(await store.dump(ids, None, data))
    assert all_ok(await store.dump(*to_shards(ids, data), durability="synced"))
    assert not (await store.lookup(ids)).any()
    assert await store.lookup_on_prefix(ids) == -1
    assert dict(await store.flush()) == {}


async def test_loads_miss_and_leave_the_memory_alone(store: Store) -> None:
    ids, _ = make_blocks(4)
    back = np.full((4, BLOCK_BYTES), 0xEE, dtype=np.uint8)
    assert set(statuses(await store.load(ids, None, back))) == {Status.MISS}
    assert (back == 0xEE).all()
    async with store.lease(ids) as views:
        assert views == [None] * 4


async def test_memory_comes_back(store: Store) -> None:
    ids, _ = make_blocks(2)
    rows = [bytearray(BLOCK_BYTES) for _ in ids]
    await store.dump(ids, None, rows)
    await store.load(ids, None, rows)
    for row in rows:
        row.append(0)


async def test_the_other_verbs_do_nothing(store: Store) -> None:
    ids, _ = make_blocks(2)
    await store.delete(ids)
    await store.prefetch(ids)
    await store.setup(io_engine="psync")
    assert store.statistics().pipeline["Empty"]["stage"] == {"rows_loaded": 0, "rows_dumped": 0}


async def test_a_thousand_tasks(store: Store) -> None:
    ids, data = make_blocks(8)
    tasks = [store.dump(ids, None, data) for _ in range(1000)]
    for task in tasks:
        assert all_ok(await task)
    assert store.statistics().pipeline["Empty"]["stage"]["rows_dumped"] == 8000
