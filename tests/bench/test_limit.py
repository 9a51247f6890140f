from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest

from ucm_async.bench.limit import LimitError, LimitProgram, compile_limit
from ucm_async.bench.setting import write_files
from ucm_async.types import U8

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return compile_limit()


@pytest.fixture
def rows() -> U8:
    return np.random.default_rng(1).integers(0, 256, (20, 8192), np.uint8)


@needs_compiler
@pytest.mark.parametrize("depth", [1, 8])
async def test_our_program_reads_files(program: Path, rows: U8, tmp_path: Path, depth: int) -> None:
    await asyncio.to_thread(write_files, tmp_path / "files", rows, direct=False)
    limit = LimitProgram(program, direct=False)
    try:
        sample = await limit.read(tmp_path / "files", 8192, 20, depth=depth)
    except LimitError as error:
        if "io_uring_setup" in str(error):
            pytest.skip(f"no io_uring here: {error}")
        raise
    assert sample.blocks == 20
    assert sample.wall_s > 0


@needs_compiler
async def test_our_program_creates_whole_files(program: Path, tmp_path: Path) -> None:
    sample = await LimitProgram(program, direct=False).create(tmp_path, 8192, 20, threads=3)
    assert sample.blocks == 20
    names = await asyncio.to_thread(lambda: {path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert names == {f"{i:06d}": b"\7" * 8192 for i in range(20)}


@needs_compiler
async def test_failures_of_the_program_are_told(program: Path, rows: U8, tmp_path: Path) -> None:
    limit = LimitProgram(program, direct=False)
    with pytest.raises(LimitError, match="No such file"):
        await limit.create(tmp_path / "missing", 8192, 20, threads=1)
    await asyncio.to_thread(write_files, tmp_path / "files", rows[:, :4096], direct=False)
    with pytest.raises(LimitError, match=r"transfer|io_uring_setup"):  # files shorter than the blocks
        await limit.read(tmp_path / "files", 8192, 20, depth=4)
    with pytest.raises(LimitError, match="must be positive"):
        await limit.read(tmp_path / "files", 8192, 0, depth=4)


async def test_another_program_may_print_more(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho '500.0 MB/s 5 iops open_us/op 2.13 total_ms 1 cpu_us/op 8.5 reg_ms 0.1'\n")
    other.chmod(0o755)
    sample = await LimitProgram(other, direct=True).read(tmp_path, 100_000_000, 10, depth=4)
    assert sample.wall_s == pytest.approx(2.0)
    assert sample.cpu_us_per_block == pytest.approx(8.5)


async def test_a_program_that_prints_something_else_is_no_measurement(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(0o755)
    with pytest.raises(LimitError, match="hello"):
        await LimitProgram(other, direct=True).read(tmp_path, 4096, 10, depth=4)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(LimitError, match="no C compiler"):
        compile_limit()


@needs_compiler
def test_it_is_compiled_once_and_into_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = compile_limit()
    assert program.is_relative_to(tmp_path)
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compile_limit() == program
    assert [path.name for path in program.parent.iterdir()] == [program.name]
