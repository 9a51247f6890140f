"""What is wrong is said at once, by name; nothing is written, and no memory stays exported."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async import ConfigError, Store, Task, block_ids, open_store
from ucm_async.testing.stores import BLOCK_BYTES, SHARD_BYTES, SHARDS, all_ok, make_blocks, statuses

KEYS = {"block_size": BLOCK_BYTES, "shard_size": SHARD_BYTES, "namespace": "bad", "staging_buffer_gb": 0.002}
IDS = block_ids(range(2))
ROW = BLOCK_BYTES


def rows(count: int = 2, size: int = ROW) -> list[bytearray]:
    return [bytearray(size) for _ in range(count)]


def tensors(*sizes: int) -> list[list[bytearray]]:
    return [[bytearray(size) for size in sizes] for _ in IDS]


# Wrong for loads and dumps alike: (ids, shard_index, memory, error, message)
WRONG: dict[str, tuple[Any, Any, Any, type[Exception], str]] = {
    "ids of 15 bytes": ([b"x" * 15] * 2, None, rows(), ValueError, r"ids\[0\]: 15 bytes, must be 16"),
    "ids of 32 bytes": ([b"x" * 32] * 2, None, rows(), ValueError, r"ids\[0\]: 32 bytes, must be 16"),
    "ids of str": (["x" * 16] * 2, None, rows(), TypeError, r"ids\[0\]: str, must be bytes"),
    "ids of int": ([1, 2], None, rows(), TypeError, r"ids\[0\]: int, must be bytes"),
    "one id": (b"x" * 16, None, rows(), TypeError, r"ids: .* not one bytes; pass \[ids\]"),
    "no ids": (None, None, rows(), TypeError, "ids: NoneType"),
    "ids of another dtype": (IDS.astype(np.int8), None, rows(), TypeError, "ids: .* must be uint8, not int8"),
    "ids of another shape": (IDS.reshape(4, 8), None, rows(), ValueError, r"ids: shape \(4, 8\), must be \(n, 16\)"),
    "ids with gaps": (np.repeat(IDS, 2, axis=0)[::2], None, rows(), ValueError, "ids: .* not C-contiguous"),
    "shard too large": (IDS, [0, SHARDS], rows(size=SHARD_BYTES), ValueError, r"shard_index\[1\]: 4, must be 0 … 3"),
    "shard below zero": (IDS, [0, -1], rows(size=SHARD_BYTES), ValueError, r"shard_index\[1\]: -1, must be 0 … 3"),
    "shards of float": (IDS, [0.0, 1.0], rows(size=SHARD_BYTES), TypeError, "shard_index: float64, must be ints"),
    "shards of str": (IDS, ["0", "1"], rows(size=SHARD_BYTES), TypeError, "shard_index: .* must be ints"),
    "one shard": (IDS, 0, rows(size=SHARD_BYTES), ValueError, r"shard_index: shape \(\), must be \(2,\)"),
    "too few shards": (IDS, [0], rows(size=SHARD_BYTES), ValueError, "shard_index: 1 entries, must be 2"),
    "too many shards": (IDS, [0, 1, 2], rows(size=SHARD_BYTES), ValueError, "shard_index: 3 entries, must be 2"),
    "no memory": (IDS, None, None, TypeError, "M: NoneType has no buffer protocol"),
    "a number": (IDS, None, 4096, TypeError, "M: int has no buffer protocol"),
    "rows of str": (IDS, None, ["x" * ROW, bytearray(ROW)], TypeError, r"M\[0\]: str has no buffer protocol"),
    "a row of None": (IDS, None, [bytearray(ROW), None], TypeError, r"M\[1\]: NoneType has no buffer protocol"),
    "too few rows": (IDS, None, rows(1), ValueError, "M: 1 rows, must be 2, one for each id"),
    "too many rows": (IDS, None, rows(3), ValueError, "M: 3 rows, must be 2"),
    "a row too small": (IDS, None, [bytearray(ROW), bytearray(ROW - 1)], ValueError, r"M\[1\]: 65535 bytes, must be"),
    "a row too large": (IDS, None, rows(size=ROW + 1), ValueError, r"M\[0\]: 65537 bytes, must be 65536"),
    "blocks for shards": (IDS, [0, 1], rows(), ValueError, r"M\[0\]: 65536 bytes, must be 16384"),
    "shards for blocks": (IDS, None, rows(size=SHARD_BYTES), ValueError, r"M\[0\]: 16384 bytes, must be 65536"),
    "an array too small": (IDS, None, np.zeros((2, ROW - 1), np.uint8), ValueError, r"M: shape \(2, 65535\)"),
    "an array of one row": (IDS, None, np.zeros((1, ROW), np.uint8), ValueError, r"M: shape \(1, 65536\), must have"),
    "a flat array": (IDS, None, np.zeros(2 * ROW, np.uint8), ValueError, r"M: shape \(131072,\), must have 2 rows"),
    "an array with gaps": (IDS, None, np.zeros((2, 2 * ROW), np.uint8)[:, ::2], ValueError, "M: not C-contiguous"),
    "a row with gaps": (IDS, None, [np.zeros(2 * ROW, np.uint8)[::2], bytearray(ROW)], ValueError, r"M\[0\]: not C-"),
    "an array of objects": (IDS, None, np.zeros((2, ROW // 8), object), TypeError, "M: dtype object"),
    "a row of objects": (IDS, None, [bytearray(ROW), np.zeros(ROW // 8, object)], TypeError, r"M\[1\]: dtype object"),
    "tensors that do not add up": (IDS, None, tensors(ROW, 1), ValueError, r"M\[0\]: buffers of \[65536, 1\] bytes"),
    "an empty tensor": (IDS, None, tensors(ROW, 0), ValueError, r"M\[0\]: buffers of \[65536, 0\] bytes"),
    "no tensors": (IDS, None, [[], []], ValueError, r"M\[0\]: 0 buffers"),
    "rows of different kinds": (IDS, None, [[bytearray(ROW)], bytearray(ROW)], ValueError, r"M\[1\]: bytearray, must"),
    "tensors of different counts": (
        IDS, None, [[bytearray(ROW)], rows(2, ROW // 2)], ValueError, r"M\[1\]: 2 buffers, must be a list of 1",
    ),
    "tensors of different sizes": (
        IDS, None, [[bytearray(ROW - 8), bytearray(8)], [bytearray(8), bytearray(ROW - 8)]], ValueError, r"M\[1\]",
    ),
    "a tensor without bytes": (IDS, None, [[bytearray(8), 7]] * 2, TypeError, r"M\[0\]\[1\]: int has no buffer"),
}  # fmt: skip

TIMEOUTS: list[tuple[Any, type[Exception]]] = [
    (-1, ValueError),
    (-0.001, ValueError),
    (float("nan"), ValueError),
    (np.float64("nan"), ValueError),
    ("1", TypeError),
    (b"1", TypeError),
    (True, TypeError),
    ([1], TypeError),
    (1j, TypeError),
]


def grow(memory: Any) -> None:
    """Make every bytearray in `memory` longer, which is refused while anybody has it exported."""
    if isinstance(memory, bytearray):
        memory.append(0)
        memory.pop()
    elif isinstance(memory, (list, tuple)):
        for one in memory:
            grow(one)


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with open_store("Fake", **KEYS) as store:
        yield store


class TestTasks:
    @pytest.mark.parametrize("what", WRONG)
    @pytest.mark.parametrize("verb", ["load", "dump"])
    async def test_wrong_rows(self, store: Store, verb: str, what: str) -> None:
        ids, shards, memory, error, message = WRONG[what]
        name = "dst" if verb == "load" else "src"
        with pytest.raises(error, match=message.replace("M", name, 1) if message.startswith("M") else message):
            getattr(store, verb)(ids, shards, memory)
        grow(memory)
        assert store.statistics().tasks.submitted == 0
        assert store.statistics().pipeline["Fake"]["stage"]["blocks"] == 0

    async def test_a_load_into_what_is_read_only(self, store: Store) -> None:
        frozen = np.zeros((2, ROW), np.uint8)
        frozen.flags.writeable = False
        for memory in ([bytes(ROW)] * 2, bytes(2 * ROW), frozen, list(frozen), [memoryview(frozen[0])] * 2):
            with pytest.raises(TypeError, match=r"dst.*: \w+ is read-only, must be writable"):
                store.load(IDS, None, memory)
        assert all_ok(await store.dump(IDS, None, frozen))

    async def test_a_shard_twice_in_one_dump(self, store: Store) -> None:
        twice = IDS[[0, 1, 0]]
        memory = rows(3)
        with pytest.raises(ValueError, match=r"ids\[2\]: the whole block of block [0-9a-f]{32} is .*, as row 0"):
            store.dump(twice, None, memory)
        grow(memory)
        with pytest.raises(ValueError, match=r"ids\[2\]: shard 3 of block"):
            store.dump(twice, [3, 3, 3], rows(3, SHARD_BYTES))
        assert all_ok(await store.dump(twice, [3, 3, 2], rows(3, SHARD_BYTES)))

    @pytest.mark.parametrize("durability", ["", "Stored", "fsync", None, True, 1])
    async def test_durability(self, store: Store, durability: Any) -> None:
        with pytest.raises(ValueError, match=r"durability: .*, must be one of cached, stored, synced"):
            store.dump(IDS, None, rows(), durability=durability)
        with pytest.raises(ValueError, match="durability: "):
            store.dump_data(IDS, None, [[4096], [4096]], durability=durability)

    @pytest.mark.parametrize(("timeout", "error"), TIMEOUTS, ids=repr)
    async def test_timeout(self, store: Store, timeout: Any, error: type[Exception]) -> None:
        memory = rows()
        with pytest.raises(error, match=r"timeout: .*, must be a number of seconds"):
            store.load(IDS, None, memory, timeout=timeout)
        with pytest.raises(error, match="timeout: "):
            store.dump(IDS, None, memory, timeout=timeout)
        with pytest.raises(error, match="timeout: "):
            async with store.lease(IDS, timeout=timeout):
                pass
        grow(memory)
        task = store.dump(IDS, None, memory)
        with pytest.raises(error, match="timeout: "):
            await store.wait(task, timeout=timeout)
        assert all_ok(await task)

    @pytest.mark.parametrize("timeout", [0, 1, 2.5, float("inf"), 1e300, np.float32(1), np.int64(3)], ids=repr)
    async def test_timeouts_that_are_fine(self, store: Store, timeout: Any) -> None:
        result = await store.dump(IDS, None, rows(), timeout=timeout)
        assert all_ok(result) or timeout == 0

    @pytest.mark.parametrize("task", [None, "task", 7, asyncio.sleep], ids=["None", "a str", "an int", "a function"])
    async def test_waiting_for_what_is_no_task(self, store: Store, task: Any) -> None:
        with pytest.raises(TypeError, match=r"task: .*, must be what load or dump returned"):
            await store.wait(task)

    @pytest.mark.parametrize(
        ("addresses", "error"),
        [([4096, 8192], ValueError), ([[4096]], ValueError), ([[0], [1]], ValueError), ([[1.5], [2]], TypeError)],
    )
    async def test_addresses(self, store: Store, addresses: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="dst_addresses: "):
            store.load_data(IDS, None, addresses)
        with pytest.raises(error, match="src_addresses: "):
            store.dump_data(IDS, None, addresses)

    async def test_an_uneven_cut_is_told(self) -> None:
        async with open_store("Fake", **KEYS, tensor_size_list=[SHARD_BYTES - 8, 8]) as store:
            with pytest.raises(ValueError, match=r"src\[0\]: buffers of \[8, 8\] bytes, must be \[16376, 8\]"):
                store.dump(IDS, [0, 0], tensors(8, 8))


class TestOtherVerbs:
    @pytest.mark.parametrize("what", [what for what, case in WRONG.items() if case[4].startswith("ids")])
    @pytest.mark.parametrize("verb", ["lookup", "lookup_on_prefix", "prefetch", "delete"])
    async def test_wrong_ids(self, store: Store, verb: str, what: str) -> None:
        ids, _, _, error, message = WRONG[what]
        with pytest.raises(error, match=message):
            await getattr(store, verb)(ids)

    async def test_lease_of_wrong_ids(self, store: Store) -> None:
        with pytest.raises(ValueError, match=r"ids\[0\]"):
            async with store.lease([b"short"]):
                pass

    @pytest.mark.parametrize(
        ("memory", "error", "message"),
        [
            (None, TypeError, "memory: .*, must be one writable buffer"),
            ([bytearray(8)], TypeError, "memory: .*, must be one writable buffer"),
            (bytes(8), TypeError, "memory: bytes is read-only, must be writable"),
            (np.zeros((8, 8))[:, ::2], ValueError, "memory: not C-contiguous"),
            (np.zeros(8, object), TypeError, "memory: dtype object"),
        ],
    )
    async def test_register(self, store: Store, memory: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message), store.register(memory):
            pass

    async def test_registered_memory_cannot_go_away(self, store: Store) -> None:
        memory = bytearray(64)
        with store.register(memory), pytest.raises(BufferError):
            memory.append(0)
        memory.append(0)

    async def test_setup(self, store: Store) -> None:
        with pytest.raises(ConfigError, match="unknown key 'io_engin'; did you mean 'io_engine'"):
            await store.setup(io_engin="psync")
        with pytest.raises(ConfigError, match="io_engine: 'fast', must be one of"):
            await store.setup(io_engine="fast")
        with pytest.raises(ValueError, match="block_size: cannot change in an open store; only io_depth, io_engine"):
            await store.setup(block_size=2 * BLOCK_BYTES)
        assert store.config.io_engine == "auto"

    async def test_a_view_that_is_still_exported_after_its_lease(self, store: Store) -> None:
        """It is an error, and the other views are released all the same."""
        ids, data = make_blocks(2)
        assert all_ok(await store.dump(ids, None, data))
        with pytest.raises(BufferError):
            async with store.lease(ids) as views:
                kept = pickle.PickleBuffer(views[1])
        kept.release()
        with pytest.raises(ValueError, match="released"):
            bytes(views[0])  # type: ignore[arg-type]


class TestNothingIsWritten:
    async def test_by_any_wrong_call(self, tmp_path: Path) -> None:
        async with open_store("Posix", **KEYS, storage_backends=[str(tmp_path)], io_engine="psync") as store:
            before = everything_below(tmp_path)
            for ids, shards, memory, error, _ in WRONG.values():
                with pytest.raises(error):
                    store.dump(ids, shards, memory)
                with pytest.raises(error):
                    store.load(ids, shards, memory)
            await store.flush()
            assert everything_below(tmp_path) == before

    async def test_after_the_store_was_closed(self, tmp_path: Path) -> None:
        store = await open_store("Posix", **KEYS, storage_backends=[str(tmp_path)], io_engine="psync")
        await store.aclose()
        before = everything_below(tmp_path)
        memory = rows()
        for call in (store.load, store.dump):
            with pytest.raises(RuntimeError, match="closed"):
                call(IDS, None, memory)
        grow(memory)
        assert everything_below(tmp_path) == before


def everything_below(path: Path) -> list[str]:
    return sorted(os.path.join(where, name) for where, names, files in os.walk(path) for name in (*names, *files))


class TestOpening:
    """What cannot be opened says why, and leaves nothing open or lying around."""

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: path / "no" / "such", "No such file or directory"),
            (lambda path: _file(path / "file"), "Not a directory"),
            (lambda path: _file(path / "file") / "below", "Not a directory"),
            (lambda path: path / ("x" * 300), "File name too long"),
        ],
        ids=["missing parent", "a file", "below a file", "too long"],
    )
    async def test_a_directory_that_cannot_be_used(
        self, tmp_path: Path, make: Callable[[Path], Path], message: str
    ) -> None:
        backend = make(tmp_path)
        before, descriptors = everything_below(tmp_path), len(os.listdir("/proc/self/fd"))
        with pytest.raises(ConfigError, match=f"storage_backends: '{backend}': {message}; it must be a"):
            await open_store("Posix", **KEYS, storage_backends=[str(backend)])
        assert everything_below(tmp_path) == before
        assert len(os.listdir("/proc/self/fd")) <= descriptors  # what earlier tests left may go meanwhile

    async def test_no_directory(self) -> None:
        with pytest.raises(ConfigError, match="storage_backends: empty, Posix needs at least one directory"):
            await open_store("Posix", **KEYS)

    async def test_a_directory_is_made_if_its_parent_is_there(self, tmp_path: Path) -> None:
        async with open_store("Posix", **KEYS, storage_backends=[str(tmp_path / "kv")]) as store:
            assert all_ok(await store.dump(IDS, None, rows()))
        assert (tmp_path / "kv").is_dir()

    async def test_more_memory_than_there_is(self, tmp_path: Path) -> None:
        descriptors = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ConfigError, match="staging_buffer_gb: 4096"):
            await open_store("Posix", **(KEYS | {"staging_buffer_gb": 4096}), storage_backends=[str(tmp_path)])
        for _ in range(100):  # what earlier tests left may go, others' may come for a moment
            if len(os.listdir("/proc/self/fd")) <= descriptors:
                break
            await asyncio.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) <= descriptors
        assert [path for path in tmp_path.glob("*/writers/*") if path.is_dir()] == []

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"storage_backend_": "kv"}, "unknown key 'storage_backend_'; did you mean 'storage_backends'"),
            ({"queue_dept": 3}, "unknown key 'queue_dept'; did you mean 'queue_depth'"),
            ({"block_size": "64k"}, "block_size: '64k', must be an integer"),
            ({"shard_size": 1000}, "shard_size: 1000, must be a divisor of block_size"),
            ({"io_engine": "fast"}, "io_engine: 'fast', must be one of"),
            ({"io_direct": "yes"}, "io_direct: 'yes', must be"),
            ({"queue_number": 0}, "queue_number: 0, must be an integer from 1"),
            ({"timeout_ms": -1}, "timeout_ms: -1"),
            ({"namespace": ""}, "namespace: ''"),
        ],
        ids=str,
    )
    def test_configuration(self, keys: dict[str, Any], message: str) -> None:
        """Known at once, before anything is opened."""
        with pytest.raises(ConfigError, match=message):
            open_store("Posix", **(KEYS | keys))

    async def test_one_bad_directory_of_several_costs_its_blocks_only(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        backends = [str(tmp_path / "good"), str(tmp_path / "no" / "such")]
        ids, data = make_blocks(40)
        async with open_store("Posix", **KEYS, storage_backends=backends) as store:
            told = store.statistics().pipeline["Posix"]["stage"]["backends"]
            assert [bool(one["error"]) for one in told] == [False, True]
            dumped = await store.dump(ids, None, data)
            assert 5 < dumped.ok.sum() < 35
            assert {one.name for one in statuses(dumped)} == {"OK", "IO_ERROR"}
            assert (await store.lookup(ids) == dumped.ok).all()
            back = np.zeros_like(data)
            loaded = await store.load(ids, None, back)
            assert (loaded.ok == dumped.ok).all()
            assert (back[dumped.ok] == data[dumped.ok]).all()
            await store.delete(ids)
            assert not (await store.lookup(ids)).any()
        assert "backend left out" in caplog.text


def _file(path: Path) -> Path:
    path.write_bytes(b"")
    return path


FORK = """
import asyncio, os, sys
import numpy as np
import ucm_async

async def use(store, task):
    verbs = {
        "load": lambda: store.load([bytes(16)], None, bytearray(4096)),
        "lookup": lambda: store.lookup([bytes(16)]),
        "aclose": lambda: store.aclose(),
        "wait": lambda: store.wait(task),
    }
    for name, verb in verbs.items():
        try:
            outcome = verb()
            if hasattr(outcome, "__await__"):
                await outcome
            print(name, "went through")
        except ucm_async.WrongLoopError as error:
            print(name, "refused")

async def main():
    async with ucm_async.open_store("Posix", block_size=4096, storage_backends=[sys.argv[1]]) as store:
        task = store.dump([bytes(16)], None, bytes(4096))
        await task
        child = os.fork()
        if child == 0:
            asyncio.events._set_running_loop(None)
            asyncio.run(use(store, task))
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert (await store.lookup([bytes(16)])).all()
        assert (await store.load([bytes(16)], None, bytearray(4096))).ok.all()
    print("parent fine")

asyncio.run(main())
"""


def test_a_forked_child_may_not_use_the_store(tmp_path: Path) -> None:
    """It has its own copy of everything but the threads. The parent does not notice."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told = [*(f"{verb} refused" for verb in ("load", "lookup", "aclose", "wait")), "parent fine"]
    assert done.stdout.splitlines() == told, done.stderr
    assert done.stderr == ""


def test_outside_of_any_loop() -> None:
    """`open_store` only describes a store; awaiting it needs a loop."""
    opening = open_store("Fake", **KEYS)
    assert not isinstance(opening, (Store, Task))
