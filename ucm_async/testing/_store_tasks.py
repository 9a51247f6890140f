"""Store suite, third part: tasks and their results, deadlines and cancellations, leases, life and death."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ..errors import BlockMissError, DeadlineError, StoreClosedError, TaskCancelledError, WrongLoopError
from ..store import Store
from ..tasks import Task, TaskResult
from ..types import Status
from ._store_case import BLOCK_BYTES, SHARD_BYTES, Opener, StoreCase, all_ok, make_blocks, statuses

__all__ = ["LifeTests", "TaskTests"]

VERBS: dict[str, Callable[[Store, Any, Any], Any]] = {
    "load": lambda store, ids, data: store.load(ids, None, data),
    "dump": lambda store, ids, data: store.dump(ids, None, data),
    "load_data": lambda store, ids, data: store.load_data(ids, None, np.array([[data.ctypes.data]])),
    "dump_data": lambda store, ids, data: store.dump_data(ids, None, np.array([[data.ctypes.data]])),
    "lookup": lambda store, ids, data: store.lookup(ids),
    "lookup_on_prefix": lambda store, ids, data: store.lookup_on_prefix(ids),
    "prefetch": lambda store, ids, data: store.prefetch(ids),
    "delete": lambda store, ids, data: store.delete(ids),
    "flush": lambda store, ids, data: store.flush(),
    "setup": lambda store, ids, data: store.setup(timeout_ms=1),
    "replace_stage": lambda store, ids, data: store.replace_stage("Posix", "Posix"),
    "lease": lambda store, ids, data: store.lease(ids).__aenter__(),
    "register": lambda store, ids, data: store.register(data).__enter__(),
    "statistics": lambda store, ids, data: store.statistics(),
}
"""Every verb that needs an open store."""


async def _call(verb: str, store: Store) -> object:
    """Call `verb`, and await what comes back where it is awaitable."""
    ids, data = make_blocks(1)
    outcome = VERBS[verb](store, ids, data)
    return await outcome if hasattr(outcome, "__await__") else outcome


class TaskTests(StoreCase):
    """Part of `ucm_async.testing.stores.StoreSuite`."""

    async def test_a_miss_is_a_value(self, store: Store) -> None:
        """The failure names row, block, shard and reason; rows before it are the loaded prefix."""
        ids, data = make_blocks(4)
        assert all_ok(await store.dump(ids[[0, 1, 3]], None, data[[0, 1, 3]]))
        back = np.zeros((4, SHARD_BYTES), dtype=np.uint8)
        result = await store.load(ids, [3, 2, 1, 0], back)
        assert statuses(result) == [Status.OK, Status.OK, Status.MISS, Status.OK]
        assert result.ok.tolist() == [True, True, False, True]
        assert result.loaded_prefix == 2
        assert list(result.failures) == [2]
        error = result.failures[2]
        assert isinstance(error, BlockMissError)
        assert (error.row, error.block_id, error.shard) == (2, ids[2].tobytes(), 1)
        assert ids[2].tobytes().hex() in str(error)
        assert "not stored" in str(error)

    async def test_raise_for_failures(self, store: Store) -> None:
        """Nothing where all is well, the error where there is one, a group where there are several."""
        ids, data = make_blocks(4)
        (await store.dump(ids[:2], None, data[:2])).raise_for_failures()
        with pytest.raises(BlockMissError):
            (await store.load(ids[:3], None, data[:3])).raise_for_failures()
        with pytest.raises(ExceptionGroup, match="2 of 4 rows failed") as caught:
            (await store.load(ids, None, data)).raise_for_failures()
        assert [error.row for error in caught.value.exceptions if isinstance(error, BlockMissError)] == [2, 3]

    async def test_a_result_cannot_be_changed(self, store: Store) -> None:
        """Statuses are read-only: others may hold the same result."""
        ids, data = make_blocks(1)
        result = await store.dump(ids, None, data)
        with pytest.raises(ValueError, match="read-only"):
            result.status[0] = 3

    async def test_a_task_can_be_awaited_many_times(self, store: Store) -> None:
        """One after another and from several coroutines: always the same result."""
        ids, data = make_blocks(4)
        task = store.dump(ids, None, data)

        async def wait() -> object:
            return await task

        results = [
            *await asyncio.gather(*(wait() for _ in range(5))),
            await task,
            await store.wait(task),
            task.result(),
        ]
        assert all(result is results[0] for result in results)

    async def test_check_never_blocks(self, store: Store) -> None:
        """False while it is under way, True once it has settled."""
        ids, data = make_blocks(4)
        task = store.dump(ids, None, data)
        assert store.check(task) is False
        with pytest.raises(asyncio.InvalidStateError):
            task.result()
        await task
        assert store.check(task) is True

    async def test_wait_with_time_to_spare(self, store: Store) -> None:
        """A deadline that is not reached changes nothing."""
        ids, data = make_blocks(4)
        assert all_ok(await store.wait(store.dump(ids, None, data), timeout=60))
        assert all_ok(await store.load(ids, None, data, timeout=60))

    async def test_a_deadline_of_zero(self, store: Store) -> None:
        """What is not in at once is TIMEOUT; what is OK is right; the memory is the caller's again."""
        ids, data = make_blocks(16)
        assert all_ok(await store.dump(ids, None, data))
        back = bytearray(16 * BLOCK_BYTES)
        task = store.load(ids, None, back)
        result = await store.wait(task, timeout=0)
        assert set(statuses(result)) <= {Status.OK, Status.TIMEOUT}
        back += b"may grow"
        for row in np.flatnonzero(result.ok).tolist():
            assert back[row * BLOCK_BYTES : (row + 1) * BLOCK_BYTES] == data[row].tobytes()
        assert all(isinstance(error, DeadlineError) for error in result.failures.values())
        assert await task is result
        assert all_ok(await store.load(ids, None, data.copy()))

    async def test_the_deadline_of_a_call(self, store: Store) -> None:
        """The same in one line, for loads and for dumps."""
        ids, data = make_blocks(16)
        assert set(statuses(await store.dump(ids, None, data, timeout=0))) <= {Status.OK, Status.TIMEOUT}
        assert all_ok(await store.dump(ids, None, data))
        assert set(statuses(await store.load(ids, None, data, timeout=0))) <= {Status.OK, Status.TIMEOUT}

    async def test_the_deadline_of_the_configuration(self, opener: Opener) -> None:
        """``timeout_ms`` holds where a call says nothing."""
        ids, data = make_blocks(64)
        async with opener(timeout_ms=0.001) as store:
            assert set(statuses(await store.dump(ids, None, data))) <= {Status.OK, Status.TIMEOUT}
            assert all_ok(await store.dump(ids, None, data, timeout=60))

    async def test_a_later_deadline_changes_nothing(self, store: Store) -> None:
        """The earlier of two deadlines counts."""
        ids, data = make_blocks(4)
        task = store.load(ids, None, data, timeout=0)
        assert statuses(await store.wait(task, timeout=60)) == statuses(await task)

    async def test_cancel(self, store: Store) -> None:
        """It settles the task at once, and only once."""
        ids, data = make_blocks(16)
        task = store.dump(ids, None, data)
        assert task.cancel() is True
        assert task.done()
        assert task.cancel() is False
        result = await task
        assert set(statuses(result)) == {Status.CANCELLED}
        assert isinstance(result.failures[0], TaskCancelledError)
        assert all_ok(await store.dump(ids, None, data))

    async def test_cancelling_the_await_cancels_the_task(self, store: Store) -> None:
        """As with an `asyncio.Task`; the memory is free at once."""
        ids, data = make_blocks(16)
        source = bytearray(data.tobytes())
        waiter, task = await _start(lambda: store.dump(ids, None, source))
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert task.done()
        source += b"may grow"

    async def test_a_shielded_await_does_not(self, store: Store) -> None:
        """`asyncio.shield` leaves the task alone."""
        ids, data = make_blocks(16)
        inner, task = await _start(lambda: store.dump(ids, None, data))
        waiter = asyncio.ensure_future(_await(asyncio.shield(inner)))
        await asyncio.sleep(0)
        waiter.cancel()
        assert all_ok(await task)
        assert await inner is task.result()

    async def test_the_memory_is_free_after_the_await(self, store: Store) -> None:
        """No buffer export outlives its task."""
        ids, data = make_blocks(2)
        source = [bytearray(row.tobytes()) for row in data]
        task = store.dump(ids, None, source)
        with pytest.raises(BufferError):
            source[0].append(0)
        assert all_ok(await task)
        back = [bytearray(BLOCK_BYTES) for _ in ids]
        assert all_ok(await store.load(ids, None, back))
        for row in (*source, *back):
            row.append(0)

    async def test_nobody_needs_to_await(self, store: Store) -> None:
        """A task runs by itself, and its memory comes back."""
        ids, data = make_blocks(4)
        source = bytearray(data.tobytes())
        store.dump(ids, None, source)
        await store.flush()
        assert (await store.lookup(ids)).all()
        source.append(0)

    async def test_dumps_of_the_same_blocks_at_the_same_time(self, store: Store) -> None:
        """Whichever of them writes a block: all of them are told, and every block is whole."""
        ids, data = make_blocks(40)
        generator = np.random.default_rng(0)
        orders = [generator.permutation(len(ids))[: 1 + i % 7] for i in range(100)]  # more than are taken at once
        tasks = [store.dump(ids[some], None, data[some]) for some in [np.arange(len(ids)), *orders]]
        for task in tasks:
            assert all_ok(await task)
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()

    async def test_settled(self, store: Store) -> None:
        """After a deadline on registered memory, ``settled`` tells when it may be used again."""
        ids, data = make_blocks(8)
        assert all_ok(await store.dump(ids, None, data))
        back = np.zeros_like(data)
        with store.register(back):
            task = store.load(ids, None, back, timeout=0)
            await task
            await task.settled()
            back[:] = 7
            assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()

    async def test_lease(self, store: Store) -> None:
        """Read-only views of what is stored, None of what is not; gone after the block."""
        ids, data = make_blocks(3)
        assert all_ok(await store.dump(ids[:2], None, data[:2]))
        async with store.lease(ids) as views:
            first, second, missing = views
            assert first is not None
            assert second is not None
            assert missing is None
            assert first.readonly
            assert bytes(first) == data[0].tobytes()
            assert bytes(second) == data[1].tobytes()
            with pytest.raises(TypeError):
                first[0] = 1
        with pytest.raises(ValueError, match="released"):
            first[0]
        with pytest.raises(ValueError, match="released"):
            bytes(second)

    async def test_an_error_inside_a_lease_comes_out(self, store: Store) -> None:
        """And the views are released all the same."""
        ids, data = make_blocks(1)
        assert all_ok(await store.dump(ids, None, data))
        with pytest.raises(ZeroDivisionError):
            async with store.lease(ids) as views:
                raise ZeroDivisionError
        assert views[0] is not None
        with pytest.raises(ValueError, match="released"):
            views[0][0]

    async def test_statistics_are_plain(self, store: Store) -> None:
        """They can be written as JSON, and count what happened."""
        ids, data = make_blocks(3)
        assert all_ok(await store.dump(ids[:2], None, data[:2]))
        await store.load(ids, None, data)
        told = json.loads(json.dumps(store.statistics().as_dict()))
        assert told["tasks"]["submitted"] == told["tasks"]["settled"] == 2
        assert told["tasks"]["rows"]["OK"] == 4
        assert told["tasks"]["rows"]["MISS"] == 1
        assert len(told["pipeline"]) == len(self.pipeline.split("|"))

    async def test_statistics_are_a_snapshot(self, store: Store) -> None:
        """What happens later does not change them."""
        ids, data = make_blocks(1)
        before = store.statistics()
        told = before.as_dict()
        assert all_ok(await store.dump(ids, None, data))
        assert before.as_dict() == told


class LifeTests(StoreCase):
    """Part of `ucm_async.testing.stores.StoreSuite`."""

    async def test_open_by_await(self, opener: Opener) -> None:
        """Awaited instead of entered, the store is closed by ``aclose``."""
        store = await opener()
        ids, data = make_blocks(1)
        assert all_ok(await store.dump(ids, None, data))
        await store.aclose()
        with pytest.raises(StoreClosedError):
            await store.lookup(ids)

    async def test_aclose_drains(self, opener: Opener) -> None:
        """Tasks under way are finished, and their results can be had afterwards."""
        ids, data = make_blocks(40)
        store = await opener()
        tasks = [store.dump(ids[i : i + 4], None, data[i : i + 4]) for i in range(0, 40, 4)]
        await store.aclose()
        for task in tasks:
            assert store.check(task)
            assert all_ok(await task)

    async def test_aclose_twice_and_at_once(self, opener: Opener) -> None:
        """Closing is idempotent, one after another and side by side."""
        store = await opener()
        await asyncio.gather(store.aclose(), store.aclose())
        await store.aclose()

    async def test_aclose_goes_on_when_its_caller_is_cancelled(self, opener: Opener) -> None:
        """A store is never left half closed."""
        ids, data = make_blocks(16)
        store = await opener()
        task = store.dump(ids, None, data)
        closing = asyncio.ensure_future(store.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await store.aclose()
        assert all_ok(await task)

    async def test_closed(self, opener: Opener) -> None:
        """Every verb of a closed store says so."""
        store = await opener()
        await store.aclose()
        for verb in VERBS:
            with pytest.raises(StoreClosedError, match="closed"):
                await _call(verb, store)

    async def test_another_thread_with_another_loop(self, store: Store) -> None:
        """Every verb says so when it is used from elsewhere; the store goes on here."""
        ids, data = make_blocks(1)
        task = store.dump(ids, None, data)

        async def use() -> None:
            for verb in VERBS:
                with pytest.raises(WrongLoopError, match="another event loop"):
                    await _call(verb, store)
            with pytest.raises(WrongLoopError, match="another event loop"):
                await store.wait(task)
            with pytest.raises(WrongLoopError, match="another event loop"):
                await store.aclose()

        await asyncio.to_thread(asyncio.run, use())
        assert all_ok(await task)

    async def test_a_thread_without_a_loop(self, store: Store) -> None:
        """It is told where threads belong."""
        ids, data = make_blocks(1)
        with pytest.raises(WrongLoopError, match=r"ucm_async\.blocking"):
            await asyncio.to_thread(store.load, ids, None, data)

    async def test_setup_of_a_running_store(self, store: Store) -> None:
        """What may change changes, for calls from then on."""
        await store.setup(timeout_ms=12_000)
        assert store.config.timeout_ms == 12_000
        ids, data = make_blocks(2)
        assert all_ok(await store.dump(ids, None, data))

    async def test_a_stage_is_replaced_in_a_running_store(self, store: Store) -> None:
        """Tasks under way are finished by the old stage, others go to the new one."""
        ids, data = make_blocks(12)
        name, spec = list(store.statistics().pipeline)[-1], self.pipeline.rpartition("|")[2]
        before = [store.dump(ids[i : i + 1], None, data[i : i + 1]) for i in range(6)]
        replaced = asyncio.ensure_future(store.replace_stage(name, spec))
        await asyncio.sleep(0)
        after = [store.dump(ids[i : i + 1], None, data[i : i + 1]) for i in range(6, 12)]
        for task in (*before, *after):
            assert all_ok(await task)
        await replaced
        assert all_ok(await store.dump(ids, None, data))
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()


async def _await(awaitable: Any) -> Any:
    return await awaitable


async def _start(submit: Callable[[], Task]) -> tuple[asyncio.Task[TaskResult], Task]:
    """Run a coroutine up to its await of the task that `submit` starts."""
    tasks: list[Task] = []

    async def run() -> TaskResult:
        tasks.append(submit())
        return await tasks[0]

    waiter = asyncio.ensure_future(run())
    await asyncio.sleep(0)
    return waiter, tasks[0]
