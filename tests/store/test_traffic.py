"""Many tasks at once: bounds that hold, nothing lost while engines change, everything given back in the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async import ConfigError, Store, block_ids, open_store
from ucm_async.testing.stores import BLOCK_BYTES, SHARD_BYTES, SHARDS, all_ok, make_blocks, statuses, to_shards

KEYS = {"block_size": BLOCK_BYTES, "shard_size": SHARD_BYTES, "staging_buffer_gb": 0.002}


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Any]:
    return {**KEYS, "storage_backends": [str(tmp_path)]}


async def traffic(store: Store, *, seed: int = 0) -> None:
    """Dump blocks and shards, load them, miss some, cancel some, run into a deadline."""
    ids, data = make_blocks(24, seed)
    dumps = [store.dump(ids[i : i + 4], None, data[i : i + 4]) for i in range(0, 16, 4)]
    shard_ids, shards, rows = to_shards(ids[16:20], data[16:20])
    order = np.random.default_rng(seed).permutation(len(shards))
    dumps += [store.dump(shard_ids[[i]], [int(shards[i])], rows[[i]]) for i in order.tolist()]
    for dump in dumps:
        assert all_ok(await dump)
    back = np.zeros_like(data)
    cancelled, late = store.load(ids, None, data.copy()), store.load(ids, None, data.copy(), timeout=0)
    task = store.load(ids, None, back)
    cancelled.cancel()
    result = await task
    await late
    assert [status.name for status in statuses(result)] == ["OK"] * 20 + ["MISS"] * 4
    assert (back[:20] == data[:20]).all()
    await store.delete(ids[:2])


class TestBounds:
    async def test_a_thousand_tasks_through_inboxes_of_one(self, keys: dict[str, Any]) -> None:
        """A full lane slows its caller down; it loses nothing and does not deadlock."""
        async with open_store("Posix", **keys, queue_number=2, queue_depth=1) as store:
            ids, data = make_blocks(50)
            assert all_ok(await store.dump(ids, None, data))
            backs = np.zeros((1000, SHARD_BYTES), dtype=np.uint8)
            blocks, shards = np.arange(1000) % 50, np.arange(1000) // 50 % SHARDS
            tasks = [store.load(ids[blocks[i : i + 1]], shards[i : i + 1], backs[i : i + 1]) for i in range(1000)]
            assert store.statistics().tasks.waiting_slices > 0
            for task in tasks:
                assert all_ok(await task)
            assert (backs == data.reshape(50, SHARDS, SHARD_BYTES)[blocks, shards]).all()
            assert store.statistics().tasks.waiting_slices == 0

    async def test_loads_do_not_queue_behind_dumps(self, keys: dict[str, Any]) -> None:
        """The dump lane is full to the brim; a load is served all the same."""
        async with open_store("Posix", **keys, queue_number=1, queue_depth=1) as store:
            ids, data = make_blocks(100)
            assert all_ok(await store.dump(ids[:1], None, data[:1]))
            dumps = [store.dump(ids[i : i + 1], None, data[i : i + 1]) for i in range(1, 100)]
            back = np.zeros_like(data[:1])
            assert all_ok(await store.load(ids[:1], None, back))
            assert sum(not dump.done() for dump in dumps) > 0
            assert (back == data[:1]).all()

    async def test_more_tasks_than_allowed_are_busy(self, keys: dict[str, Any]) -> None:
        async with open_store("Posix", **keys, task_max=10) as store:
            ids, data = make_blocks(20)
            tasks = [store.dump(ids[i : i + 1], None, data[i : i + 1]) for i in range(20)]
            named = [statuses(await task)[0].name for task in tasks]
            assert named == ["OK"] * 10 + ["BUSY"] * 10
            assert "task_max" in str((await tasks[-1]).failures[0])
            assert all_ok(await store.dump(ids, None, data))

    async def test_requests_of_one_turn_are_coalesced(self, keys: dict[str, Any]) -> None:
        """Many small tasks become few batches, and neighbours one I/O; the statistics say so."""
        async with open_store("Posix", **(keys | {"staging_buffer_gb": 0.01}), queue_number=1) as store:
            ids, data = make_blocks(8)
            assert all_ok(await store.dump(ids, None, data))
            before = store.statistics().pipeline["Posix"]
            shard_ids, shards, rows = to_shards(ids, data)
            back = np.zeros_like(rows)
            tasks = [store.load(shard_ids[[i]], shards[[i]], back[i : i + 1]) for i in range(len(shards))]
            for task in tasks:
                assert all_ok(await task)
            assert (back == rows).all()
            after = store.statistics().pipeline["Posix"]
            assert after["load_lane"].slices - before["load_lane"].slices == 32
            assert after["load_lane"].batches - before["load_lane"].batches == 1
            counts = {name: after["stage"]["load"]["counts"][name] for name in ("rows", "reads")}
            assert counts == {"rows": 32, "reads": 8}


class TestEngines:
    @pytest.mark.parametrize("order", [("psync", "aio", "uring", "auto"), ("auto", "uring", "aio", "psync")])
    async def test_switched_under_traffic(self, keys: dict[str, Any], order: tuple[str, ...]) -> None:
        """Nothing is lost, nothing is wrong, and the last one is at work in the end."""
        async with open_store("Posix", **keys, io_engine=order[0]) as store:
            running = [asyncio.ensure_future(self._keep_going(store, seed)) for seed in range(3)]
            for engine in order * 2:
                await store.setup(io_engine=engine)
                await asyncio.sleep(0.01)
            for one in running:
                one.cancel()
            done = await asyncio.gather(*running, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in done), done
            assert store.config.io_engine == order[-1]
            told = store.statistics().pipeline["Posix"]["stage"]["load"]["engine"]
            assert told["why"]
            await traffic(store, seed=100)

    async def _keep_going(self, store: Store, seed: int) -> None:
        for turn in range(1000):
            await traffic(store, seed=seed * 1000 + turn)

    @pytest.mark.parametrize("engine", ["psync", "aio", "uring"])
    async def test_forced_by_the_environment(
        self, keys: dict[str, Any], engine: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UCM_ASYNC_ENGINE", engine)
        async with open_store("Posix", **keys, io_engine="auto") as store:
            assert store.config.io_engine == engine
            await traffic(store)


class TestNothingStays:
    @pytest.mark.parametrize("engine", ["psync", "aio", "uring", "auto"])
    async def test_descriptors_and_threads(self, keys: dict[str, Any], engine: str) -> None:
        """After it is closed a store leaves none, whatever it did."""

        async def once() -> None:
            async with open_store("Posix", **keys, io_engine=engine) as store:
                await traffic(store)
                with pytest.raises(ValueError, match="dst: 1 rows"):
                    store.load(block_ids(range(2)), None, [bytearray(BLOCK_BYTES)])

        await once()  # what the loop, the default executor and the imports open once
        before = descriptors(), native_threads()
        for _ in range(3):
            await once()
        assert await eventually(lambda: (descriptors(), native_threads()) == before), (before, descriptors())

    async def test_a_store_that_is_dropped_with_work_under_way_is_not_lost(self, keys: dict[str, Any]) -> None:
        """The store's own coroutine holds it until it is closed."""
        store = await open_store("Posix", **keys)
        ids, data = make_blocks(8)
        task = store.dump(ids, None, data)
        alive = weakref.ref(store)
        del store
        gc.collect()
        assert all_ok(await task)
        kept = alive()
        if kept is not None:
            await kept.aclose()

    async def test_a_task_that_nobody_awaits(self, keys: dict[str, Any]) -> None:
        """It runs, is counted, and is gone with its memory."""
        async with open_store("Posix", **keys) as store:
            ids, data = make_blocks(4)
            rows = data.copy()
            gone = weakref.ref(rows)
            store.dump(ids, None, rows)
            store.load(ids, None, rows)
            del rows
            await store.flush()
            assert await eventually(lambda: store.statistics().tasks.finished == 2)
            gc.collect()
            assert gone() is None
            assert (await store.lookup(ids)).all()

    async def test_results_that_are_kept_keep_no_memory(self, keys: dict[str, Any]) -> None:
        async with open_store("Posix", **keys) as store:
            ids, data = make_blocks(4)
            rows = data.copy()
            gone = weakref.ref(rows)
            task = store.dump(ids, None, rows)
            result = await task
            del rows
            gc.collect()
            assert gone() is None
            assert result.ok.all()
            assert task.result() is result

    async def test_a_failed_opening(self, keys: dict[str, Any]) -> None:
        """What was opened before it failed is closed."""
        with pytest.raises(ConfigError):
            await open_store("Posix", **(keys | {"storage_backends": ["/proc/no/such"]}))
        before = descriptors()
        for _ in range(3):
            with pytest.raises(ConfigError):
                await open_store("Posix", **(keys | {"staging_buffer_gb": 4096}))
        assert await eventually(lambda: descriptors() == before)

    async def test_a_cancelled_opening(self, keys: dict[str, Any], tmp_path: Path) -> None:
        """At whatever moment: nothing stays open, no writer's directory stays behind."""
        await (await open_store("Posix", **keys)).aclose()
        before = descriptors()
        for turns in range(12):
            opening = asyncio.ensure_future(_open(keys))
            for _ in range(turns):
                await asyncio.sleep(0.001)
            opening.cancel()
            done = (await asyncio.gather(opening, return_exceptions=True))[0]
            if isinstance(done, Store):
                await done.aclose()
        assert await eventually(lambda: descriptors() == before)
        assert [path for path in tmp_path.glob("*/writers/*") if path.is_dir()] == []


async def _open(keys: dict[str, Any]) -> Store:
    return await open_store("Posix", **keys)


def descriptors() -> list[str]:
    """Kinds of what is open, one entry a descriptor."""
    kinds = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            kinds.append(os.readlink(f"/proc/self/fd/{fd}").split(":")[0])
    return sorted(kinds)


def native_threads() -> int:
    """Threads of this process that Python did not start."""
    return len(os.listdir("/proc/self/task")) - threading.active_count()


async def eventually(condition: Callable[[], bool]) -> bool:
    """Give what ends by itself some time to do so."""
    for _ in range(200):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False
