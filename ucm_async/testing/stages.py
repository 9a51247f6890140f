"""Conformance suite for stages: subclass it in a test module, name the composition, and pytest runs it.

::

    class TestMyStage(StageSuite):
        pipeline = "Mine|Fake"

The first stage of the composition is driven directly, batch by batch, as an operator would; those below it run as
always. What a store makes of it is the matter of `ucm_async.testing.stores`. The tests are coroutines: run them with
pytest-asyncio in its auto mode.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import anyio
import numpy as np
import pytest
import pytest_asyncio

from ..abc import Stage
from ..config import StoreConfig
from ..pipeline import Pipeline, build_pipeline
from ..tasks import WHOLE_BLOCK, LaneName, Slice, SliceBatch, Task, TaskResult, memory_of_buffers
from ..types import DURABILITIES, I64, U8, Durability, Status
from ._store_case import BLOCK_BYTES, SHARD_BYTES, SHARDS, all_ok, make_blocks, statuses, to_shards

__all__ = ["StageDriver", "StageSuite"]


class StageDriver:
    """Puts batches into a stage.

    Attributes
    ----------
    stage
        The stage under test, open.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.stage: Stage = pipeline.first.stage
        self._pipeline = pipeline

    def task(
        self,
        lane: LaneName,
        ids: U8,
        shards: I64 | None,
        memory: Any,
        *,
        direct: bool = False,
        durability: Durability = "stored",
    ) -> Task:
        """Return a task over `memory`, which no stage has seen yet. `direct`: as if the memory were registered."""
        row_bytes = BLOCK_BYTES if shards is None else SHARD_BYTES
        sizes = self.stage.config.tensor_sizes
        taken = memory_of_buffers("memory", memory, len(ids), row_bytes, sizes, writable=lane == "load")
        taken.direct = direct
        wanted = np.full(len(ids), WHOLE_BLOCK, dtype=np.int64) if shards is None else shards
        loop = asyncio.get_running_loop()
        return Task(lane, ids, wanted, taken, durability=durability, loop=loop, on_finished=lambda _: None)

    async def run(self, *tasks: Task) -> None:
        """Drive the stage with all rows of the tasks as one batch, as a lane does."""
        slices = []
        for task in tasks:
            task.expect_slices(1)
            slices.append(Slice(task, 0, len(task.ids)))
        batch = SliceBatch(slices)
        await (self.stage.load if tasks[0].lane == "load" else self.stage.dump)(batch)
        assert not any(one.pending for one in slices if one.task.alive), "the stage left rows unsettled"
        batch.report_rest(Status.CANCELLED)  # it may skip rows that nobody waits for

    async def load(self, ids: U8, shards: I64 | None, memory: Any, *, direct: bool = False) -> TaskResult:
        """Load as one batch."""
        task = self.task("load", ids, shards, memory, direct=direct)
        await self.run(task)
        return task.result()

    async def dump(
        self, ids: U8, shards: I64 | None, memory: Any, *, direct: bool = False, durability: Durability = "stored"
    ) -> TaskResult:
        """Dump as one batch."""
        task = self.task("dump", ids, shards, memory, direct=direct, durability=durability)
        await self.run(task)
        return task.result()


class StageSuite:
    """What every stage must do that keeps blocks, itself or in the stages below.

    Attributes
    ----------
    pipeline
        The composition whose first stage is tested; override it.
    """

    pipeline: ClassVar[str]

    @pytest.fixture
    def store_keys(self, tmp_path: Path) -> dict[str, Any]:
        """Configuration keys that the composition needs; override it."""
        return {}

    @pytest.fixture
    def config(self, store_keys: dict[str, Any]) -> StoreConfig:
        """The configuration of the stage."""
        geometry = {"block_size": BLOCK_BYTES, "shard_size": SHARD_BYTES, "staging_buffer_gb": 0.002}
        return StoreConfig.load(self.pipeline, **(geometry | store_keys))

    @pytest_asyncio.fixture
    async def driver(self, config: StoreConfig) -> AsyncIterator[StageDriver]:
        """The stage, open, with those below it running."""
        pipeline = await build_pipeline(config)
        running = asyncio.Event()
        stop = asyncio.Event()

        async def host() -> None:  # a task group must be left by the task that entered it
            async with anyio.create_task_group() as group:
                pipeline.start(group)
                running.set()
                await stop.wait()
                group.cancel_scope.cancel()

        hosting = asyncio.ensure_future(host())
        await running.wait()
        yield StageDriver(pipeline)
        stop.set()
        await hosting
        await pipeline.aclose()

    # ---- bytes

    @pytest.mark.parametrize("direct", [False, True])
    async def test_blocks_come_back(self, driver: StageDriver, direct: bool) -> None:
        """Whole blocks, through the library's memory or straight from the caller's."""
        ids, data = make_blocks(12)
        assert all_ok(await driver.dump(ids, None, data, direct=direct))
        back = np.zeros_like(data)
        assert all_ok(await driver.load(ids, None, back, direct=direct))
        assert (back == data).all()

    @pytest.mark.parametrize("direct", [False, True])
    async def test_shards_in_any_order(self, driver: StageDriver, direct: bool) -> None:
        """In two batches, with the shards of a block in both."""
        ids, shards, rows = to_shards(*make_blocks(5))
        order = np.random.default_rng(7).permutation(len(ids))
        for part in (order[:9], order[9:]):
            assert all_ok(await driver.dump(ids[part], shards[part], rows[part], direct=direct))
        back = np.zeros_like(rows)
        assert all_ok(await driver.load(ids[order], shards[order], back, direct=direct))
        assert (back == rows[order]).all()

    async def test_several_tasks_in_one_batch(self, driver: StageDriver) -> None:
        """Each gets its own bytes and its own statuses, also for a block that both want."""
        ids, data = make_blocks(6)
        await driver.run(driver.task("dump", ids[:3], None, data[:3]), driver.task("dump", ids[3:5], None, data[3:5]))
        backs = [np.zeros((3, BLOCK_BYTES), dtype=np.uint8) for _ in range(2)]
        first = driver.task("load", ids[:3], None, backs[0])
        second = driver.task("load", np.ascontiguousarray(ids[[2, 5, 4]]), None, backs[1])
        await driver.run(first, second)
        assert all_ok(first.result())
        assert statuses(second.result()) == [Status.OK, Status.MISS, Status.OK]
        assert (backs[0] == data[:3]).all()
        assert (backs[1][[0, 2]] == data[[2, 4]]).all()

    async def test_batches_at_the_same_time(self, driver: StageDriver) -> None:
        """A lane has several workers: loads, dumps and lookups overlap."""
        ids, data = make_blocks(24)
        assert all_ok(await driver.dump(ids[:12], None, data[:12]))
        back = np.zeros_like(data[:12])
        loads = [driver.load(ids[i : i + 3], None, back[i : i + 3]) for i in range(0, 12, 3)]
        dumps = [driver.dump(ids[i : i + 3], None, data[i : i + 3]) for i in range(12, 24, 3)]
        found, results = await asyncio.gather(driver.stage.lookup(ids[:12]), asyncio.gather(*loads, *dumps))
        assert found.all()
        assert all(all_ok(result) for result in results)
        assert (back == data[:12]).all()
        assert (await driver.stage.lookup(ids)).all()

    async def test_one_block_in_two_batches_at_once(self, driver: StageDriver) -> None:
        """Both are OK, and the block is whole."""
        ids, data = make_blocks(3)
        results = await asyncio.gather(*(driver.dump(ids, None, data) for _ in range(3)))
        assert all(all_ok(result) for result in results)
        back = np.zeros_like(data)
        assert all_ok(await driver.load(ids, None, back))
        assert (back == data).all()

    async def test_pieces(self, driver: StageDriver) -> None:
        """A row may lie in pieces of different sizes."""
        ids, shards, rows = to_shards(*make_blocks(2))
        cut = 5000
        source = [[bytearray(row[:cut]), bytearray(row[cut:])] for row in rows]
        assert all_ok(await driver.dump(ids, shards, source))
        back = [[bytearray(cut), bytearray(SHARD_BYTES - cut)] for _ in rows]
        assert all_ok(await driver.load(ids, shards, back))
        assert [b"".join(row) for row in back] == [row.tobytes() for row in rows]

    # ---- settled tasks

    async def test_rows_of_settled_tasks_touch_no_memory(self, driver: StageDriver) -> None:
        """Once its task has settled, a row may still pass, but its memory is the caller's again."""
        ids, data = make_blocks(4)
        assert all_ok(await driver.dump(ids[:2], None, data[:2]))
        back = np.full_like(data[:2], 0xEE)
        gone, alive = driver.task("load", ids[:2], None, back), driver.task("load", ids[:2], None, data[:2].copy())
        gone.cancel()
        await driver.run(gone, alive)
        assert (back == 0xEE).all()
        assert all_ok(alive.result())
        source = data[2:].copy()
        dump = driver.task("dump", ids[2:], None, source)
        dump.cancel()
        await driver.run(dump)
        assert not (await driver.stage.lookup(ids[2:])).any()

    async def test_a_task_that_is_cancelled_midway(self, driver: StageDriver) -> None:
        """Nothing changes in its memory from then on; the other task of the batch gets everything."""
        ids, data = make_blocks(8)
        assert all_ok(await driver.dump(ids, None, data))
        for turns in range(6):
            backs = [np.zeros_like(data) for _ in range(2)]
            tasks = [driver.task("load", ids, None, back) for back in backs]
            running = asyncio.ensure_future(driver.run(*tasks))
            for _ in range(turns):
                await asyncio.sleep(0)
            tasks[0].cancel()
            seen = backs[0].copy()
            await running
            assert (backs[0] == seen).all()
            assert all_ok(tasks[1].result())
            assert (backs[1] == data).all()

    async def test_a_dump_that_is_cancelled_midway(self, driver: StageDriver) -> None:
        """The shards of the other task of the batch are taken all the same."""
        for turns in range(6):
            ids, shards, rows = to_shards(*make_blocks(4, seed=turns))
            odd = shards % 2 == 1
            tasks = [driver.task("dump", ids[part], shards[part], rows[part]) for part in (~odd, odd)]
            running = asyncio.ensure_future(driver.run(*tasks))
            for _ in range(turns):
                await asyncio.sleep(0)
            tasks[0].cancel()
            await running
            assert all_ok(tasks[1].result())
            assert all_ok(await driver.dump(ids[~odd], shards[~odd], rows[~odd]))
            back = np.zeros_like(rows)
            assert all_ok(await driver.load(ids, shards, back))
            assert (back == rows).all()

    # ---- what is stored

    async def test_lookup(self, driver: StageDriver) -> None:
        """Bool for each id, in order; an incomplete block is not there."""
        ids, data = make_blocks(4)
        stage = driver.stage
        found = await stage.lookup(ids)
        assert found.dtype == np.bool_
        assert found.shape == (4,)
        assert all_ok(await driver.dump(ids[:2], None, data[:2]))
        shard_ids, shards, rows = to_shards(ids[2:3], data[2:3])
        assert all_ok(await driver.dump(shard_ids[1:], shards[1:], rows[1:]))
        assert (await stage.lookup(ids[[3, 0, 2, 1, 0]])).tolist() == [False, True, False, True, True]
        assert all_ok(await driver.dump(shard_ids[:1], shards[:1], rows[:1]))
        assert (await stage.lookup(ids)).tolist() == [True, True, True, False]

    async def test_prefix(self, driver: StageDriver) -> None:
        """Index of the last block before the first that is missing."""
        ids, data = make_blocks(5)
        assert await driver.stage.lookup_on_prefix(ids) == -1
        assert all_ok(await driver.dump(ids[[0, 1, 3]], None, data[[0, 1, 3]]))
        assert await driver.stage.lookup_on_prefix(ids) == 1
        assert await driver.stage.lookup_on_prefix(ids[:1]) == 0
        assert await driver.stage.lookup_on_prefix(ids[2:]) == -1

    async def test_misses(self, driver: StageDriver) -> None:
        """What is not stored is a report, not an exception; memory of such rows is free to change or not."""
        ids, data = make_blocks(3)
        assert set(statuses(await driver.load(ids, None, data))) == {Status.MISS}

    async def test_delete(self, driver: StageDriver) -> None:
        """Known, unknown and repeated ids; what is gone can be dumped anew."""
        ids, data = make_blocks(3)
        assert all_ok(await driver.dump(ids[:2], None, data[:2]))
        await driver.stage.delete(np.ascontiguousarray(ids[[0, 2, 0]]))
        assert (await driver.stage.lookup(ids)).tolist() == [False, True, False]
        assert all_ok(await driver.dump(ids, None, data))
        assert (await driver.stage.lookup(ids)).all()

    @pytest.mark.parametrize("durability", DURABILITIES)
    async def test_durability(self, driver: StageDriver, durability: Durability) -> None:
        """A row is OK when it has the durability that was asked for; ``flush`` has nothing to complain of."""
        ids, data = make_blocks(3)
        assert all_ok(await driver.dump(ids, None, data, durability=durability))
        assert (await driver.stage.lookup(ids)).all()
        assert dict(await driver.stage.flush()) == {}

    # ---- life

    async def test_setup_while_batches_are_inside(self, driver: StageDriver, config: StoreConfig) -> None:
        """What may change changes, and no row is lost."""
        ids, data = make_blocks(16)
        dumps = [asyncio.ensure_future(driver.dump(ids[i : i + 2], None, data[i : i + 2])) for i in range(0, 16, 2)]
        await asyncio.sleep(0)
        await driver.stage.setup(config.replace(io_engine="psync", io_threads=2))
        assert all(all_ok(result) for result in await asyncio.gather(*dumps))
        back = np.zeros_like(data)
        assert all_ok(await driver.load(ids, None, back))
        assert (back == data).all()

    async def test_statistics(self, driver: StageDriver) -> None:
        """Plain, ready for JSON, before and after work."""
        ids, data = make_blocks(2)
        json.dumps(dict(driver.stage.statistics()))
        assert all_ok(await driver.dump(ids, None, data))
        json.dumps(dict(driver.stage.statistics()))

    async def test_closing_twice(self, driver: StageDriver) -> None:
        """The second close does nothing."""
        ids, data = make_blocks(SHARDS)
        assert all_ok(await driver.dump(ids, None, data))
        await driver.stage.aclose()
        await driver.stage.aclose()
