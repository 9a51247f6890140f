"""The pure-Python twin does what the extension does: it passes the extension's own tests."""

from __future__ import annotations

import ast
import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ucm_async import _portable, native
from ucm_async.native import NATIVE

ROOT = Path(__file__).parents[2]
SAME = ("execute", "pool", "gate", "exports", "idtable", "mapping", "crc32c", "paths", "loadchains")
# What is promised of threads that are not Python's, and of memory that Python's mmap cannot align.
DIFFERENT = (
    "pool.py::test_threads_are_named_and_end_with_the_pool",
    "pool.py::test_signals_are_for_the_threads_of_python",
    "mapping.py::test_anonymous",
    "mapping.py::test_shared",
    "mapping.py::test_close_and_exports",
)
MISSING = (
    _portable.AioContext,
    _portable.UringContext,
    _portable.Driver,
    _portable.BlockTable,
    _portable.SlotTable,
    _portable.Watcher,
)


@pytest.mark.skipif(not NATIVE, reason="this run is the portable one")
def test_the_tests_of_the_extension() -> None:
    """In an interpreter of its own, where the twin takes the extension's place."""
    tests = [f"tests/native/test_{name}.py" for name in SAME]
    without = [option for name in DIFFERENT for option in ("--deselect", f"tests/native/test_{name}")]
    options = ["-q", "-p", "tests.portable.as_native", "-p", "no:cacheprovider", "--no-header"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests, *without],
        cwd=ROOT,
        env={**os.environ, "UCM_ASYNC_PORTABLE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


def test_every_name_of_the_stub_is_there() -> None:
    stub = ast.parse((ROOT / "ucm_async" / "_native.pyi").read_text())
    names = {node.name for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {
        node.target.id for node in stub.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    names = {name for name in names if not name.startswith("_") and hasattr(native, name)}
    assert names == set(_portable.__all__)
    assert names | {"NATIVE", "WHY"} == set(native.__all__)
    for node in stub.body:
        if isinstance(node, ast.ClassDef) and node.name in names - {kind.__name__ for kind in MISSING}:
            methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
            missing = {name for name in methods if not hasattr(getattr(_portable, node.name), name)} - {"__buffer__"}
            assert not missing, node.name


@pytest.mark.parametrize("kind", MISSING)
def test_what_needs_the_extension_says_so(kind: type) -> None:
    with pytest.raises(OSError, match="needs the extension") as caught:
        kind(8)
    assert caught.value.errno == errno.ENOSYS


@pytest.mark.parametrize("length", [1, 5000, 1 << 20])
def test_anonymous_memory(length: int) -> None:
    area = _portable.Mapping(length)
    memory = np.frombuffer(area, np.uint8)
    assert area.address == memory.ctypes.data
    assert area.address % mmap.PAGESIZE == 0
    assert area.length == len(memory) == length
    assert area.page_mode == "4k"
    assert not memory.any()
    memory[:] = 7
    with pytest.raises(BufferError):
        area.close()
    del memory
    area.close()
    area.close()


def test_shared_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"there" + bytes(8187))
    fd = os.open(path, os.O_RDWR)
    one, two = _portable.Mapping(8192, fd), _portable.Mapping(8192, fd)
    os.close(fd)
    assert bytes(memoryview(one)[:5]) == b"there"  # prefaulting writes nothing
    memoryview(one)[8191] = 9
    assert memoryview(two)[8191] == 9
    assert one.address != two.address


def test_a_pipe_does_where_there_is_no_eventfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "eventfd", raising=False)
    before = sorted(os.listdir("/dev/fd"))
    pool = _portable.ThreadPool(2)
    signal = pool._shared.signal
    assert signal._read != signal._write
    for token in range(3):
        pool.submit(np.zeros(0, dtype=np.uint8), token)
    assert pool.reap() == [0, 1, 2]
    assert pool.reap() == []
    signal.clear()
    for _ in range(100_000):  # more than a pipe holds
        signal.set()
    assert pool.close() == []
    assert sorted(os.listdir("/dev/fd")) == before


@pytest.mark.skipif(not NATIVE, reason="there is nothing to compare with")
@pytest.mark.parametrize("length", [0, 1, 7, 63, 64, 65, 255, 4095, 4096, 65_537, (1 << 20) - 1, 3 * (1 << 20) + 17])
def test_the_checksum_is_the_extension_s(length: int) -> None:
    data = np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8)
    assert _portable.crc32c(data) == native.crc32c(data)
    assert _portable.crc32c(data, 0xDEADBEEF) == native.crc32c(data, 0xDEADBEEF)


@pytest.mark.parametrize(
    ("changes", "native_expected"),
    [({"UCM_ASYNC_PORTABLE": "1"}, False), ({"UCM_ASYNC_PORTABLE": "0"}, NATIVE), ({"UCM_ASYNC_PORTABLE": ""}, NATIVE)],
)
def test_the_environment_chooses(changes: dict[str, str], native_expected: bool) -> None:
    code = "from ucm_async import native as n; print(n.NATIVE, n.ThreadPool.__module__, n.WHY, sep='|')"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | changes, capture_output=True, text=True, check=True
    )
    is_native, module, why = run.stdout.strip().split("|")
    assert is_native == str(native_expected)
    assert module.startswith("ucm_async._native" if native_expected else "ucm_async._portable")
    assert bool(why) is not native_expected


def test_an_extension_of_another_version_is_refused() -> None:
    code = """
import sys, types
old = types.ModuleType("ucm_async._native")
old.REQUEST_BYTES = 40
sys.modules["ucm_async._native"] = old
import ucm_async
ucm_async._native = old
from ucm_async import native
assert not native.NATIVE
assert "another version" in native.WHY, native.WHY
"""
    environment = {name: value for name, value in os.environ.items() if name != "UCM_ASYNC_PORTABLE"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
