"""Each fault is injected, and nothing else changes."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from ucm_async.engines.pool import make_pool
from ucm_async.engines.psync import PsyncEngine
from ucm_async.engines.requests import (
    FLAG_IF_WELL,
    FLAG_LINK,
    OP_CLOSE,
    OP_NOP,
    OP_OPEN,
    OP_READ,
    OP_READV,
    OP_STAT,
    OP_WRITE,
    PENDING_RESULT,
    new_requests,
)
from ucm_async.errors import StoreClosedError
from ucm_async.testing.engines import PAGE_BYTES, Scratch
from ucm_async.testing.faults import Fault, FaultyEngine, scripted, seeded

POISON = 0xEE


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    scratch = Scratch(tmp_path / "scratch", 8, direct=False)
    scratch.memory[:] = POISON
    yield scratch
    scratch.close()


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[FaultyEngine]:
    async with FaultyEngine(PsyncEngine(2), scripted({})) as engine:
        yield engine


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_error(engine: FaultyEngine, scratch: Scratch, number: int) -> None:
    engine.plan = scripted({2: Fault("error", number)})
    requests = scratch.batch(OP_READ, range(4))
    await engine.submit(requests)
    assert requests["result"].tolist() == [PAGE_BYTES, PAGE_BYTES, -number, PAGE_BYTES]
    assert (scratch.memory[2] == POISON).all()  # withheld
    assert (scratch.memory[3] == scratch.content[3]).all()
    assert engine.statistics()["injected"] == {"error": 1}


async def test_a_write_that_fails_writes_nothing(engine: FaultyEngine, scratch: Scratch) -> None:
    engine.plan = scripted({0: Fault("error", errno.ENOSPC)})
    requests = scratch.batch(OP_WRITE, [0])
    await engine.submit(requests)
    assert requests["result"].tolist() == [-errno.ENOSPC]
    assert scratch.path.read_bytes() == scratch.content.tobytes()


async def test_short_read(engine: FaultyEngine, scratch: Scratch) -> None:
    engine.plan = scripted({0: Fault("short")})
    requests = scratch.batch(OP_READ, [0])
    requests["length"] = 4 * PAGE_BYTES
    await engine.submit(requests)
    assert requests["result"].tolist() == [2 * PAGE_BYTES]
    assert requests["length"].tolist() == [4 * PAGE_BYTES]
    assert (scratch.memory[:2] == scratch.content[:2]).all()
    assert (scratch.memory[2:] == POISON).all()


async def test_short_vectored_read(engine: FaultyEngine, scratch: Scratch) -> None:
    engine.plan = scripted({0: Fault("short")})
    requests, vectors = scratch.vectored(OP_READV, 6)
    before = vectors.copy()
    await engine.submit(requests)
    assert requests["result"].tolist() == [3 * PAGE_BYTES]
    assert (vectors == before).all()
    assert (scratch.memory[3:6] == scratch.content[2::-1]).all()
    assert (scratch.memory[:3] == POISON).all()


async def test_a_short_page_is_nothing(engine: FaultyEngine, scratch: Scratch) -> None:
    engine.plan = scripted({0: Fault("short"), 1: Fault("short")})
    vectored, _vectors = scratch.vectored(OP_READV, 1)
    requests = np.concatenate([scratch.batch(OP_READ, [0]), vectored])
    await engine.submit(requests)
    assert requests["result"].tolist() == [0, 0]
    assert (scratch.memory == POISON).all()


async def test_delay(engine: FaultyEngine, scratch: Scratch) -> None:
    engine.plan = scripted({1: Fault("delay", delay_s=0.05)})
    requests = scratch.batch(OP_READ, range(2))
    future = engine.submit(requests)
    while requests["result"][0] == PENDING_RESULT:
        await asyncio.sleep(0.001)
    assert requests["result"][1] == PENDING_RESULT
    assert not future.done()
    await future
    assert (requests["result"] == PAGE_BYTES).all()


async def test_hang_until_released(engine: FaultyEngine, scratch: Scratch) -> None:
    engine.plan = scripted({1: Fault("hang")})
    requests = scratch.batch(OP_READ, range(3))
    future = engine.submit(requests)
    while (requests["result"] == PENDING_RESULT).sum() > 1:
        await asyncio.sleep(0.001)
    other = scratch.batch(OP_READ, [5])
    await engine.submit(other)  # others pass
    assert requests["result"].tolist() == [PAGE_BYTES, PENDING_RESULT, PAGE_BYTES]
    assert (scratch.memory[1] == POISON).all()
    assert engine.hanging == engine.statistics()["hanging"] == 1
    engine.release()
    await future
    assert (scratch.memory[1] == scratch.content[1]).all()
    assert engine.hanging == 0


async def test_hang_again_after_a_release(engine: FaultyEngine, scratch: Scratch) -> None:
    engine.plan = lambda _, __: Fault("hang")
    engine.release()
    future = engine.submit(scratch.batch(OP_READ, [0]))
    while not engine.hanging:
        await asyncio.sleep(0)
    assert not future.done()
    engine.release()
    await future


async def test_a_late_write_to_memory_after_cancellation(engine: FaultyEngine, scratch: Scratch) -> None:
    """What tests of buffer ownership rely on: the bytes come although nobody waits any more."""
    engine.plan = scripted({0: Fault("hang")})
    engine.submit(scratch.batch(OP_READ, [0])).cancel()
    await asyncio.sleep(0.01)
    assert (scratch.memory[0] == POISON).all()
    await engine.aclose()
    assert (scratch.memory[0] == scratch.content[0]).all()


async def test_aclose_lets_go_what_was_submitted_just_now(engine: FaultyEngine, scratch: Scratch) -> None:
    engine.plan = lambda _, __: Fault("hang")
    requests = scratch.batch(OP_READ, range(3))
    future = engine.submit(requests)
    await engine.aclose()
    assert future.done()
    assert (requests["result"] == PAGE_BYTES).all()
    with pytest.raises(StoreClosedError):
        engine.submit(requests)


async def test_an_open_that_fails_takes_its_links_along(scratch: Scratch) -> None:
    path = np.frombuffer(bytes(scratch.path) + b"\0", dtype=np.uint8)
    requests = new_requests(6)
    requests["opcode"] = [OP_OPEN, OP_READ | FLAG_LINK, OP_CLOSE | FLAG_LINK] * 2
    requests["address"][[0, 3]] = path.ctypes.data
    requests["address"][[1, 4]] = scratch.address
    requests["length"][[1, 4]] = PAGE_BYTES
    async with FaultyEngine(make_pool(2, "test"), scripted({0: Fault("error", errno.EMFILE)})) as engine:
        await engine.submit(requests, 3)
    assert requests["result"][:3].tolist() == [-errno.EMFILE, -errno.ECANCELED, -errno.ECANCELED]
    assert requests["result"][4] == PAGE_BYTES


async def test_a_short_read_stops_what_is_guarded_behind_it(scratch: Scratch) -> None:
    requests = np.concatenate([scratch.batch(OP_READ, [page] * 3) for page in (0, 1)])
    requests["length"] = 2 * PAGE_BYTES
    for first in (0, 3):
        requests["opcode"][first + 1 : first + 3] = [OP_NOP, OP_READ | FLAG_IF_WELL]
    async with FaultyEngine(make_pool(2, "test"), scripted({0: Fault("short")})) as engine:
        await engine.submit(requests, 3)
    whole = 2 * PAGE_BYTES
    assert requests["result"].tolist() == [PAGE_BYTES, 0, -errno.ECANCELED, whole, 0, whole]


async def test_short_makes_no_sense_elsewhere(scratch: Scratch) -> None:
    """A mistake of the test, so it gets to know."""
    async with FaultyEngine(make_pool(1, "test"), scripted({0: Fault("short")})) as engine:
        with pytest.raises(ValueError, match="needs a data request"):
            await engine.submit(scratch.batch(OP_STAT, [0]))


def test_a_seed_reproduces_a_run() -> None:
    rates = {Fault("error"): 0.1, Fault("hang"): 0.2}
    runs = []
    for seed in (7, 7, 8):
        plan = seeded(seed, rates)
        runs.append([plan(i, None) for i in range(1000)])
    assert runs[0] == runs[1] != runs[2]
    assert 50 < runs[0].count(Fault("error")) < 150
    assert 150 < runs[0].count(Fault("hang")) < 250
