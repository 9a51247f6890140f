"""Conformance suite for engines: subclass it in a test module, say how to make one, and pytest runs it.

::

    class TestMyEngine(EngineSuite):
        async def make_engine(self):
            return MyEngine()
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import mmap
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio

from ..abc import Engine
from ..engines.requests import (
    IOVEC,
    OP_READ,
    OP_READV,
    OP_WRITE,
    OP_WRITEV,
    PENDING_RESULT,
    Requests,
    new_requests,
)
from ..errors import StoreClosedError
from ..types import U8

__all__ = ["PAGE_BYTES", "EngineSuite", "Scratch"]

PAGE_BYTES = 4096
STATISTICS = {"name", "requests", "batches", "bytes", "in_flight"}


class Scratch:
    """A file and aligned memory of the same size, cut into pages.

    Attributes
    ----------
    memory
        uint8, shape (pages, PAGE_BYTES).
    content
        What the file holds at first; the same shape.
    """

    def __init__(self, path: Path, pages: int, *, direct: bool) -> None:
        self._mapping = mmap.mmap(-1, pages * PAGE_BYTES)
        self.memory: U8 = np.frombuffer(self._mapping, dtype=np.uint8).reshape(pages, PAGE_BYTES)
        self.content: U8 = np.random.default_rng(pages).integers(0, 256, self.memory.shape, dtype=np.uint8)
        path.write_bytes(self.content.tobytes())
        self.path = path
        self.fd = os.open(path, os.O_RDWR | (os.O_DIRECT if direct else 0))

    def close(self) -> None:
        """Close the file. The memory goes when nobody refers to it."""
        os.close(self.fd)

    def batch(self, opcode: int, pages: npt.ArrayLike) -> Requests:
        """Return one request for each of `pages`, between that page of the file and of the memory."""
        rows = np.asarray(pages, dtype=np.uint64)
        requests = new_requests(len(rows))
        requests["opcode"] = opcode
        requests["fd"] = self.fd
        requests["offset"] = rows * PAGE_BYTES
        requests["address"] = self.address + rows * PAGE_BYTES
        requests["length"] = PAGE_BYTES
        return requests

    def vectored(self, opcode: int, pages: int) -> tuple[Requests, npt.NDArray[Any]]:
        """Return one request over all of `pages`, last page of the memory first, and its iovecs."""
        vectors = np.zeros(pages, dtype=IOVEC)
        vectors["address"] = self.address + np.arange(pages, dtype=np.uint64)[::-1] * np.uint64(PAGE_BYTES)
        vectors["length"] = PAGE_BYTES
        requests = self.batch(opcode, [0])
        requests["address"] = vectors.ctypes.data
        requests["length"] = pages
        return requests, vectors

    @property
    def address(self) -> np.uint64:
        """Where the memory starts."""
        return np.uint64(self.memory.ctypes.data)


class EngineSuite:
    """What every engine must do. Override `make_engine`, and what else differs.

    Attributes
    ----------
    direct
        Whether the suite opens its files with O_DIRECT.
    """

    direct: ClassVar[bool] = False

    async def make_engine(self) -> Engine:
        """Return a new engine on the running loop; the suite closes it."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def engine(self) -> AsyncIterator[Engine]:
        """One engine, closed after the test."""
        engine = await self.make_engine()
        yield engine
        await engine.aclose()

    @pytest.fixture
    def scratch(self, tmp_path: Path) -> Iterator[Scratch]:
        """Give 64 pages of file and memory."""
        scratch = Scratch(tmp_path / "scratch", 64, direct=self.direct)
        yield scratch
        scratch.close()

    async def test_reads_what_is_there(self, engine: Engine, scratch: Scratch) -> None:
        """Every page arrives where it belongs, in whatever order."""
        order = np.random.default_rng(0).permutation(64)
        requests = scratch.batch(OP_READ, order)
        assert await engine.submit(requests) is None  # type: ignore[func-returns-value]
        assert (requests["result"] == PAGE_BYTES).all()
        assert (scratch.memory == scratch.content).all()

    async def test_writes_what_was_given(self, engine: Engine, scratch: Scratch) -> None:
        """What is written is what the file holds; a file may grow."""
        scratch.memory[:] = scratch.content[::-1]
        requests = scratch.batch(OP_WRITE, range(64))
        requests["offset"] += 64 * PAGE_BYTES
        await engine.submit(requests)
        assert (requests["result"] == PAGE_BYTES).all()
        assert scratch.path.read_bytes() == scratch.content.tobytes() + scratch.content[::-1].tobytes()

    async def test_vectors(self, engine: Engine, scratch: Scratch) -> None:
        """One request moves several ranges of memory, in the order of the list."""
        requests, _vectors = scratch.vectored(OP_READV, 8)
        await engine.submit(requests)
        assert requests["result"].tolist() == [8 * PAGE_BYTES]
        assert (scratch.memory[:8] == scratch.content[7::-1]).all()
        requests, _vectors = scratch.vectored(OP_WRITEV, 8)
        requests["offset"] = 8 * PAGE_BYTES
        await engine.submit(requests)
        assert requests["result"].tolist() == [8 * PAGE_BYTES]
        assert scratch.path.read_bytes()[8 * PAGE_BYTES : 16 * PAGE_BYTES] == scratch.content[:8].tobytes()

    async def test_short_only_at_the_end(self, engine: Engine, scratch: Scratch) -> None:
        """A read across the end brings what is there, one behind it nothing, neither is an error."""
        os.truncate(scratch.path, 2 * PAGE_BYTES + 1000)
        scratch.memory[:] = 0xEE
        requests = scratch.batch(OP_READ, [0, 1, 2, 3])
        await engine.submit(requests)
        assert requests["result"].tolist() == [PAGE_BYTES, PAGE_BYTES, 1000, 0]
        assert (scratch.memory[2, :1000] == scratch.content[2, :1000]).all()
        assert (scratch.memory[3] == 0xEE).all()

    async def test_vectors_across_the_end(self, engine: Engine, scratch: Scratch) -> None:
        """The same for a list of ranges."""
        os.truncate(scratch.path, 2 * PAGE_BYTES + 512)
        requests, _vectors = scratch.vectored(OP_READV, 4)
        await engine.submit(requests)
        assert requests["result"].tolist() == [2 * PAGE_BYTES + 512]
        assert (scratch.memory[3] == scratch.content[0]).all()

    async def test_a_failure_is_a_result(self, engine: Engine, scratch: Scratch) -> None:
        """A bad descriptor fails its own request, and neither the future nor the others."""
        requests = scratch.batch(OP_READ, [0, 1, 2])
        requests["fd"][1] = -1
        await engine.submit(requests)
        assert requests["result"].tolist() == [PAGE_BYTES, -errno.EBADF, PAGE_BYTES]

    async def test_a_write_that_is_not_allowed(self, engine: Engine, scratch: Scratch) -> None:
        """A file opened for reading refuses writes, with the errno of the system call."""
        fd = os.open(scratch.path, os.O_RDONLY)
        try:
            requests = scratch.batch(OP_WRITE, [0])
            requests["fd"] = fd
            await engine.submit(requests)
        finally:
            os.close(fd)
        assert requests["result"].tolist() == [-errno.EBADF]

    async def test_unknown_opcode(self, engine: Engine, scratch: Scratch) -> None:
        """What nobody understands is invalid."""
        requests = scratch.batch(200, [0])
        await engine.submit(requests)
        assert requests["result"].tolist() == [-errno.EINVAL]

    async def test_results_are_pending_until_they_are_in(self, engine: Engine, scratch: Scratch) -> None:
        """``submit`` marks every result; whoever looks early sees that, or the final value."""
        requests = scratch.batch(OP_READ, range(64))
        requests["result"] = 77
        future = engine.submit(requests)
        assert set(requests["result"].tolist()) <= {PENDING_RESULT, PAGE_BYTES}
        await future
        assert (requests["result"] == PAGE_BYTES).all()

    async def test_empty_batch(self, engine: Engine) -> None:
        """Nothing to do is done, and no error."""
        await asyncio.wait_for(engine.submit(new_requests(0)), 10)

    async def test_more_requests_than_depth(self, engine: Engine, scratch: Scratch) -> None:
        """A thousand requests in one batch all run, however few the engine has in flight."""
        pages = np.arange(1000) % 64
        requests = scratch.batch(OP_READ, pages)
        await engine.submit(requests)
        assert (requests["result"] == PAGE_BYTES).all()
        assert (scratch.memory == scratch.content).all()

    async def test_many_batches_at_once(self, engine: Engine, scratch: Scratch) -> None:
        """Batches complete in any order; each future tells of its own batch only."""
        batches = [scratch.batch(OP_READ, [page]) for page in range(64)]
        futures = [engine.submit(requests) for requests in batches]
        for future, requests in zip(reversed(futures), reversed(batches), strict=True):
            await future
            assert requests["result"].tolist() == [PAGE_BYTES]
        assert (scratch.memory == scratch.content).all()

    async def test_a_chunk_changes_nothing_for_data(self, engine: Engine, scratch: Scratch) -> None:
        """`chunk` is about what must run in one thread; the results are the same."""
        requests = scratch.batch(OP_READ, range(63))
        await engine.submit(requests, 8)
        assert (requests["result"] == PAGE_BYTES).all()

    async def test_a_cancelled_future_loses_no_batch(self, engine: Engine, scratch: Scratch) -> None:
        """The kernel goes on: the results come, the counters count them, the engine closes."""
        requests = scratch.batch(OP_READ, range(64))
        engine.submit(requests).cancel()
        other = scratch.batch(OP_READ, [0])
        await engine.submit(other)
        await engine.aclose()
        assert (requests["result"] == PAGE_BYTES).all()
        assert engine.statistics()["in_flight"] == 0
        assert engine.statistics()["bytes"] == 65 * PAGE_BYTES

    async def test_a_cancelled_waiter(self, engine: Engine, scratch: Scratch) -> None:
        """A task that is cancelled while it awaits leaves the engine as it was."""
        requests = scratch.batch(OP_READ, range(64))
        future = engine.submit(requests)
        waiter = asyncio.ensure_future(asyncio.wait_for(future, 10))
        await asyncio.sleep(0)
        waiter.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # the batch may have been quicker
            await waiter
        await engine.aclose()
        assert (requests["result"] == PAGE_BYTES).all()

    async def test_a_dropped_batch_is_kept_alive(self, engine: Engine, scratch: Scratch) -> None:
        """The caller may forget the array and the future at once."""
        for page in range(64):
            engine.submit(scratch.batch(OP_READ, [page]))
            gc.collect(0)
        await engine.aclose()
        assert (scratch.memory == scratch.content).all()

    async def test_aclose_drains(self, engine: Engine, scratch: Scratch) -> None:
        """Closing waits for what was accepted; a second close is fine, and so are two at a time."""
        batches = [scratch.batch(OP_READ, range(64)) for _ in range(8)]
        futures = [engine.submit(requests) for requests in batches]
        await asyncio.gather(engine.aclose(), engine.aclose())
        assert all(future.done() for future in futures)
        assert all((requests["result"] == PAGE_BYTES).all() for requests in batches)
        await engine.aclose()

    async def test_closed(self, engine: Engine, scratch: Scratch) -> None:
        """A closed engine takes nothing."""
        await engine.aclose()
        with pytest.raises(StoreClosedError):
            engine.submit(scratch.batch(OP_READ, [0]))
        assert engine.statistics()["requests"] == 0

    async def test_two_engines_on_one_loop(self, engine: Engine, scratch: Scratch) -> None:
        """They do not get in each other's way."""
        async with await self.make_engine() as other:
            first, second = scratch.batch(OP_READ, range(32)), scratch.batch(OP_READ, range(32, 64))
            await asyncio.gather(engine.submit(first), other.submit(second))
        assert (scratch.memory == scratch.content).all()

    async def test_no_descriptor_is_left(self, scratch: Scratch) -> None:
        """Ten engines that came and went leave no descriptor behind."""
        await (await self.make_engine()).aclose()  # whatever the loop opens once
        before = _descriptors()
        for _ in range(10):
            async with await self.make_engine() as engine:
                await engine.submit(scratch.batch(OP_READ, [0]))
        assert _descriptors() == before

    async def test_statistics(self, engine: Engine, scratch: Scratch) -> None:
        """The counters that a stage relies on are there, plain, and right."""
        assert set(engine.statistics()) >= STATISTICS
        await engine.submit(scratch.batch(OP_READ, range(10)))
        await engine.submit(scratch.batch(OP_READ, [1]))
        statistics = engine.statistics()
        assert statistics["requests"] == 11
        assert statistics["batches"] == 2
        assert statistics["bytes"] == 11 * PAGE_BYTES
        assert statistics["in_flight"] == 0
        assert statistics["name"] == engine.name


def _descriptors() -> list[str]:
    return sorted(os.listdir("/dev/fd"))
