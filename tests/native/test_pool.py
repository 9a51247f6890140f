"""What only the thread pool can do: files, links, chains, copies."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async.engines.requests import (
    FLAG_CHAIN,
    FLAG_LINK,
    OP_CHECKSUM,
    OP_CLOSE,
    OP_COPY,
    OP_OPEN,
    OP_READ,
    OP_STAT,
    PENDING_RESULT,
    new_requests,
)

from .tools import U8, address_of, c_path, join, native, noise, readable, reap, request, results, run


@pytest.fixture(params=[1, 4])
def pool(request: pytest.FixtureRequest) -> Any:
    made = native.ThreadPool(request.param)
    yield made
    made.close()


def open_read_close(directory: int, address: int, memory: U8, length: int) -> Any:
    return join(
        request(OP_OPEN, fd=directory, address=address, offset=os.O_RDONLY),
        request(OP_READ | FLAG_LINK, address=address_of(memory), length=length),
        request(OP_CLOSE | FLAG_LINK),
    )


def test_jobs_stay_together(pool: Any, tmp_path: Path) -> None:
    """A hundred files, three linked requests each, several threads: each job reads its own file."""
    directory = os.open(tmp_path, os.O_RDONLY)
    memory = np.zeros((100, 500), np.uint8)
    kept, jobs = [], []
    for i in range(100):
        (tmp_path / str(i)).write_bytes(noise(500, i).tobytes())
        buffer, address = c_path(str(i))
        kept.append(buffer)
        jobs.append(open_read_close(directory, address, memory[i], 500))
    requests = join(*jobs)
    pool.submit(requests, "token", 3)
    assert reap(pool) == ["token"]
    got = np.array(results(requests)).reshape(-1, 3)
    assert (got[:, 0] >= 0).all() and (got[:, 1] == 500).all() and (got[:, 2] == 0).all()
    for i in range(100):
        assert np.array_equal(memory[i], noise(500, i))
    os.close(directory)


def test_a_link_does_not_leave_its_chunk(pool: Any, path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY)
    _kept, address = c_path("file")
    requests = open_read_close(directory, address, np.zeros(10, np.uint8), 10)
    pool.submit(requests, None, 1)
    reap(pool)
    fd, *rest = results(requests)
    assert rest == [-errno.EBADF, -errno.EBADF]
    os.close(fd)
    os.close(directory)


def test_the_last_chunk_may_be_shorter(pool: Any) -> None:
    data = noise(1000)
    requests = new_requests(10)
    requests["opcode"] = OP_CHECKSUM
    requests["opcode"][1::3] |= FLAG_CHAIN
    requests["opcode"][2::3] |= FLAG_CHAIN
    requests["address"] = address_of(data) + np.arange(10) * 100
    requests["length"] = 100
    pool.submit(requests, None, 3)
    reap(pool)
    for first in range(0, 10, 3):
        last = min(first + 2, 9)
        assert results(requests)[last] == native.crc32c(data[first * 100 : (last + 1) * 100])


def test_a_chunk_larger_than_the_batch(pool: Any) -> None:
    requests = request(OP_CHECKSUM)
    pool.submit(requests, "token", 10**9)
    assert reap(pool) == ["token"]


def test_copies_of_several_threads(pool: Any) -> None:
    source = noise(4 << 20)
    target = np.zeros_like(source)
    requests = new_requests(64)
    requests["opcode"] = OP_COPY
    requests["offset"] = address_of(source) + np.arange(64, dtype=np.uint64) * 65536
    requests["address"] = address_of(target) + np.arange(64, dtype=np.uint64) * 65536
    requests["length"] = 65536
    pool.submit(requests, None, 5)
    reap(pool)
    assert np.array_equal(source, target)
    assert results(requests) == [native.crc32c(source[i * 65536 : (i + 1) * 65536]) for i in range(64)]


def fifo_job(path: Path) -> tuple[Any, Any]:
    """A request that stays with its thread until somebody opens `path` for writing."""
    os.mkfifo(path)
    kept, address = c_path(str(path))
    return kept, request(OP_OPEN, fd=-100, address=address, offset=os.O_RDONLY)


def test_a_stuck_thread_does_not_hold_up_the_others(tmp_path: Path) -> None:
    pool = native.ThreadPool(2)
    _kept, stuck = fifo_job(tmp_path / "fifo")
    pool.submit(stuck, "stuck")
    for i in range(50):
        pool.submit(request(OP_CHECKSUM), i)
    assert sorted(reap(pool, 50)) == list(range(50))
    assert results(stuck) == [PENDING_RESULT]
    assert pool.pending == 1
    os.close(os.open(tmp_path / "fifo", os.O_WRONLY))
    assert reap(pool) == ["stuck"]
    os.close(results(stuck)[0])
    assert pool.pending == 0
    pool.close()


def test_close_does_not_hold_the_gil(tmp_path: Path) -> None:
    pool = native.ThreadPool(1)
    _kept, stuck = fifo_job(tmp_path / "fifo")
    pool.submit(stuck, "stuck")

    def unblock() -> None:
        time.sleep(0.05)
        os.close(os.open(tmp_path / "fifo", os.O_WRONLY))

    helper = threading.Thread(target=unblock)
    helper.start()
    assert pool.close() == ["stuck"]
    helper.join()
    os.close(results(stuck)[0])


def test_a_second_thread_is_told_while_close_waits(tmp_path: Path) -> None:
    pool = native.ThreadPool(1)
    _kept, stuck = fifo_job(tmp_path / "fifo")
    pool.submit(stuck, "stuck")
    tokens: list[Any] = []
    closer = threading.Thread(target=lambda: tokens.extend(pool.close()))
    closer.start()
    refused = 0
    while not refused:
        try:
            pool.reap()
        except RuntimeError as error:
            assert "another thread" in str(error)
            refused += 1
    for call in (lambda: pool.submit(request(OP_STAT), None), pool.close):
        with pytest.raises(RuntimeError, match="another thread"):
            call()
    os.close(os.open(tmp_path / "fifo", os.O_WRONLY))
    closer.join()
    assert tokens == ["stuck"]
    os.close(results(stuck)[0])


def test_one_signal_is_enough_for_many_batches() -> None:
    pool = native.ThreadPool(1)
    for i in range(100):
        pool.submit(request(OP_CHECKSUM), i)
    got: list[int] = []
    while len(got) < 100:
        assert readable(pool, 10)
        got += pool.reap()
    assert got == list(range(100))  # one thread keeps the order
    pool.close()


def test_threads_are_named_and_end_with_the_pool() -> None:
    def names() -> list[str]:
        tasks = Path("/proc/self/task")
        return [(task / "comm").read_text().strip() for task in tasks.iterdir()]

    pool = native.ThreadPool(3, name="ucm-test-name")
    assert sorted(name for name in names() if name.startswith("ucm-test")) == [f"ucm-test-n-{i}" for i in range(3)]
    assert pool.threads == 3
    pool.close()
    assert not [name for name in names() if name.startswith("ucm-test")]


def test_signals_are_for_the_threads_of_python() -> None:
    pool = native.ThreadPool(1, name="deaf")
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().startswith("deaf"):
            status = (task / "status").read_text()
            blocked = next(line for line in status.splitlines() if line.startswith("SigBlk"))
            assert int(blocked.split()[1], 16) & (1 << 1)  # SIGINT
            break
    else:
        raise AssertionError("no such thread")
    pool.close()


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_threads_out_of_range(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        native.ThreadPool(threads)


def test_wrong_chunks(pool: Any) -> None:
    for chunk in (0, -1):
        with pytest.raises(ValueError, match="chunk"):
            pool.submit(new_requests(1), None, chunk)
    with pytest.raises(TypeError):
        pool.submit(new_requests(1), None, 1.5)
    with pytest.raises(TypeError):
        pool.submit(new_requests(1), None, 1, 2)
    assert run(pool, request(OP_CHECKSUM)) == [0]
