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
    FLAG_CHAIN,
    FLAG_IF_WELL,
    FLAG_LINK,
    IOVEC,
    OP_CHECKSUM,
    OP_CLOSE,
    OP_COPY,
    OP_NOP,
    OP_OPEN,
    OP_READ,
    OP_READV,
    OP_WRITE,
    OP_WRITEV,
    PENDING_RESULT,
    Requests,
    new_requests,
)
from ..errors import StoreClosedError
from ..native import crc32c
from ..types import U8

__all__ = ["PAGE_BYTES", "EngineSuite", "PageChains", "Scratch"]

PAGE_BYTES = 4096
_AT_FDCWD = -100
STATISTICS = {"name", "requests", "batches", "bytes", "in_flight"}


class Scratch:
    """A file and aligned memory of the same size, cut into pages.

    An engine that does not work on the machine's own files needs one that overrides `write`, `stored`, `truncate`,
    `open` and `close_descriptor`.

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
        self.path = path
        self.write(self.content.tobytes())
        self.fd = self.open(os.O_RDWR | (os.O_DIRECT if direct else 0))

    def close(self) -> None:
        """Close the file. The memory goes when nobody refers to it."""
        self.close_descriptor(self.fd)

    def write(self, content: bytes) -> None:
        """Make the file, with these bytes."""
        self.path.write_bytes(content)

    def stored(self) -> bytes:
        """Return what the file holds."""
        return self.path.read_bytes()

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""
        os.truncate(self.path, size)

    def open(self, flags: int) -> int:
        """Open the file once more."""
        return os.open(self.path, flags)

    def close_descriptor(self, fd: int) -> None:
        """Close what `open` returned."""
        os.close(fd)

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


class PageChains:
    """Chains over the file of a scratch: OPEN, READ a page, CHECKSUM, NOP, COPY, CLOSE.

    Attributes
    ----------
    path
        uint8: of the file, with a NUL at the end.
    target
        uint8, shape (pages, PAGE_BYTES): where each page is copied to.
    """

    def __init__(self, scratch: Scratch, direct: bool) -> None:
        self.scratch = scratch
        self.path = np.frombuffer(os.fsencode(scratch.path) + b"\0", dtype=np.uint8)
        self.target = np.zeros_like(scratch.memory)
        self._flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)

    def table(self, pages: npt.ArrayLike) -> Requests:
        """Return one chain for each of `pages`; shape (len(pages), 6)."""
        rows = np.asarray(pages, dtype=np.uint64) * np.uint64(PAGE_BYTES)
        table = new_requests(len(rows) * 6).reshape(len(rows), 6)
        table["opcode"] = [
            OP_OPEN,
            OP_READ | FLAG_LINK,
            OP_CHECKSUM | FLAG_IF_WELL,
            OP_NOP,
            OP_COPY | FLAG_IF_WELL,
            OP_CLOSE | FLAG_LINK,
        ]
        table["fd"] = _AT_FDCWD
        table["offset"][:, 0] = self._flags
        table["address"][:, 0] = self.path.ctypes.data
        table["offset"][:, 1] = rows
        table["address"][:, 1] = table["address"][:, 2] = table["offset"][:, 4] = self.scratch.address + rows
        table["address"][:, 4] = np.uint64(self.target.ctypes.data) + rows
        table["length"][:, [1, 2, 4]] = PAGE_BYTES
        return table

    def check(self, table: Requests, pages: npt.NDArray[Any]) -> None:
        """Fail unless every chain for one of `pages` did what it should. `table` may hold others."""
        of_table = table["offset"][:, 1] // np.uint64(PAGE_BYTES)
        results = table["result"][np.isin(of_table, pages)]
        sums = [crc32c(self.scratch.content[page]) for page in pages.tolist()]
        assert (results[:, 0] >= 0).all()
        assert (results[:, 1] == PAGE_BYTES).all()
        assert results[:, 2].tolist() == results[:, 4].tolist() == sums
        assert (results[:, [3, 5]] == 0).all()
        assert (self.target[pages] == self.scratch.content[pages]).all()


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

    def make_scratch(self, path: Path) -> Scratch:
        """Return 64 pages of file and memory; the suite closes it."""
        return Scratch(path, 64, direct=self.direct)

    def descriptors(self) -> list[str]:
        """Return what is open, by names that compare."""
        return sorted(os.listdir("/dev/fd"))

    @pytest_asyncio.fixture
    async def engine(self) -> AsyncIterator[Engine]:
        """One engine, closed after the test."""
        engine = await self.make_engine()
        yield engine
        await engine.aclose()

    @pytest.fixture
    def scratch(self, tmp_path: Path) -> Iterator[Scratch]:
        """Give 64 pages of file and memory."""
        scratch = self.make_scratch(tmp_path / "scratch")
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
        assert scratch.stored() == scratch.content.tobytes() + scratch.content[::-1].tobytes()

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
        assert scratch.stored()[8 * PAGE_BYTES : 16 * PAGE_BYTES] == scratch.content[:8].tobytes()

    async def test_short_only_at_the_end(self, engine: Engine, scratch: Scratch) -> None:
        """A read across the end brings what is there, one behind it nothing, neither is an error."""
        scratch.truncate(2 * PAGE_BYTES + 1000)
        scratch.memory[:] = 0xEE
        requests = scratch.batch(OP_READ, [0, 1, 2, 3])
        await engine.submit(requests)
        assert requests["result"].tolist() == [PAGE_BYTES, PAGE_BYTES, 1000, 0]
        assert (scratch.memory[2, :1000] == scratch.content[2, :1000]).all()
        assert (scratch.memory[3] == 0xEE).all()

    async def test_vectors_across_the_end(self, engine: Engine, scratch: Scratch) -> None:
        """The same for a list of ranges."""
        scratch.truncate(2 * PAGE_BYTES + 512)
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
        fd = scratch.open(os.O_RDONLY)
        try:
            requests = scratch.batch(OP_WRITE, [0])
            requests["fd"] = fd
            await engine.submit(requests)
        finally:
            scratch.close_descriptor(fd)
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

    async def test_a_chain_from_open_to_close(self, engine: Engine, scratch: Scratch) -> None:
        """Open, read, check, copy, close; 63 chains at once, each with a descriptor of its own."""
        chains = PageChains(scratch, self.direct)
        before = self.descriptors()
        table = chains.table(range(63))
        await engine.submit(table.reshape(-1), table.shape[1])
        chains.check(table, np.arange(63))
        assert (chains.target[63] == 0).all()
        assert self.descriptors() == before

    async def test_a_chain_runs_to_its_end(self, engine: Engine, scratch: Scratch) -> None:
        """A file that is missing or short fails its own chain, which copies nothing and closes what it opened."""
        chains = PageChains(scratch, self.direct)
        before = self.descriptors()
        table = chains.table(range(64))
        table["address"][5, 0] += len(chains.path) - 1  # the empty path
        table["offset"][9, 1] = 64 * PAGE_BYTES  # behind the end
        await engine.submit(table.reshape(-1), table.shape[1])
        canceled = -errno.ECANCELED
        assert table["result"][5].tolist() == [-errno.ENOENT, canceled, canceled, 0, canceled, canceled]
        assert table["result"][9, 1:].tolist() == [0, canceled, 0, canceled, 0]
        chains.check(table, np.delete(np.arange(64), [5, 9]))
        assert (chains.target[[5, 9]] == 0).all()
        assert self.descriptors() == before

    async def test_chains_are_apart(self, engine: Engine, scratch: Scratch) -> None:
        """A link finds no descriptor of another chain, and a condition no failure of another."""
        chains = PageChains(scratch, self.direct)
        table = chains.table([0, 1, 2])
        table["opcode"][[0, 2], 0] = OP_NOP
        table["opcode"][0, 1] = OP_NOP
        table["opcode"][0, 2] |= FLAG_CHAIN  # goes on from the nothing before it
        await engine.submit(table.reshape(-1), table.shape[1])
        assert table["result"][0, [0, 1, 3, 5]].tolist() == [0, 0, 0, -errno.EBADF]
        assert table["result"][2, 1:].tolist() == [-errno.EBADF, -errno.ECANCELED, 0, -errno.ECANCELED, -errno.EBADF]
        chains.check(table, np.array([1]))

    async def test_one_small_chain(self, engine: Engine, scratch: Scratch) -> None:
        """The same, one at a time: an engine may have a shorter way for it."""
        chains = PageChains(scratch, self.direct)
        for page in (7, 3):
            table = chains.table([page])
            await engine.submit(table.reshape(-1), table.shape[1])
            chains.check(table, np.array([page]))

    async def test_chains_and_single_requests(self, engine: Engine, scratch: Scratch) -> None:
        """Batches of different chunks in flight at once."""
        chains = PageChains(scratch, self.direct)
        tables = [chains.table(range(first, 64, 8)) for first in range(8)]
        singles = [scratch.batch(OP_READ, range(first, 64, 8)) for first in range(8)]
        futures: list[asyncio.Future[None]] = []
        for table, requests in zip(tables, singles, strict=True):
            futures += [engine.submit(table.reshape(-1), table.shape[1]), engine.submit(requests, 1 + len(futures))]
        await asyncio.gather(*futures)
        for first, (table, requests) in enumerate(zip(tables, singles, strict=True)):
            chains.check(table, np.arange(first, 64, 8))
            assert (requests["result"] == PAGE_BYTES).all()

    async def test_a_chunk_changes_nothing_for_data(self, engine: Engine, scratch: Scratch) -> None:
        """Transfers that need not wait for each other may; the results are the same."""
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
        before = self.descriptors()
        for _ in range(10):
            async with await self.make_engine() as engine:
                await engine.submit(scratch.batch(OP_READ, [0]))
        assert self.descriptors() == before

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
