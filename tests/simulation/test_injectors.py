"""Every injector injects what it says, and with a rate of zero nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest

from ucm_async.engines import requests as rq
from ucm_async.testing.simulation.disk import OpenFile, SimulatedDisk
from ucm_async.testing.simulation.faults import KINDS, FaultRates, Faults
from ucm_async.testing.simulation.process import SimulatedProcess

SIZE = 8192
ALWAYS = {name: FaultRates(**{name: 1.0}) for name in KINDS}
PATH = np.frombuffer(b"/file\0", dtype=np.uint8)


class Bench:
    """A process with one open file, and memory for it."""

    def __init__(self, seed: int = 0) -> None:
        self.disk = SimulatedDisk(Faults(random.Random(seed)))
        self.process = SimulatedProcess(self.disk)
        self.engine = self.process.make_engine("any", 4)
        self.fd = self.process.open(Path("/file"), os.O_RDWR | os.O_CREAT)
        self.memory = np.random.default_rng(seed).integers(1, 256, SIZE, dtype=np.uint8)
        self.old = bytes(self.memory[::-1])
        self.disk.write(self._opened(), 0, self.old)
        self.disk.sync(self._opened())

    def _opened(self) -> OpenFile:
        opened = self.process.opened(self.fd)
        assert opened is not None
        return opened

    @property
    def content(self) -> bytes:
        return bytes(self.disk.find(self.disk.root, "/file").content)

    async def run(self, opcode: int, rates: FaultRates | None = None) -> int:
        request = rq.new_requests(1)
        request["opcode"] = opcode
        request["fd"] = self.fd if opcode <= rq.OP_FDATASYNC else -100  # AT_FDCWD
        request["address"] = self.memory.ctypes.data if opcode <= rq.OP_WRITEV else PATH.ctypes.data
        request["length"] = SIZE if opcode <= rq.OP_WRITEV else 0
        if rates is not None:
            self.disk.faults.rates = rates
        await self.engine.submit(request)
        self.disk.faults.calm()
        return int(request["result"][0])


async def test_calm() -> None:
    bench = Bench()
    assert await bench.run(rq.OP_WRITE) == SIZE
    assert bench.content == bytes(bench.memory)
    assert await bench.run(rq.OP_FDATASYNC) == 0
    assert await bench.run(rq.OP_STAT) == SIZE
    bench.memory[:] = 0
    assert await bench.run(rq.OP_READ) == SIZE
    assert bytes(bench.memory) == bench.content
    assert not bench.disk.faults.struck
    assert bench.disk.lies == 0


async def test_slow() -> None:
    bench = Bench()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await bench.run(rq.OP_READ)
    quick = loop.time() - began
    began = loop.time()
    await bench.run(rq.OP_READ, ALWAYS["slow"])
    assert loop.time() - began > 10 * quick


async def test_short_read() -> None:
    bench = Bench()
    result = await bench.run(rq.OP_READ, ALWAYS["short_read"])
    assert 0 <= result < SIZE and result % 512 == 0


async def test_short_write() -> None:
    bench = Bench()
    result = await bench.run(rq.OP_WRITE, ALWAYS["short_write"])
    assert 0 <= result < SIZE
    assert bench.content == bytes(bench.memory[:result]) + bench.old[result:]


@pytest.mark.parametrize("seed", range(8))
async def test_read_error_may_leave_bytes_in_memory(seed: int) -> None:
    bench = Bench(seed)
    bench.memory[:] = 0
    assert await bench.run(rq.OP_READ, ALWAYS["read_error"]) == -errno.EIO
    assert 0 < np.count_nonzero(bench.memory) < SIZE


async def test_write_error_tears_the_write() -> None:
    torn = 0
    for seed in range(8):
        bench = Bench(seed)
        assert await bench.run(rq.OP_WRITE, ALWAYS["write_error"]) == -errno.EIO
        assert len(bench.content) == SIZE
        assert bench.content != bytes(bench.memory)
        torn += bench.content != bench.old
    assert torn > 4


async def test_sync_error_forgets() -> None:
    """What reads show never gets to the medium, though the next sync says that all is well."""
    bench = Bench()
    await bench.run(rq.OP_WRITE)
    assert await bench.run(rq.OP_FDATASYNC, ALWAYS["sync_error"]) == -errno.EIO
    assert await bench.run(rq.OP_FDATASYNC) == 0
    assert bench.content == bytes(bench.memory)
    bench.disk.sync(bench.disk.open(bench.disk.root, "/", os.O_RDONLY))
    bench.process.kill()
    bench.disk.cut_power()
    assert bench.content == bench.old


@pytest.mark.parametrize("opcode", [rq.OP_OPEN, rq.OP_RENAME, rq.OP_UNLINK, rq.OP_STAT, rq.OP_MKDIR])
async def test_file_error_does_nothing(opcode: int) -> None:
    bench = Bench()
    assert await bench.run(opcode, ALWAYS["file_error"]) == -errno.EIO
    assert list(bench.disk.root.entries) == ["file"]
    assert bench.process.descriptors == 1


async def test_lost_write() -> None:
    bench = Bench()
    assert await bench.run(rq.OP_WRITE, ALWAYS["lost_write"]) == SIZE
    assert bench.content == bench.old
    assert bench.disk.lies >= 1


async def test_misdirected_write_hits_another_place() -> None:
    bench = Bench()
    other = bench.process.open(Path("/other"), os.O_RDWR | os.O_CREAT)
    bench.disk.write(bench.process.opened(other), 0, bytes(4 * SIZE))
    hits = 0
    for _ in range(10):
        assert await bench.run(rq.OP_WRITE, ALWAYS["misdirected_write"]) == SIZE
        hits += any(bench.disk.find(bench.disk.root, "/other").content)
    assert hits
    assert bench.content != bytes(bench.memory)
    assert bench.disk.lies >= 20


async def test_flip() -> None:
    bench = Bench()
    bench.disk.flip_bit()
    different = np.frombuffer(bench.content, dtype=np.uint8) ^ np.frombuffer(bench.old, dtype=np.uint8)
    assert np.unpackbits(different).sum() == 1
    assert bench.disk.lies == bench.disk.faults.struck["flip"] == 1


async def test_full_disk() -> None:
    """What fits is written, then nothing; reads go on; removing a file makes room."""
    bench = Bench()
    bench.disk.capacity_bytes = bench.disk.used_bytes + 4096
    more = bench.disk.open(bench.disk.root, "/more", os.O_RDWR | os.O_CREAT)
    assert bench.disk.write(more, 0, bytes(5000)) == 4096
    with pytest.raises(OSError) as refused:
        bench.disk.write(more, 4096, bytes(1))
    assert refused.value.errno == errno.ENOSPC
    with pytest.raises(OSError):
        bench.disk.allocate(more, 0, 8192)
    assert await bench.run(rq.OP_READ) == SIZE
    bench.disk.unlink(bench.disk.root, "/file")
    bench.process.close(bench.fd)
    bench.disk.allocate(more, 0, 8192)
    assert bench.disk.used_bytes == 8192
    assert bench.disk.faults.struck["no_space"] == 3


async def test_hang() -> None:
    bench = Bench()
    loop = asyncio.get_running_loop()
    bench.disk.hang(loop.time() + 3.0)
    assert await bench.run(rq.OP_READ) == SIZE
    assert 3.0 <= loop.time() < 3.1


async def test_kill_leaves_what_was_written_and_stops_the_rest() -> None:
    """The page cache survives; nothing lands in memory any more; locks and descriptors are gone."""
    torn = set()
    for seed in range(40):
        bench = Bench(seed)
        bench.process.lock(bench.fd)
        running = asyncio.ensure_future(bench.run(rq.OP_WRITE))
        await asyncio.sleep(seed * 5e-6)
        bench.process.kill()
        assert await running in (SIZE, -errno.EIO)
        assert bench.process.descriptors == 0
        torn.add("old" if bench.content == bench.old else "new" if bench.content == bytes(bench.memory) else "torn")
        other = SimulatedProcess(bench.disk)
        other.lock(other.open(Path("/file"), os.O_RDWR), wait=False)
    assert torn == {"old", "new", "torn"}


async def test_death_after_so_many_operations() -> None:
    bench = Bench()
    bench.process.dies_in = 2
    assert await bench.run(rq.OP_STAT) == SIZE
    assert await bench.run(rq.OP_STAT) == SIZE
    assert not bench.process.dead
    assert await bench.run(rq.OP_STAT) == -errno.EIO
    assert bench.process.dead


async def test_reads_land_in_pieces_and_late() -> None:
    """Memory belongs to the kernel until the completion, whoever has stopped to wait."""
    halves = 0
    for seed in range(30):
        bench = Bench(seed)
        bench.memory[:] = 0
        running = asyncio.ensure_future(bench.run(rq.OP_READ))
        await asyncio.sleep(0)
        running.cancel()
        seen = set()
        for _ in range(400):
            await asyncio.sleep(2e-6)
            seen.add(int(np.count_nonzero(bench.memory)))
        assert max(seen) == SIZE
        halves += len(seen) > 2
    assert halves > 3


async def test_memory_in_use_twice_is_seen() -> None:
    """Another request on the bytes that a transfer under way writes to is a violation."""
    bench = Bench()
    first, second = (asyncio.ensure_future(bench.run(rq.OP_READ)) for _ in range(2))
    await asyncio.gather(first, second)
    assert any("under way" in text for text in bench.process.memory.violations)
