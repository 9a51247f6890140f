"""Memory by name: the simulated one does what the kernel's does, and a death leaves others alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ucm_async.engines.namedmemory import NamedMemory
from ucm_async.native import NATIVE, BlockTable
from ucm_async.testing.simulation.clock import SimulatedLoop
from ucm_async.testing.simulation.disk import SimulatedDisk
from ucm_async.testing.simulation.faults import Faults
from ucm_async.testing.simulation.process import SimulatedProcess

pytestmark = pytest.mark.skipif(not NATIVE, reason="the Cache needs the extension")

Opener = Callable[[], NamedMemory]


def machine() -> SimulatedDisk:
    return SimulatedDisk(Faults(random.Random(0)))


@pytest.fixture(params=["real", "simulated"])
def opener(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Opens the same memory again and again, each time as another process would."""
    name = f"/ucm-async.test-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    if request.param == "simulated":
        disk = machine()
        yield lambda: SimulatedProcess(disk).named_memory(name)
        return
    pytest.importorskip("posix_ipc")
    yield lambda: NamedMemory.open(name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"/dev/shm{name}")


def test_what_one_writes_the_other_reads(opener: Opener) -> None:
    one, other = opener(), opener()
    assert one.owner == os.geteuid()
    assert (one.nbytes, one.read(10)) == (0, b"")
    one.truncate(8192)
    assert other.nbytes == 8192
    memoryview(one.map(8192))[:5] = b"bytes"
    assert other.read(7) == b"bytes\0\0"
    assert bytes(memoryview(other.map(8192))[:5]) == b"bytes"


def test_locks(opener: Opener) -> None:
    one, two, three = opener(), opener(), opener()
    assert one.lock(0)
    assert not one.locked(0)
    assert two.locked(0)
    assert not two.locked(1)
    assert one.lock(1, shared=True)
    assert two.lock(1, shared=True)
    assert [memory.locked(1) for memory in (one, two, three)] == [True, True, True]
    two.unlock(1)
    assert [memory.locked(1) for memory in (one, two, three)] == [False, True, True]
    one.unlock(0)
    assert two.lock(0)
    assert one.locked(0)


def test_a_name_is_given_again(opener: Opener) -> None:
    one = opener()
    one.truncate(4096)
    assert one.is_named()
    one.unlink()
    assert not one.is_named()
    again = opener()
    assert again.nbytes == 0
    assert again.is_named()
    assert not one.is_named()
    assert one.nbytes == 4096


def test_the_dead_give_back_their_locks_and_store_into_a_copy() -> None:
    disk = machine()
    dying, living = SimulatedProcess(disk), SimulatedProcess(disk)
    one, other = dying.named_memory("/memory"), living.named_memory("/memory")
    one.truncate(3 * 4096)
    mapping, seen = memoryview(one.map(3 * 4096)), memoryview(other.map(3 * 4096))
    mapping[4096] = 1
    assert one.lock(0)
    assert one.lock(1, shared=True)
    dying.kill()
    assert not other.locked(0)
    assert not other.locked(1)
    mapping[4096], seen[4097] = 2, 3
    assert (seen[4096], seen[4097]) == (1, 3)
    assert (mapping[4096], mapping[4097]) == (2, 0)
    one.unlink()
    assert other.is_named()
    assert living.dead_among([(1, *dying.own_identity()), (2, *living.own_identity())]) == [1]
    with pytest.raises(OSError, match="dead"):
        one.truncate(0)


def test_it_may_die_before_each_operation() -> None:
    disk = machine()
    process = SimulatedProcess(disk)
    memory = process.named_memory("/memory")
    memory.truncate(4096)
    process.dies_in = 1
    assert memory.lock(0)
    memory.unlink()
    assert process.dead
    assert "/memory" in disk.named


async def test_changes_are_told_when_time_passes_and_once() -> None:
    disk = machine()
    one, other = SimulatedProcess(disk), SimulatedProcess(disk)
    nbytes = BlockTable.bytes_needed(8)
    memory = one.named_memory("/memory")
    await asyncio.to_thread(memory.truncate, nbytes)
    table = BlockTable(memory.map(nbytes), 8, create=True)
    table.join(*one.own_identity())
    theirs = BlockTable(other.named_memory("/memory").map(nbytes), 8)
    theirs.join(*other.own_identity())
    told: list[float] = []
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    watcher = one.watch_table(table, lambda: told.append(loop.time()))

    def publish(number: int) -> None:
        ids = np.full((1, 16), number, dtype=np.uint8)
        slots, states, generations = np.zeros(1, np.int64), np.zeros(1, np.uint8), np.zeros(1, np.uint32)
        theirs.claim(ids, slots, states, generations)
        theirs.publish(slots)

    publish(1)
    watcher.arm()
    await asyncio.sleep(0.1)
    assert not told, "what was before is not told"
    publish(2)
    publish(3)
    await asyncio.sleep(0.1)
    publish(4)
    await asyncio.sleep(0.1)
    assert len(told) == 1, "once, as it was armed once"
    assert 0.1 < told[0] < 0.11
    watcher.arm()
    publish(5)
    watcher.disarm()
    await asyncio.sleep(0.1)
    watcher.arm()
    publish(6)
    await watcher.aclose()
    await asyncio.sleep(0.1)
    assert len(told) == 1
