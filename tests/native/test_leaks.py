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


@pytest.mark.skipif("UCM_ASYNC_SANITIZED" in os.environ, reason="the sanitizer keeps freed memory for a while")
def test_memory_stays_level(file: int) -> None:
    rows = [bytearray(10) for _ in range(1000)]
    table = np.zeros(1000, np.uint64)
    ids, values = np.zeros((1000, 16), np.uint8), np.ones(1000, np.uint64)

    def use() -> None:
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
