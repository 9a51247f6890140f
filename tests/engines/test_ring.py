"""What a ring engine gives to its driver, and what it does itself."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.engines.aio import AioEngine
from ucm_async.engines.probe import make_engine, probe_engines
from ucm_async.engines.requests import (
    FLAG_CACHED,
    FLAG_IF_WELL,
    FLAG_LINK,
    IOVEC,
    OP_CHECKSUM,
    OP_CLOSE,
    OP_COPY,
    OP_FDATASYNC,
    OP_MOVE,
    OP_NOP,
    OP_OPEN,
    OP_READ,
    OP_READV,
    OP_RENAME,
    OP_STAT,
    OP_WRITE,
    OP_WRITEV,
    new_requests,
)
from ucm_async.engines.ring import HELPERS, SMALL_BYTES_MAX, SMALL_CHAINS_MAX, SMALL_REQUESTS_MAX, is_small
from ucm_async.engines.uring import UringEngine
from ucm_async.testing.engines import PAGE_BYTES, Scratch

KIB = 1024
OPEN_CACHED = OP_OPEN | FLAG_CACHED
LOAD = [OPEN_CACHED, OP_READ | FLAG_LINK, OP_CHECKSUM | FLAG_IF_WELL, OP_COPY | FLAG_IF_WELL, OP_CLOSE | FLAG_LINK]


def batch(opcodes: list[int], length: int = 0) -> Any:
    requests = new_requests(len(opcodes))
    requests["opcode"] = opcodes
    requests["length"] = length
    return requests


def test_a_small_load() -> None:
    assert is_small(batch(LOAD, 64 * KIB), 5)
    assert is_small(batch(LOAD * 2, 64 * KIB), 5)
    assert is_small(batch([*LOAD, OP_NOP, OP_NOP], 128 * KIB), 7)


def test_too_many_bytes() -> None:
    assert not is_small(batch(LOAD, 128 * KIB + 1), 5)
    assert not is_small(batch(LOAD * 2, 65 * KIB), 5)
    assert not is_small(batch([OP_READ], 1 << 20), 1)
    assert not is_small(batch([OP_COPY, OP_NOP], 1 << 20), 2)
    assert not is_small(batch([OP_MOVE, OP_NOP], 1 << 20), 2)
    assert is_small(batch([OP_MOVE, OP_NOP], 128 * KIB), 2)
    assert not is_small(batch([OP_CHECKSUM] * 3, 100 * KIB), 3)


def test_too_many_chains_or_requests() -> None:
    assert not is_small(batch(LOAD * 3, KIB), 5)
    assert is_small(batch([OP_READ] * 2, KIB), 1)
    assert not is_small(batch([OP_READ] * 3, KIB), 1)
    assert not is_small(batch([OP_NOP] * (SMALL_REQUESTS_MAX + 1)), 1000)


@pytest.mark.parametrize("opcode", [OP_OPEN, OP_FDATASYNC, OP_RENAME, OP_STAT, 99, OP_OPEN | FLAG_IF_WELL])
def test_what_may_wait_for_a_disk(opcode: int) -> None:
    assert not is_small(batch([opcode, OP_READ | FLAG_LINK], KIB), 2)


def test_writes_where_they_wait() -> None:
    for opcode in (OP_WRITE, OP_WRITEV | FLAG_LINK):
        assert is_small(batch([opcode, OP_NOP]), 2)
        assert not is_small(batch([opcode, OP_NOP]), 2, writes=False)


@pytest.mark.parametrize("opcode", [OP_NOP, OP_COPY, OP_READ | FLAG_LINK, OPEN_CACHED])
def test_without_a_chain_only_transfers(opcode: int) -> None:
    assert not is_small(batch([opcode]), 1)
    assert is_small(batch([opcode]), 2)


def test_vectors_count_with_their_bytes() -> None:
    vectors = np.zeros(65, IOVEC)
    vectors["length"][:64] = 2 * KIB
    requests = batch([OP_READV], 64)
    requests["address"] = vectors.ctypes.data
    assert is_small(requests, 1)
    vectors["length"][63] += 1
    assert not is_small(requests, 1)
    vectors["length"] = 0
    requests["length"] = 65  # so many are no short list any more
    assert not is_small(requests, 1)


@given(st.lists(st.sampled_from([OP_READ, OP_COPY, OP_NOP, OP_CLOSE]), max_size=40), st.integers(1, 10))
def test_what_is_small_is_bounded(opcodes: list[int], chunk: int) -> None:
    requests = batch(opcodes, 16 * KIB)
    if is_small(requests, chunk):
        assert len(opcodes) <= SMALL_CHAINS_MAX * chunk
        assert opcodes.count(OP_READ) * 16 * KIB <= SMALL_BYTES_MAX
        assert opcodes.count(OP_COPY) * 16 * KIB <= 2 * SMALL_BYTES_MAX


@pytest_asyncio.fixture(params=["aio", "uring"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    unavailable = {report.name: report.reason for report in probe_engines() if not report.available}
    if request.param in unavailable:
        pytest.skip(unavailable[request.param])
    made = AioEngine(16) if request.param == "aio" else UringEngine(16)
    yield made
    await made.aclose()


@pytest.fixture
def scratch(tmp_path: Path) -> Any:
    made = Scratch(tmp_path / "scratch", 64, direct=True)
    yield made
    made.close()


def load(scratch: Scratch, page: int) -> tuple[Any, Any]:
    """The chain of a page: open, read, checksum, copy back into its own memory, close."""
    path = ctypes.create_string_buffer(os.fsencode(scratch.path))
    requests = batch(LOAD, PAGE_BYTES)
    requests["fd"] = -100
    requests["address"] = scratch.address + np.uint64(page * PAGE_BYTES)
    requests["offset"] = [os.O_RDONLY | os.O_DIRECT, page * PAGE_BYTES, 0, 0, 0]
    requests["address"][0] = ctypes.addressof(path)
    requests["length"][0] = 0
    requests["opcode"][3] = OP_CHECKSUM | FLAG_IF_WELL
    return requests, path


async def test_small_batches_go_the_direct_way(engine: Any, scratch: Scratch) -> None:
    requests, path = load(scratch, 3)
    await engine.submit(requests, 5)
    if requests["result"][0] < 0:
        pytest.skip("this kernel or file system cannot open from its caches")
    assert requests["result"][1:].tolist()[0] == PAGE_BYTES
    assert (scratch.memory[3] == scratch.content[3]).all()
    await engine.submit(scratch.batch(OP_READ, [0]))
    assert (engine.statistics()["direct"], engine.statistics()["driven"]) == (2, 0)
    await engine.submit(scratch.batch(OP_READ, range(64)))
    assert (engine.statistics()["direct"], engine.statistics()["driven"]) == (2, 1)
    assert engine.statistics()["helpers"] == HELPERS
    assert (scratch.memory == scratch.content).all()
    assert path


async def test_writes_of_aio_never_run_on_the_loop(engine: Any, scratch: Scratch) -> None:
    scratch.memory[:] = 7
    await engine.submit(scratch.batch(OP_WRITE, [0]))
    assert engine.statistics()["direct"] == (engine.name == "uring")
    assert scratch.path.read_bytes()[:PAGE_BYTES] == bytes([7]) * PAGE_BYTES


async def test_submit_small_calls_back(engine: Any, scratch: Scratch) -> None:
    requests, path = load(scratch, 5)
    done = asyncio.Event()
    assert engine.submit_small(requests, 5, done.set)
    await asyncio.wait_for(done.wait(), 10)
    assert requests["result"][-1] <= 0
    assert engine.statistics()["direct"] == 1
    assert engine.statistics()["bytes"] == PAGE_BYTES
    assert engine.statistics()["in_flight"] == 0
    assert path
    await engine.aclose()
    assert not engine.submit_small(requests, 5, done.set)


async def test_many_small_ones_at_once(engine: Any, scratch: Scratch) -> None:
    """What exceeds the direct way's depth goes to the driver; everything comes back."""
    loads = [load(scratch, i % 64) for i in range(200)]
    await asyncio.gather(*(engine.submit(requests, 5) for requests, _ in loads))
    if all(requests["result"][0] >= 0 for requests, _ in loads):
        assert (scratch.memory == scratch.content).all()
    assert all(requests["result"][-1] <= 0 for requests, _ in loads)
    statistics = engine.statistics()
    assert statistics["direct"] + statistics["driven"] == statistics["batches"] == 200
    assert statistics["in_flight"] == 0


@pytest.mark.parametrize("name", ["aio", "uring", "auto"])
async def test_helpers_are_as_many_as_asked_for(name: str) -> None:
    async with make_engine(name, direct=True, depth=8, max_bytes=0, threads=1, helpers=3) as engine:
        statistics = engine.statistics()
        if statistics["name"] == "psync":
            pytest.skip(statistics["why"])
        assert statistics.get("helpers", statistics.get(statistics.get("ring"), {}).get("helpers")) == 3
