"""References, descriptors, threads and memory come back."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async.engines.requests import new_requests

from .tools import MAKERS, native, open_descriptors, reads, reap


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("kind", MAKERS)
def test_contexts(kind: str, file: int) -> None:
    def use() -> None:
        context = MAKERS[kind]()
        context.submit(reads(file, np.zeros(1000, np.uint8), 100, list(range(10))), "token")
        context.close()

    def drop() -> None:
        context = MAKERS[kind]()
        context.submit(reads(file, np.zeros(1000, np.uint8), 100, list(range(10))), "token")

    use()
    before = open_descriptors(), threads()
    for _ in range(20):
        use()
        drop()
    assert (open_descriptors(), threads()) == before


@pytest.mark.parametrize("kind", MAKERS)
def test_tokens_and_arrays(kind: str, file: int) -> None:
    context = MAKERS[kind]()
    token = object()
    requests = reads(file, np.zeros(1000, np.uint8), 100, list(range(10)))
    before = sys.getrefcount(token), sys.getrefcount(requests)
    for _ in range(50):
        context.submit(requests, token)
        assert len(reap(context)) == 1
    for _ in range(50):
        for wrong in (new_requests(3)[::2], bytearray(5), 7):
            with pytest.raises((TypeError, ValueError, BufferError)):
                context.submit(wrong, token)
    context.close()
    assert (sys.getrefcount(token), sys.getrefcount(requests)) == before


@pytest.mark.parametrize("name", ["AioContext", "UringContext"])
def test_failed_constructors(name: str) -> None:
    kind: Any = getattr(native, name)
    before = open_descriptors()
    for wrong in ((0,), (1, -1), ("x",), ()):
        with pytest.raises((TypeError, ValueError)):
            kind(*wrong)
    assert open_descriptors() == before


def test_rows_of_failed_exports() -> None:
    row = bytearray(10)
    table = np.zeros(3, np.uint64)
    before = sys.getrefcount(row), sys.getrefcount(table)
    for _ in range(100):
        with pytest.raises(TypeError):
            native.export_buffers([row, row, 5], True, table, table)
        held = native.export_buffers([row, row, row], True, table, table)
        held.release()
    del held
    assert (sys.getrefcount(row), sys.getrefcount(table)) == before


def test_tables_and_their_arguments() -> None:
    """Whatever goes wrong, arrays and memory are given back."""
    slots = 10
    memory = bytearray(native.BlockTable.bytes_needed(slots) + 64)
    view = memoryview(memory)[-np.frombuffer(memory, np.uint8).ctypes.data % 64 :]
    arena = bytes(100)
    ids, out = np.zeros((3, 16), np.uint8), np.zeros(3, np.int64)
    states, generations = np.zeros(3, np.uint8), np.zeros(3, np.uint32)

    def use() -> None:
        for arguments in (
            (view, 9999, "s3fifo", True),
            (view, slots, "none", True),
            (view, 0),
            (b"", slots),
            (5, slots),
        ):
            with pytest.raises((ValueError, TypeError, BufferError)):
                native.BlockTable(*arguments)
        table = native.BlockTable(view, slots, create=True)
        with pytest.raises(ValueError, match="policy"):
            native.BlockTable(view, slots, "lru")
        table.join(1, 1)
        with pytest.raises(ValueError, match="slot_bytes"):
            table.set_arena(arena, 11)
        table.set_arena(arena, 10)
        table.claim(ids, out, states, generations)
        table.publish(out[:1])
        table.processes(), table.statistics(), table.count_states(), table.entries()
        for call, arguments in (
            (table.claim, (ids, out, states, generations[:2])),
            (table.claim, (ids, out, states, b"")),
            (table.lease, (ids, out[:2])),
            (table.release, (out,)),
            (table.fail, (out, 1)),
            (table.copy_out, (ids, 0, 0, 0)),
            (table.copy_out, (ids[0], 0, 0, 11)),
            (table.gather, (ids, states)),
        ):
            with pytest.raises((ValueError, TypeError, BufferError)):
                call(*arguments)
        watcher = native.Watcher(table)
        with pytest.raises(RuntimeError):
            native.Watcher(table)
        watcher.arm()

    use()
    everything = (view, arena, ids, out, states, generations)
    before = [sys.getrefcount(one) for one in everything], open_descriptors(), threads()
    for _ in range(20):
        use()
    assert ([sys.getrefcount(one) for one in everything], open_descriptors(), threads()) == before


@pytest.mark.skipif("UCM_ASYNC_SANITIZED" in os.environ, reason="the sanitizer keeps freed memory for a while")
def test_memory_stays_level(file: int) -> None:
    rows = [bytearray(10) for _ in range(1000)]
    table = np.zeros(1000, np.uint64)
    ids, values = np.zeros((1000, 16), np.uint8), np.ones(1000, np.uint64)
    memory = bytearray(native.BlockTable.bytes_needed(10_000) + 64)
    aligned_memory = memoryview(memory)[-np.frombuffer(memory, np.uint8).ctypes.data % 64 :]

    def use() -> None:
        shared = native.BlockTable(aligned_memory, 10_000, create=True)
        shared.join(1, 1)
        shared.repair()
        native.Watcher(shared).close()
        native.export_buffers(rows, True, table, table)
        native.IdTable(100_000).put(ids, values)
        native.Gate().close()
        native.Mapping(1 << 20).close()
        native.crc32c(bytes(10_000))
        for make in MAKERS.values():
            make(64).close()

    for _ in range(20):
        use()
    gc.collect()
    before = resident_kib()
    for _ in range(100):
        use()
    gc.collect()
    assert resident_kib() < before + 8 * 1024


def test_the_module_can_be_made_twice() -> None:
    """Multi-phase init: a second module object has types and state of its own, and goes away again."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("ucm_async._native", native.__file__)
    assert spec and spec.loader
    for _ in range(3):
        other = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(other)
        assert other.Gate is not native.Gate
        table = np.zeros(1, np.uint64)
        held = other.export_buffers([b"abc"], False, table, table.copy())
        assert type(held) is other.Exports
        del other, held
        gc.collect()
