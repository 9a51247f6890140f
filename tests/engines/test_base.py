"""The adapter between a context and the loop, with a context that does what the test says."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import numpy as np
import pytest

from ucm_async.engines.base import ContextEngine
from ucm_async.engines.pool import make_pool
from ucm_async.engines.requests import OP_CHECKSUM, OP_COPY, OP_MOVE, OP_READ, OP_STAT, new_requests


class Context:
    """Finishes what it is told to finish."""

    bytes = errors = 0

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)
        self.tokens: list[Any] = []
        self.finished: list[Any] = []
        self.closed_in: threading.Thread | None = None

    def submit(self, requests: Any, token: object, chunk: int = 1) -> None:
        self.tokens.append(token)

    def finish(self, *places: int) -> None:
        self.finished += [self.tokens[place] for place in places]
        os.write(self.write, b"!")

    def reap(self) -> list[Any]:
        if self.finished:
            os.read(self.read, 100)
        finished, self.finished = self.finished, []
        return finished

    def fileno(self) -> int:
        return self.read

    def close(self) -> list[Any]:
        self.closed_in = threading.current_thread()
        os.close(self.read)
        os.close(self.write)
        return []


class ManualEngine(ContextEngine):
    name = "manual"


async def test_futures_in_order_of_completion() -> None:
    context = Context()
    engine = ManualEngine(context)
    futures = [engine.submit(new_requests(1)) for _ in range(3)]
    context.finish(2, 0)
    await asyncio.gather(futures[0], futures[2])
    assert not futures[1].done()
    assert engine.in_flight == 1
    context.finish(1)
    await futures[1]
    await engine.aclose()


async def test_poll_takes_in_what_is_done_at_once() -> None:
    context = Context()
    engine = ManualEngine(context)
    future = engine.submit(new_requests(1))
    assert engine.poll() == 0
    context.finish(0)
    assert engine.poll() == 1
    assert future.done()
    await engine.aclose()


async def test_aclose_waits_for_the_last_one_and_frees_elsewhere() -> None:
    context = Context()
    engine = ManualEngine(context)
    futures = [engine.submit(new_requests(1)), engine.submit(new_requests(0))]
    closing = asyncio.create_task(engine.aclose())
    await asyncio.sleep(0)
    context.finish(0, 1)
    await closing
    assert all(future.done() for future in futures)
    assert context.closed_in not in (None, threading.current_thread())


async def test_an_empty_batch_is_waited_for_too() -> None:
    context = Context()
    engine = ManualEngine(context)
    future = engine.submit(new_requests(0))
    closing = asyncio.create_task(engine.aclose())
    for _ in range(5):
        await asyncio.sleep(0)
    assert context.closed_in is None
    context.finish(0)
    await closing
    assert future.done()


async def test_a_cancelled_close_goes_on() -> None:
    context = Context()
    engine = ManualEngine(context)
    engine.submit(new_requests(1))
    closing = asyncio.create_task(engine.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert context.closed_in is None
    context.finish(0)
    await engine.aclose()
    assert context.closed_in is not None


async def test_a_refused_batch_is_not_counted() -> None:
    context = Context()
    engine = ManualEngine(context)

    def refuse(*_: object) -> None:
        raise TypeError("no requests")

    context.submit = refuse  # type: ignore[method-assign]
    with pytest.raises(TypeError):
        engine.submit(new_requests(1))
    assert engine.in_flight == 0
    await engine.aclose()


async def test_a_wrong_array_is_refused() -> None:
    async with make_pool(1, "test") as pool:
        with pytest.raises((BufferError, ValueError)):
            pool.submit(new_requests(4)[::2])
        assert pool.statistics()["in_flight"] == 0


@pytest.mark.parametrize("times", [1, 20])
async def test_a_pool_counts_bytes_of_data_and_copies_only(tmp_path: Any, times: int) -> None:
    source, target = np.arange(1000, dtype=np.uint8), np.zeros(1000, dtype=np.uint8)
    path = np.frombuffer(bytes(tmp_path / "missing") + b"\0", dtype=np.uint8)
    (tmp_path / "file").write_bytes(b"x" * 50)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    requests = new_requests(5)
    requests["opcode"] = [OP_COPY, OP_CHECKSUM, OP_STAT, OP_MOVE, OP_READ]
    requests["address"] = [target.ctypes.data, source.ctypes.data, path.ctypes.data] + [target.ctypes.data] * 2
    requests["offset"] = [source.ctypes.data, 0, 0, source.ctypes.data, 0]
    requests["length"] = [1000, 1000, 0, 70, 50]
    requests["fd"] = [-1, -1, -1, -1, fd]
    requests = np.tile(requests, times)
    async with make_pool(2, "test") as pool:
        await pool.submit(requests, 5)
        statistics = pool.statistics()
    os.close(fd)
    assert requests["result"][0] == requests["result"][1] > 0
    assert statistics["bytes"] == 1120 * times
    assert statistics["errors"] == times
    assert statistics["depth"] == 2
    assert bytes(target[:50]) == b"x" * 50
