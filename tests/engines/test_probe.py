"""What is chosen, what it falls back to, and what it says about that."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ucm_async.engines import aio, probe, uring
from ucm_async.engines.arena import Arena
from ucm_async.engines.probe import ENGINES, EngineReport, choose_engine, make_engine, probe_direct, probe_engines
from ucm_async.engines.requests import OP_READ
from ucm_async.errors import ConfigError
from ucm_async.native import NATIVE
from ucm_async.testing.engines import PAGE_BYTES, Scratch

native_only = pytest.mark.skipif(not NATIVE, reason="about the rings of the extension")
SIZES = {"depth": 8, "max_bytes": 0, "threads": 2}
NO_URING = EngineReport("uring", False, "forbidden here")
NO_AIO = EngineReport("aio", False, "used up")


@pytest.mark.parametrize(
    ("requested", "direct", "reports", "name", "why"),
    [
        ("auto", True, (), "uring", "the first choice"),
        ("auto", True, (NO_URING,), "aio", "the best that works (uring: forbidden here)"),
        ("auto", True, (NO_URING, NO_AIO), "psync", "the best that works (uring: forbidden here; aio: used up)"),
        ("auto", False, (NO_URING,), "psync", "waits for the disk on buffered files"),
        ("psync", True, (), "psync", "asked for"),
        ("psync", True, (NO_URING, NO_AIO), "psync", "asked for"),
        ("aio", True, (NO_URING,), "aio", "asked for"),
        ("aio", True, (NO_AIO,), "uring", "in place of aio (aio: used up)"),
        ("aio", False, (), "uring", "in place of aio (aio: io_submit waits"),
        ("aio", False, (NO_URING,), "psync", "in place of aio (aio: io_submit waits"),
        ("uring", False, (), "uring", "asked for"),
        ("uring", True, (NO_URING,), "aio", "in place of uring (uring: forbidden here)"),
    ],
)
def test_choice(requested: str, direct: bool, reports: tuple[EngineReport, ...], name: str, why: str) -> None:
    chosen, reason = choose_engine(requested, direct, reports)
    assert chosen == name
    assert why in reason


def test_auto_on_buffered_files_says_nothing_of_aio_if_uring_works() -> None:
    assert choose_engine("auto", False, ()) == ("uring", "the first choice")


def test_every_situation_has_an_engine() -> None:
    for requested, direct, uring_works, aio_works in itertools.product(("auto", *ENGINES), *[(True, False)] * 3):
        reports = [EngineReport("uring", uring_works, "no"), EngineReport("aio", aio_works, "no")]
        name, why = choose_engine(requested, direct, reports)
        assert {"uring": uring_works, "aio": aio_works and direct, "psync": True}[name]
        assert why


@pytest.mark.parametrize("direct", [True, False])
async def test_unknown_engine(direct: bool) -> None:
    with pytest.raises(ConfigError, match=r"io_engine: 'spdk', must be one of auto, uring, aio, psync"):
        make_engine("spdk", direct=direct, **SIZES)


def test_probe_reports_every_engine() -> None:
    reports = probe_engines()
    assert tuple(report.name for report in reports) == ENGINES
    assert reports[-1] == EngineReport("psync", True, "")
    assert all(report.available or report.reason for report in reports)


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        ("aio", errno.EAGAIN, "fs.aio-max-nr is used up"),
        ("aio", errno.ENOSYS, "has no aio, or a seccomp filter hides it (ENOSYS)"),
        ("uring", errno.ENOSYS, "has no uring, or a seccomp filter hides it (ENOSYS)"),
        ("uring", errno.EPERM, "(EPERM)"),
        ("uring", errno.ENOMEM, "RLIMIT_MEMLOCK"),
        ("uring", errno.EMFILE, "ulimit -n"),
        ("uring", errno.EINVAL, "Invalid argument (EINVAL)"),
    ],
)
@native_only
def test_reasons(monkeypatch: pytest.MonkeyPatch, name: str, number: int, words: str) -> None:
    _forbid(monkeypatch, name, number)
    report = next(report for report in probe_engines() if report.name == name)
    assert not report.available
    assert words in report.reason


@native_only
def test_the_sysctl_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _forbid(monkeypatch, "uring", errno.EPERM)
    monkeypatch.setattr(probe, "_sysctl", lambda name: "2" if name == "kernel/io_uring_disabled" else "")
    assert "kernel.io_uring_disabled is 2" in probe_engines()[0].reason


@native_only
async def test_a_blocked_ring_falls_back(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    _forbid(monkeypatch, "uring", errno.EPERM)
    async with make_engine("uring", direct=True, **SIZES) as engine:
        assert engine.name == "aio"
        assert "in place of uring" in engine.statistics()["why"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "io_engine uring is not to be had here" in caplog.text


@native_only
async def test_nothing_works_but_psync(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    _forbid(monkeypatch, "uring", errno.ENOSYS)
    _forbid(monkeypatch, "aio", errno.EAGAIN)
    async with make_engine("auto", direct=True, **SIZES) as engine:
        assert engine.name == "psync"
        why = engine.statistics()["why"]
    assert "uring" in why
    assert "fs.aio-max-nr is used up" in why
    assert not caplog.records  # auto promised nothing


@native_only
async def test_auto_tells_its_ring() -> None:
    async with make_engine("auto", direct=True, **SIZES) as engine:
        assert engine.name == "auto"
        assert engine.statistics()["ring"] in ("uring", "aio")
        assert engine.statistics()["why"]


@native_only
@pytest.mark.parametrize("name", ["aio", "uring"])
async def test_a_forced_engine_does_the_io_itself(name: str, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch", 4, direct=True)
    async with make_engine(name, direct=True, **SIZES) as engine:
        if engine.name != name:
            pytest.skip(engine.statistics()["why"])
        await engine.submit(scratch.batch(OP_READ, range(4)))
        assert engine.statistics()["requests"] == 4
    scratch.close()


@native_only
async def test_the_arena_is_registered(tmp_path: Path) -> None:
    arena = await Arena.create(PAGE_BYTES, 4)
    scratch = Scratch(tmp_path / "scratch", 4, direct=True)
    async with make_engine("uring", direct=True, memory=arena, **SIZES) as engine:
        if engine.name != "uring":
            pytest.skip(engine.statistics()["why"])
        assert isinstance(engine.statistics()["registered"], bool)
        requests = scratch.batch(OP_READ, range(4))
        requests["address"] = arena.address(arena.lease_nowait(4))
        outside = scratch.batch(OP_READ, range(4))
        await engine.submit(requests)
        await engine.submit(outside)  # memory that is not registered works as well
    assert (requests["result"] == PAGE_BYTES).all()
    assert (outside["result"] == PAGE_BYTES).all()
    assert arena.view()[:].tobytes() == scratch.memory.tobytes() == scratch.content.tobytes()
    scratch.close()
    arena.close()


@native_only
def test_a_system_without_room_for_aio_falls_back() -> None:
    """The real thing: contexts until the kernel refuses, then an engine."""
    code = """
        import asyncio
        from ucm_async.engines.probe import make_engine
        from ucm_async.native import AioContext, io_setup_limit
        used, most = io_setup_limit()
        if most - used > 200_000:
            raise SystemExit(77)
        held = []
        depth = 16384
        while depth:
            try:
                held.append(AioContext(depth))
            except OSError:
                depth //= 2
        async def main():
            async with make_engine("aio", direct=True, depth=64, max_bytes=0, threads=1) as engine:
                return engine.name, engine.statistics()["why"]
        name, why = asyncio.run(main())
        assert name != "aio" and "fs.aio-max-nr is used up" in why, (name, why)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    if run.returncode == 77:
        pytest.skip("fs.aio-max-nr is too high to be used up here")
    assert run.returncode == 0, run.stderr


def test_direct_leaves_nothing_behind(tmp_path: Path) -> None:
    works, why = probe_direct(tmp_path)
    assert works is (why == "")
    assert list(tmp_path.iterdir()) == []


def test_direct_where_nothing_is(tmp_path: Path) -> None:
    assert probe_direct(tmp_path / "missing") == (False, "No such file or directory (ENOENT)")


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no tmpfs here")
def test_memory_is_no_disk() -> None:
    works, why = probe_direct("/dev/shm")
    assert not works
    assert "is memory" in why


def test_direct_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> tuple[bool, str]:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(probe, "_write_and_read", refuse)
    assert probe_direct(tmp_path) == (False, "Invalid argument (EINVAL)")
    assert list(tmp_path.iterdir()) == []


def _forbid(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Let the kernel refuse an engine with this errno."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    context = {"aio": "AioContext", "uring": "UringContext"}[name]
    monkeypatch.setattr({"aio": aio, "uring": uring}[name], context, refuse)
    monkeypatch.setattr(probe, context, refuse)
