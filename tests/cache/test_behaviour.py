"""What a store with a Cache does that one without does not: hits that ask nobody, single flight, debts, pins."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status, Store
from ucm_async.abc import Batch
from ucm_async.errors import ConfigError, NoSpaceError
from ucm_async.stages.fake import FakeStage
from ucm_async.testing.stores import BLOCK_BYTES, SHARDS, all_ok, make_blocks, statuses, to_shards

from .support import cache_keys


class Watched(FakeStage):
    """Counts rows, waits where it is told to, and fails on demand."""

    name: ClassVar[str] = "Watched"
    last: ClassVar[Watched]

    async def open(self) -> None:
        type(self).last = self
        self.loads_go = asyncio.Event()
        self.loads_go.set()
        self.late: asyncio.Event | None = None
        self.loaded = self.dumped = self.looked_up = 0
        self.refused = 0

    async def load(self, batch: Batch) -> None:
        self.loaded += len(batch)
        await self.loads_go.wait()
        await super().load(batch)

    async def dump(self, batch: Batch) -> None:
        self.dumped += len(batch)
        if self.refused:
            self.refused -= 1
            batch.report(np.arange(len(batch)), Status.NO_SPACE)
            return
        await super().dump(batch)

    async def lookup(self, ids: Any) -> Any:
        self.looked_up += len(ids)
        late, self.late = self.late, None
        found = await super().lookup(ids)
        if late is not None:
            await late.wait()
        return found


PIPELINE = f"Cache|{__name__}:Watched"


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with ucm.open_store(PIPELINE, **cache_keys(24)) as store:
        yield store
        await nothing_is_held(store)


def counters(store: Store) -> dict[str, Any]:
    return dict(store.statistics().pipeline["Cache"]["stage"])


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


async def nothing_is_held(store: Store) -> None:
    """No lease, no slot that is being filled, nothing owed, no share taken."""
    cache = store._pipeline.first.stage  # type: ignore[union-attr]
    table = cache._buffer.table  # type: ignore[attr-defined]

    def held() -> bool:
        states = table.count_states()
        told = counters(store)
        shares = sum(one["taken"] for one in told["admission"].values()) - told["partial_blocks"]
        filling = states["filling"] - told["partial_blocks"]
        return bool(table.statistics()["leases"] - told["partial_blocks"] or filling or states["dirty"] or shares)

    await until(lambda: not held())


async def forget(store: Store, ids: Any) -> None:
    """Drop blocks from the cache alone."""
    store._pipeline.first.stage._buffer.table.drop(ids)  # type: ignore[union-attr, attr-defined]


async def test_hits_ask_nobody(store: Store) -> None:
    ids, data = make_blocks(8)
    assert all_ok(await store.dump(ids, None, data))
    below = Watched.last
    below.loaded = below.looked_up = 0
    back = np.zeros_like(data)
    task = store.load(ids, None, back)
    assert task.done(), "a few hits are there when the call returns"
    assert all_ok(await task)
    assert (back == data).all()
    assert (await store.lookup(ids)).all()
    assert await store.lookup_on_prefix(ids) == 7
    async with store.lease(ids) as views:
        assert [bytes(view) for view in views if view is not None] == [one.tobytes() for one in data]
    assert (below.loaded, below.looked_up) == (0, 0)


async def test_a_miss_is_read_once_for_all(store: Store) -> None:
    ids, data = make_blocks(6)
    assert all_ok(await store.dump(ids, None, data))
    await forget(store, ids)
    below = Watched.last
    below.loaded = 0
    below.loads_go.clear()
    backs = [np.zeros_like(data) for _ in range(5)]
    tasks = [store.load(ids, None, back) for back in backs]
    await asyncio.sleep(0.02)
    below.loads_go.set()
    for task, back in zip(tasks, backs, strict=True):
        assert all_ok(await task)
        assert (back == data).all()
    assert below.loaded == 6
    assert all_ok(await store.load(ids, None, backs[0]))
    assert below.loaded == 6


async def test_a_deadline_leaves_the_read_to_the_next(store: Store) -> None:
    ids, data = make_blocks(4)
    assert all_ok(await store.dump(ids, None, data))
    await forget(store, ids)
    below = Watched.last
    below.loads_go.clear()
    back = np.full_like(data, 0xEE)
    assert set(statuses(await store.load(ids, None, back, timeout=0.02))) == {Status.TIMEOUT}
    assert (back == 0xEE).all()
    below.loads_go.set()
    await nothing_is_held(store)
    below.loaded = 0
    assert all_ok(await store.load(ids, None, back))
    assert below.loaded == 0, "what came late was published"


async def test_cancelled_while_filling(store: Store) -> None:
    ids, data = make_blocks(4)
    assert all_ok(await store.dump(ids, None, data))
    for turns in range(8):
        await forget(store, ids)
        task = store.load(np.concatenate([ids] * 5), None, np.zeros((20, BLOCK_BYTES), dtype=np.uint8))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()


async def test_a_thousand_tasks_on_four_slots() -> None:
    ids, data = make_blocks(20)
    async with ucm.open_store(PIPELINE, **cache_keys(4)) as store:
        assert all_ok(await store.dump(ids, None, data))
        backs = np.zeros((1000, BLOCK_BYTES), dtype=np.uint8)
        tasks = [store.load(ids[n % 20 : n % 20 + 1], None, backs[n]) for n in range(1000)]
        for task in tasks:
            assert all_ok(await task)
        assert (backs == data[np.arange(1000) % 20]).all()
        await nothing_is_held(store)


async def test_all_slots_leased(store: Store) -> None:
    """Loads and dumps go round, and leases get copies."""
    ids, data = make_blocks(30)
    assert all_ok(await store.dump(ids[:24], None, data[:24]))
    async with store.lease(ids[:24]) as views:
        assert None not in views
        assert all_ok(await store.dump(ids[24:], None, data[24:], durability="cached"))
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()
        async with store.lease(ids[24:]) as copies:
            assert [bytes(view) for view in copies if view is not None] == [one.tobytes() for one in data[24:]]
        assert [bytes(view) for view in views if view is not None] == [one.tobytes() for one in data[:24]]
    told = counters(store)
    assert told["load"]["bypass"]["rows"] and told["dump"]["bypass"]["rows"]


async def test_a_lease_pins_what_is_deleted(store: Store) -> None:
    ids, data = make_blocks(24)
    assert all_ok(await store.dump(ids[:2], None, data[:2]))
    async with store.lease(ids[:2]) as views:
        await store.delete(ids[:2])
        assert not (await store.lookup(ids[:2])).any()
        assert all_ok(await store.dump(ids[2:], None, data[2:]))
        assert [bytes(view) for view in views if view is not None] == [one.tobytes() for one in data[:2]]
        first = views[0]
    assert first is not None
    with pytest.raises(ValueError, match="released"):
        first[0]


async def test_a_view_that_is_still_used_is_told_and_not_pinned(store: Store) -> None:
    ids, data = make_blocks(1)
    assert all_ok(await store.dump(ids, None, data))
    with pytest.raises(BufferError):
        async with store.lease(ids) as views:
            export = pickle.PickleBuffer(views[0])  # type: ignore[arg-type]
    export.release()


# ---- written behind


async def test_cached_is_quick_and_flush_waits(store: Store) -> None:
    ids, data = make_blocks(12)
    assert all_ok(await store.dump(ids, None, data, durability="cached"))
    assert (await store.lookup(ids)).all()
    assert dict(await store.flush()) == {}
    assert Watched.last.dumped == 12
    assert counters(store)["behind"]["owed_bytes"] == 0


async def test_a_shard_that_comes_too_late(store: Store) -> None:
    """Its block is cached while it looks whether it is stored: what it brings is of no use, and holds no slot."""
    blocks, whole = make_blocks(1)
    ids, shards, rows = to_shards(blocks, whole)
    Watched.last.late = go = asyncio.Event()
    late = store.dump(ids[:1], shards[:1], rows[:1], durability="cached")
    await until(lambda: Watched.last.late is None)
    assert all_ok(await store.dump(blocks, None, whole, durability="cached"))
    go.set()
    assert all_ok(await late)
    assert counters(store)["admission"]["partial_dumps"]["taken"] == 0
    await store.flush()


async def test_shards_behind_are_one_write(store: Store) -> None:
    ids, shards, rows = to_shards(*make_blocks(4))
    for shard in reversed(range(SHARDS)):
        chosen = shards == shard
        assert all_ok(await store.dump(ids[chosen], shards[chosen], rows[chosen], durability="cached"))
        assert (await store.lookup(ids)).all() == (shard == 0)
    assert dict(await store.flush()) == {}
    assert Watched.last.dumped == 4


async def test_a_failing_stage_below_is_tried_again(store: Store) -> None:
    ids, data = make_blocks(2)
    Watched.last.refused = 1
    assert all_ok(await store.dump(ids, None, data, durability="cached"))
    assert dict(await store.flush()) == {}
    assert counters(store)["counts"]["behind_retries"] >= 1
    await forget(store, ids)
    assert all_ok(await store.load(ids, None, np.zeros_like(data)))


async def test_what_cannot_be_written_behind_is_reported_once_and_a_miss(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucm_async.stages.cache.behind.BACKOFF_S", 0.001)
    ids, data = make_blocks(2)
    Watched.last.refused = 100
    assert all_ok(await store.dump(ids[:1], None, data[:1], durability="cached"))
    failures = await store.flush()
    assert list(failures) == [ids[0].tobytes()]
    assert isinstance(failures[ids[0].tobytes()], NoSpaceError)
    assert dict(await store.flush()) == {}
    Watched.last.refused = 0
    assert not (await store.lookup(ids)).any()
    assert statuses(await store.load(ids[:1], None, data[:1].copy())) == [Status.MISS]
    assert all_ok(await store.dump(ids, None, data))


async def test_the_bound_of_what_is_owed() -> None:
    ids, data = make_blocks(12)
    async with ucm.open_store(PIPELINE, **cache_keys(24, dump_behind_bytes=2 * BLOCK_BYTES)) as store:
        assert all_ok(await store.dump(ids, None, data, durability="cached"))
        assert counters(store)["behind"]["owed_bytes"] <= 2 * BLOCK_BYTES
        assert dict(await store.flush()) == {}


async def test_closing_writes_what_is_owed() -> None:
    ids, data = make_blocks(6)
    async with ucm.open_store(PIPELINE, **cache_keys(24)) as store:
        assert all_ok(await store.dump(ids, None, data, durability="cached"))
        below = Watched.last
    assert below.dumped == 6


async def test_prefetch_fills_in_the_background(store: Store) -> None:
    ids, data = make_blocks(3)
    assert all_ok(await store.dump(ids, None, data))
    await forget(store, ids)
    await store.prefetch(ids)
    await until(lambda: counters(store)["counts"].get("prefetched") == 3)
    below = Watched.last
    below.loaded = 0
    assert all_ok(await store.load(ids, None, np.zeros_like(data)))
    assert below.loaded == 0


# ---- several, and none


async def test_two_stores_share_and_disagree() -> None:
    keys = cache_keys(24)
    ids, data = make_blocks(4)
    async with ucm.open_store(PIPELINE, **keys) as one, ucm.open_store("Cache|Empty", **keys) as other:
        assert all_ok(await one.dump(ids, None, data))
        back = np.zeros_like(data)
        assert all_ok(await other.load(ids, None, back))
        assert (back == data).all()
        for changes, named in (
            ({"namespace": "another"}, "namespace"),
            ({"cache_policy": "lru"}, "cache_policy"),
            ({"cache_buffer_capacity_gb": 1 / 128}, "cache_buffer_capacity_gb"),
        ):
            with pytest.raises(ConfigError, match=named):
                await ucm.open_store("Cache|Empty", **(keys | changes))


async def test_too_small_and_alone() -> None:
    with pytest.raises(ConfigError, match=r"cache_buffer_capacity_gb: .*at least 4 blocks"):
        await ucm.open_store("Cache|Fake", **cache_keys(3))
    with pytest.raises(ConfigError, match="needs a stage below it"):
        await ucm.open_store("Cache", **cache_keys())


def test_without_the_extension() -> None:
    code = (
        "import asyncio, ucm_async as ucm\n"
        "async def main():\n"
        "    await ucm.open_store('Cache|Fake', block_size=4096)\n"
        "try:\n    asyncio.run(main())\nexcept ucm.ConfigError as error:\n    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "UCM_ASYNC_PORTABLE": "1"}, capture_output=True, text=True
    )
    assert "the Cache stage needs the extension" in run.stdout, run.stderr


async def test_no_thread_is_left() -> None:
    before = threading.active_count()
    async with ucm.open_store("Cache|Fake", **cache_keys(8)):
        pass
    assert threading.active_count() <= before + 8  # of the loop's executor
