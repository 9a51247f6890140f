"""Every engine passes the suite, on both loops, on buffered files and with O_DIRECT."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from ucm_async.abc import Engine
from ucm_async.engines.aio import AioEngine
from ucm_async.engines.auto import AutoEngine
from ucm_async.engines.pool import make_pool
from ucm_async.engines.probe import make_engine, probe_engines
from ucm_async.engines.psync import PsyncEngine
from ucm_async.engines.uring import UringEngine
from ucm_async.native import NATIVE
from ucm_async.testing.engines import EngineSuite
from ucm_async.testing.faults import FaultyEngine, scripted

REASONS = {report.name: report.reason for report in probe_engines() if not report.available}
needs_aio = pytest.mark.skipif("aio" in REASONS, reason=REASONS.get("aio", ""))
needs_uring = pytest.mark.skipif("uring" in REASONS, reason=REASONS.get("uring", ""))


class TestPsync(EngineSuite):
    async def make_engine(self) -> Engine:
        return PsyncEngine(4)


class TestPsyncDirect(TestPsync):
    direct = True


class TestPool(EngineSuite):
    async def make_engine(self) -> Engine:
        return make_pool(3, "test")


@needs_aio
class TestAioDirect(EngineSuite):
    direct = True

    async def make_engine(self) -> Engine:
        return AioEngine(depth=16)


@needs_aio
class TestAioOneByOne(EngineSuite):
    direct = True

    async def make_engine(self) -> Engine:
        return AioEngine(depth=16, max_bytes=1)


@needs_uring
class TestUringDirect(EngineSuite):
    direct = True

    async def make_engine(self) -> Engine:
        return UringEngine(depth=16)


@needs_uring
class TestUringOneByOne(EngineSuite):
    direct = True

    async def make_engine(self) -> Engine:
        return UringEngine(depth=16, max_bytes=1)


@needs_uring
class TestUringBuffered(EngineSuite):
    async def make_engine(self) -> Engine:
        return UringEngine(depth=16, force_async=True)


@needs_uring
class TestAutoOnUring(EngineSuite):
    direct = True

    async def make_engine(self) -> Engine:
        return AutoEngine(UringEngine(depth=16), threads=2)


@needs_aio
class TestAutoOnAio(EngineSuite):
    direct = True

    async def make_engine(self) -> Engine:
        return AutoEngine(AioEngine(depth=16), threads=2)


class TestAutoAsMade(EngineSuite):
    async def make_engine(self) -> Engine:
        return make_engine("auto", direct=False, depth=16, max_bytes=1 << 20, threads=2)


class TestFaultyWithoutFaults(EngineSuite):
    async def make_engine(self) -> Engine:
        return FaultyEngine(PsyncEngine(2), scripted({}))


@pytest.mark.skipif(not NATIVE, reason="this run is the portable one")
def test_portable_psync_passes_the_same_suite() -> None:
    """The twin is chosen when the package is imported, so it takes an interpreter of its own."""
    selected = ["TestPsync", "TestPsyncDirect", "TestPool", "TestAutoAsMade"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"{__file__}::{one}" for one in selected),
    ]
    run = subprocess.run(
        command, env={**os.environ, "UCM_ASYNC_PORTABLE": "1"}, capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    loops = 1 + bool(importlib.util.find_spec("uvloop"))
    assert f"{len(selected) * loops * size_of_the_suite()} passed" in run.stdout


def size_of_the_suite() -> int:
    return sum(name.startswith("test_") for name in dir(EngineSuite))
