"""Who runs a batch: the pure policies of auto and psync, and what auto makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.engines.auto import AutoEngine, pick
from ucm_async.engines.probe import probe_engines
from ucm_async.engines.psync import JOBS_PER_THREAD, job_size
from ucm_async.engines.requests import (
    FLAG_LINK,
    OP_CLOSE,
    OP_COPY,
    OP_FALLOCATE,
    OP_OPEN,
    OP_READ,
    OP_READV,
    OP_WRITE,
    OP_WRITEV,
    new_requests,
)
from ucm_async.testing.engines import Scratch


def batch(*opcodes: int):
    requests = new_requests(len(opcodes))
    requests["opcode"] = opcodes
    return requests


@pytest.mark.parametrize("ring", ["uring", "aio"])
@pytest.mark.parametrize("n", [0, 1, 2, 64])
def test_reads_go_to_the_ring_however_many(ring: str, n: int) -> None:
    assert pick(batch(*[OP_READ] * n), 1, ring) == (ring, "data")
    assert pick(batch(*[OP_READV] * n), 1, ring) == (ring, "data")


@pytest.mark.parametrize("opcode", [OP_WRITE, OP_WRITEV])
def test_writes_block_io_submit_only(opcode: int) -> None:
    requests = batch(OP_READ, opcode)
    assert pick(requests, 1, "uring")[0] == "uring"
    assert pick(requests, 1, "aio") == ("psync", "writes may extend files")


def test_files_that_are_allocated_first_do_not_block_it() -> None:
    dump = [OP_OPEN, OP_FALLOCATE | FLAG_LINK, OP_WRITE | FLAG_LINK, OP_CLOSE | FLAG_LINK]
    assert pick(batch(*dump), 4, "aio") == ("aio", "chains")
    assert pick(batch(*dump, *dump), 4, "uring") == ("uring", "chains")
    del dump[1]
    assert pick(batch(*dump), 3, "aio") == ("psync", "writes may extend files")


@pytest.mark.parametrize("ring", ["uring", "aio"])
def test_a_ring_takes_chains_of_anything(ring: str) -> None:
    chain = batch(OP_OPEN, OP_READ | FLAG_LINK, OP_COPY, OP_CLOSE | FLAG_LINK)
    assert pick(chain, 4, ring) == (ring, "chains")
    assert pick(chain, 1, ring) == (ring, "data")


async def test_auto_on_aio_counts_what_it_picked(tmp_path: Path) -> None:
    # Imported here: without the extension there is nothing to test.
    from ucm_async.engines.aio import AioEngine

    unavailable = {report.name: report.reason for report in probe_engines() if not report.available}
    if "aio" in unavailable:
        pytest.skip(unavailable["aio"])
    scratch = Scratch(tmp_path / "scratch", 4, direct=True)
    async with AutoEngine(AioEngine(8), threads=1) as engine:
        assert "psync" not in engine.statistics()  # no threads before they are needed
        await engine.submit(scratch.batch(OP_READ, range(4)))
        await engine.submit(scratch.batch(OP_WRITE, range(3)))
        statistics = engine.statistics()
    assert statistics["picked"] == {"aio: data": 1, "psync: writes may extend files": 1}
    assert statistics["aio"]["requests"] == 4
    assert statistics["psync"]["requests"] == 3
    assert statistics["requests"] == 7
    assert scratch.path.read_bytes() == scratch.content.tobytes()
    scratch.close()


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_jobs(requests: int, threads: int) -> None:
    size = job_size(requests, 1, threads)
    assert size >= 1
    assert -(-requests // size) <= threads * JOBS_PER_THREAD


def test_a_chain_is_a_job() -> None:
    assert job_size(10_000, 7, 1) == 7


def test_a_small_batch_uses_every_thread() -> None:
    assert job_size(8, 1, 8) == 1
    assert job_size(1000, 1, 8) == 32
