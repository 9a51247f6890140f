"""The simulated engine passes the suite of engines, on real loops and on the simulated one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ucm_async.abc import Engine
from ucm_async.testing.engines import EngineSuite, Scratch
from ucm_async.testing.simulation.disk import SimulatedDisk
from ucm_async.testing.simulation.faults import Faults
from ucm_async.testing.simulation.process import SimulatedProcess


class SimulatedScratch(Scratch):
    """A file on a simulated disk."""

    def __init__(self, process: SimulatedProcess, path: Path, *, direct: bool) -> None:
        self.process = process
        super().__init__(Path("/", path.name), 64, direct=direct)

    def write(self, content: bytes) -> None:
        self.process.write_whole(self.path, content)

    def stored(self) -> bytes:
        disk = self.process.disk
        return bytes(disk.find(disk.root, str(self.path)).content)

    def truncate(self, size: int) -> None:
        disk = self.process.disk
        disk.find(disk.root, str(self.path)).truncate(size)

    def open(self, flags: int) -> int:
        return self.process.open(self.path, flags)

    def close_descriptor(self, fd: int) -> None:
        self.process.close(fd)


@pytest.mark.any_loop
class TestSimulated(EngineSuite):
    @pytest.fixture(autouse=True)
    def process(self) -> None:
        self._process = SimulatedProcess(SimulatedDisk(Faults(random.Random(0))))

    async def make_engine(self) -> Engine:
        return self._process.make_engine("simulated", 16)

    def make_scratch(self, path: Path) -> Scratch:
        return SimulatedScratch(self._process, path, direct=self.direct)

    def descriptors(self) -> list[str]:
        return sorted(map(str, self._process._descriptors))


class TestSimulatedDirect(TestSimulated):
    direct = True
