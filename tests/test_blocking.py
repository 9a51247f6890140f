"""The store for threads: the same verbs, answers and errors."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async
from ucm_async import ConfigError, Status, Store, StoreClosedError, UnknownNameError, block_ids
from ucm_async.blocking import BlockingStore, BlockingTask, open_store
from ucm_async.testing.stores import BLOCK_BYTES, SHARD_BYTES, all_ok, make_blocks, statuses, to_shards

KEYS = {"block_size": BLOCK_BYTES, "shard_size": SHARD_BYTES, "staging_buffer_gb": 0.002}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlockingStore]:
    with open_store("Posix", **KEYS, storage_backends=[str(tmp_path)]) as store:
        yield store


def test_blocks_come_back(store: BlockingStore) -> None:
    ids, data = make_blocks(8)
    assert all_ok(store.dump(ids, None, data).result())
    back = np.zeros_like(data)
    task = store.load(ids, None, back)
    assert all_ok(store.wait(task))
    assert (back == data).all()
    assert store.check(task)
    assert task.done()


def test_shards_addresses_and_misses(store: BlockingStore) -> None:
    ids, shards, rows = to_shards(*make_blocks(2))
    steps = np.arange(len(rows), dtype=np.uint64) * np.uint64(SHARD_BYTES)
    assert all_ok(store.dump_data(ids, shards, (np.uint64(rows.ctypes.data) + steps).reshape(-1, 1)).result())
    back = np.zeros_like(rows)
    assert all_ok(store.load_data(ids, shards, (np.uint64(back.ctypes.data) + steps).reshape(-1, 1)).result())
    assert (back == rows).all()
    unknown = block_ids([99])
    assert statuses(store.load(unknown, None, [bytearray(BLOCK_BYTES)]).result()) == [Status.MISS]


def test_what_is_stored(store: BlockingStore) -> None:
    ids, data = make_blocks(4)
    store.dump(ids[:3], None, data[:3], durability="synced")
    assert dict(store.flush()) == {}
    store.prefetch(ids)
    assert store.lookup(ids).tolist() == [True, True, True, False]
    assert store.lookup_on_prefix(ids) == 2
    store.delete(ids[1:2])
    assert store.lookup_on_prefix(ids) == 0


def test_many_threads_at_once(store: BlockingStore) -> None:
    ids, data = make_blocks(64)

    def work(number: int) -> bool:
        mine = slice(4 * number, 4 * number + 4)
        assert all_ok(store.dump(ids[mine], None, data[mine]).result())
        back = np.zeros_like(data[mine])
        assert all_ok(store.load(ids[mine], None, back).result())
        return bool((back == data[mine]).all() and store.lookup(ids[mine]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))
    assert store.statistics().as_dict()["tasks"]["submitted"] == 32


def test_one_task_from_many_threads(store: BlockingStore) -> None:
    ids, data = make_blocks(16)
    task = store.dump(ids, None, data)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: task.result(), range(16)))
    assert all(result is results[0] for result in results)


def test_a_deadline_settles(store: BlockingStore) -> None:
    ids, data = make_blocks(16)
    task = store.dump(ids, None, data)
    result = task.result(timeout=0)
    assert set(statuses(result)) <= {Status.OK, Status.TIMEOUT}
    assert task.result() is result
    task.settled()
    assert set(statuses(store.load(ids, None, data, timeout=0).result())) <= {Status.OK, Status.TIMEOUT, Status.MISS}


def test_cancel(store: BlockingStore) -> None:
    ids, data = make_blocks(16)
    rows = bytearray(data.tobytes())
    task = store.dump(ids, None, rows)
    cancelled = task.cancel()
    assert task.done()
    rows += b"may grow"
    if cancelled:
        assert Status.CANCELLED in statuses(task.result())
    assert task.cancel() is False


def test_register_and_lease(store: BlockingStore) -> None:
    ids, data = make_blocks(2)
    memory = np.zeros_like(data)
    with store.register(memory):
        memory[:] = data
        assert all_ok(store.dump(ids, None, memory).result())
    with store.lease(ids) as views:
        assert [bytes(view) for view in views if view is not None] == [row.tobytes() for row in data]
    with pytest.raises(ValueError, match="released"):
        bytes(views[0])  # type: ignore[arg-type]


def test_setup_and_configuration(store: BlockingStore) -> None:
    store.setup(io_engine="psync", timeout_ms=5000)
    assert store.config.io_engine == "psync"
    assert store.config.timeout_ms == 5000
    with pytest.raises(ConfigError, match="did you mean"):
        store.setup(io_engin="psync")


def test_a_stage_is_replaced(store: BlockingStore) -> None:
    ids, data = make_blocks(2)
    assert all_ok(store.dump(ids, None, data).result())
    store.replace_stage("Posix", "Posix")
    assert store.lookup(ids).all()


def test_it_has_every_verb_of_the_store() -> None:
    """With the same arguments, in the same order, with the same defaults."""
    for name, verb in inspect.getmembers(Store, inspect.isfunction):
        if name.startswith("_") or name == "aclose":
            continue
        theirs = inspect.signature(getattr(BlockingStore, name)).parameters
        ours = inspect.signature(verb).parameters
        assert list(theirs) == list(ours), name
        assert [one.default for one in theirs.values()] == [one.default for one in ours.values()], name
        assert [one.kind for one in theirs.values()] == [one.kind for one in ours.values()], name


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda store, rows: store.load([b"short"], None, rows), ValueError, r"ids\[0\]: 5 bytes"),
        (lambda store, rows: store.dump(block_ids([1, 2]), None, rows), ValueError, "src: 1 rows, must be 2"),
        (lambda store, rows: store.load([bytes(16)], [7], rows), ValueError, r"shard_index\[0\]: 7"),
        (lambda store, rows: store.load([bytes(16)], None, rows, timeout="1"), TypeError, "timeout: '1'"),
        (lambda store, rows: store.dump([bytes(16)], None, rows, durability="x"), ValueError, "durability: 'x'"),
        (lambda store, rows: store.lookup(None), TypeError, "ids: NoneType"),
    ],
)
def test_wrong_arguments(store: BlockingStore, call: Any, error: type[Exception], message: str) -> None:
    rows = [bytearray(BLOCK_BYTES)]
    with pytest.raises(error, match=message):
        call(store, rows)
    rows[0].append(0)


VERBS: dict[str, Callable[[BlockingStore], object]] = {
    "load": lambda store: store.load([bytes(16)], None, [bytearray(BLOCK_BYTES)]),
    "dump": lambda store: store.dump([bytes(16)], None, [bytes(BLOCK_BYTES)]),
    "load_data": lambda store: store.load_data([bytes(16)], None, [[4096]]),
    "dump_data": lambda store: store.dump_data([bytes(16)], None, [[4096]]),
    "lookup": lambda store: store.lookup([bytes(16)]),
    "lookup_on_prefix": lambda store: store.lookup_on_prefix([bytes(16)]),
    "prefetch": lambda store: store.prefetch([bytes(16)]),
    "delete": lambda store: store.delete([bytes(16)]),
    "flush": lambda store: store.flush(),
    "setup": lambda store: store.setup(timeout_ms=1),
    "replace_stage": lambda store: store.replace_stage("Fake", "Fake"),
    "statistics": lambda store: store.statistics(),
    "lease": lambda store: store.lease([bytes(16)]).__enter__(),
    "register": lambda store: store.register(bytearray(8)).__enter__(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_closed(verb: str) -> None:
    store = open_store("Fake", **KEYS)
    store.close()
    with pytest.raises(StoreClosedError, match="the store is closed"):
        VERBS[verb](store)
    store.close()


def test_results_outlive_the_store() -> None:
    ids, data = make_blocks(4)
    with open_store("Fake", **KEYS) as store:
        task: BlockingTask = store.dump(ids, None, data)
    assert all_ok(task.result())
    assert all_ok(store.wait(task))
    assert task.done()
    assert task.cancel() is False
    task.settled()


def test_memory_that_is_registered_when_the_store_is_closed() -> None:
    memory = bytearray(64)
    store = open_store("Fake", **KEYS)
    with store.register(memory):
        store.close()
    memory.append(0)


def test_closing_drains(tmp_path: Path) -> None:
    ids, data = make_blocks(32)
    keys = {**KEYS, "storage_backends": [str(tmp_path)]}
    with open_store("Posix", **keys) as store:
        for i in range(0, 32, 4):
            store.dump(ids[i : i + 4], None, data[i : i + 4])
    with open_store("Posix", **keys) as store:
        assert store.lookup(ids).all()


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    with open_store("Fake", **KEYS) as store:
        store.lookup([bytes(16)])
        assert threading.active_count() > before
    assert threading.active_count() == before


@pytest.mark.parametrize(("pipeline", "error"), [("Posix", ConfigError), ("Nothing", UnknownNameError)])
def test_what_cannot_be_opened(pipeline: str, error: type[Exception]) -> None:
    before = threading.active_count()
    with pytest.raises(error):
        open_store(pipeline, **KEYS)
    assert threading.active_count() == before


def test_an_error_inside_the_block_comes_out_and_the_store_is_closed() -> None:
    with pytest.raises(ZeroDivisionError), open_store("Fake", **KEYS) as store:
        raise ZeroDivisionError
    with pytest.raises(StoreClosedError):
        store.lookup([bytes(16)])


async def test_beside_a_running_loop() -> None:
    """A thread of an asynchronous program may have one; its own loop is another."""

    def work() -> bool:
        with open_store("Fake", **KEYS) as store:
            ids, data = make_blocks(2)
            return bool(store.dump(ids, None, data).result().ok.all())

    async with ucm_async.open_store("Fake", **KEYS) as store:
        assert await asyncio.to_thread(work)
        assert not (await store.lookup(make_blocks(2)[0])).any()
