"""What the driver adds: helpers that may be held up, bounds, one signal a batch, threads."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async.engines.requests import (
    FLAG_LINK,
    OP_CHECKSUM,
    OP_CLOSE,
    OP_NOP,
    OP_OPEN,
    OP_READ,
    OP_STAT,
    PENDING_RESULT,
    new_requests,
)

from .chains import AT_FDCWD, CLOSE, STEPS, Blocks
from .tools import (
    DRIVERS,
    MAKERS,
    U8,
    address_of,
    aligned,
    c_path,
    join,
    native,
    noise,
    open_descriptors,
    open_direct,
    readable,
    reads,
    reap,
    request,
    results,
    run,
)

MIB = 1 << 20


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = MAKERS[request.param]()
    yield made
    made.close()


class Fifo:
    """A file whose opening waits until `release`, if it is for a helper: where the file might have to be made."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._kept, self._address = c_path(str(path))

    def chain(self, flags: int = os.O_RDONLY | os.O_CREAT) -> Any:
        return join(
            request(OP_OPEN, fd=AT_FDCWD, address=self._address, offset=flags),
            request(OP_CLOSE | FLAG_LINK),
            request(OP_NOP),
        )

    def release(self) -> None:
        os.close(os.open(self.path, os.O_WRONLY))


@pytest.fixture
def fifo(tmp_path: Path) -> Fifo:
    return Fifo(tmp_path / "fifo")


def test_a_helper_that_is_held_up_holds_up_nobody_else(driver: Any, fifo: Fifo, tmp_path: Path) -> None:
    blocks = Blocks(tmp_path, 20, 5_000)
    slow = fifo.chain()
    driver.submit(slow, "slow", 3)
    table = blocks.chains()
    driver.submit(table.reshape(-1), "quick", STEPS)
    assert reap(driver) == ["quick"]
    blocks.check(table)
    assert results(slow) == [PENDING_RESULT] * 3
    assert driver.waiting == 3
    fifo.release()
    assert reap(driver) == ["slow"]
    assert results(slow)[1:] == [0, 0]


def test_transfers_go_on_while_every_helper_is_held_up(driver: Any, fifo: Fifo, file: int, data: U8) -> None:
    slow = join(*[fifo.chain()] * driver.threads)
    driver.submit(slow, "slow", 3)
    memory = np.zeros(50_000, np.uint8)
    requests = reads(file, memory, 100, [100 * i for i in range(500)])
    for _ in range(3):
        memory[:] = 0
        assert run(driver, requests) == [100] * 500
        assert np.array_equal(memory, data[:50_000])
    assert results(slow) == [PENDING_RESULT] * len(slow)
    writer = os.open(fifo.path, os.O_WRONLY)
    assert reap(driver) == ["slow"]
    os.close(writer)


def test_one_batch_does_not_wait_for_the_chains_of_another(driver: Any, fifo: Fifo, tmp_path: Path) -> None:
    """Of one batch: the chain that is held up is pending, the others are done before."""
    blocks = Blocks(tmp_path, 10, 5_000, times=2)
    table = blocks.chains()
    kept, table["address"][4, 0] = c_path(str(fifo.path))
    table["offset"][4, 0] |= os.O_CREAT
    driver.submit(table.reshape(-1), "mixed", STEPS)
    after = new_requests(4)
    driver.submit(after, "after", 2)
    assert reap(driver) == ["after"]
    while (np.delete(table["result"], 4, axis=0)[:, CLOSE] == PENDING_RESULT).any():
        threading.Event().wait(0.001)
    assert (table["result"][4] == PENDING_RESULT).all()
    fifo.release()
    assert reap(driver) == ["mixed"]
    assert table["result"][4, 0] >= 0
    blocks.check(table, np.delete(np.arange(20), 4))
    assert kept


@pytest.mark.parametrize("more", [0, os.O_DIRECT, os.O_NONBLOCK])
@pytest.mark.parametrize("access", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_no_file_holds_up_the_driving_thread(driver: Any, fifo: Fifo, tmp_path: Path, access: int, more: int) -> None:
    """It opens files itself where that takes no disk. A FIFO takes none, but may take for ever."""
    blocks = Blocks(tmp_path, 20, 5_000)
    before = open_descriptors()
    odd = fifo.chain(access | more)
    driver.submit(odd, "odd", 3)
    table = blocks.chains()
    driver.submit(table.reshape(-1), "blocks", STEPS)
    tokens = reap(driver)
    while "blocks" not in tokens:
        tokens += reap(driver)
    blocks.check(table)
    if "odd" not in tokens:  # a helper waits; or the kernel cannot open without a disk
        other_end = os.open(fifo.path, os.O_RDWR)
        assert reap(driver) == ["odd"]
        os.close(other_end)
    assert results(odd)[1:] == [0 if odd["result"][0] >= 0 else -errno.ECANCELED, 0]
    assert open_descriptors() == before


def test_descriptors_have_the_flags_that_were_asked_for(driver: Any, path: Path) -> None:
    os.close(open_direct(path))
    seen = os.O_NONBLOCK | os.O_APPEND | os.O_DIRECT | os.O_ACCMODE
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_APPEND, os.O_RDONLY | os.O_NONBLOCK):
        kept, address = c_path(str(path))
        opens = [request(OP_OPEN, fd=AT_FDCWD, address=address, offset=flags | more) for more in (0, os.O_DIRECT)]
        buffered, direct = run(driver, join(*opens))
        assert fcntl.fcntl(buffered, fcntl.F_GETFL) & seen == flags
        assert fcntl.fcntl(direct, fcntl.F_GETFL) & seen == flags | os.O_DIRECT
        assert not os.get_inheritable(buffered)
        assert not os.get_inheritable(direct)
        os.close(buffered)
        os.close(direct)
        assert kept


def test_close_waits_for_a_helper(driver: Any, fifo: Fifo) -> None:
    slow = fifo.chain()
    driver.submit(slow, "slow", 3)
    timer = threading.Timer(0.05, fifo.release)
    timer.start()
    assert driver.close() == ["slow"]
    assert results(slow)[1:] == [0, 0]
    timer.join()


def test_the_loop_is_woken_once_a_batch(driver: Any, tmp_path: Path) -> None:
    """The descriptor counts its signals."""
    blocks = Blocks(tmp_path, 100, 5_000)
    table = blocks.chains()
    driver.submit(table.reshape(-1), "token", STEPS)
    assert readable(driver, 30)
    assert int.from_bytes(os.read(driver.fileno(), 8), "little") == 1
    assert driver.reap() == ["token"]
    assert not readable(driver, 0)


def test_and_less_often_where_nobody_listens(driver: Any) -> None:
    """Batches that finish before the last ones were taken need no other signal."""
    for i in range(100):
        driver.submit(new_requests(1), i)
    while driver.waiting:
        threading.Event().wait(0.001)
    assert readable(driver, 30)
    assert int.from_bytes(os.read(driver.fileno(), 8), "little") == 1
    assert driver.reap() == list(range(100))


@pytest.fixture
def big(tmp_path: Path) -> Any:
    body = noise(8 * MIB)
    (tmp_path / "big").write_bytes(body.tobytes())
    fd = open_direct(tmp_path / "big")
    yield fd, body
    os.close(fd)


@pytest.mark.parametrize("kind", DRIVERS)
@pytest.mark.parametrize(("depth", "max_bytes", "most"), [(4, 0, 4), (64, 256 * 1024, 4), (64, 1, 1)])
def test_the_bounds(kind: str, depth: int, max_bytes: int, most: int, big: Any) -> None:
    fd, body = big
    driver = MAKERS[kind](depth, max_bytes=max_bytes)
    memory = aligned(8 * MIB)
    requests = reads(fd, memory, 65536, [65536 * i for i in range(128)])
    driver.submit(requests, "token")
    seen = set()
    while not readable(driver, 0):
        seen.add(driver.in_flight)
        assert driver.in_flight + driver.waiting <= 128 + most
    assert driver.reap() == ["token"]
    assert max(seen, default=0) <= most
    assert (driver.in_flight, driver.waiting, driver.depth) == (0, 0, depth)
    assert np.array_equal(memory, body)
    driver.close()
    assert (driver.in_flight, driver.waiting, driver.depth, driver.threads) == (0, 0, depth, 2)


def test_no_more_files_are_open_than_promised(driver: Any, tmp_path: Path) -> None:
    """Chains whose reads wait have their files open: 2 * (depth + threads) at the most."""
    blocks = Blocks(tmp_path, 200, 4096)
    before = open_descriptors()
    table = blocks.chains()
    driver.submit(table.reshape(-1), "token", STEPS)
    most = 0
    while not readable(driver, 0):
        most = max(most, open_descriptors() - before)
    driver.reap()
    assert most <= 2 * (driver.depth + driver.threads)
    blocks.check(table)


@pytest.mark.parametrize("kind", DRIVERS)
def test_registered_memory(kind: str, big: Any) -> None:
    fd, body = big
    driver = MAKERS[kind](8)
    area = native.Mapping(8 * MIB)
    registered = driver.register_memory(area.address, area.length)
    assert registered in ((True, False) if kind.startswith("uring") else (False,))
    memory = np.frombuffer(area, np.uint8)[: 8 * MIB]
    assert run(driver, reads(fd, memory, 512 * 1024, [512 * 1024 * i for i in range(16)]), 3) == [512 * 1024] * 16
    assert np.array_equal(memory, body)
    with pytest.raises(ValueError, match="before the first submit"):
        driver.register_memory(area.address, area.length)
    driver.close()
    with pytest.raises(ValueError, match="close"):
        driver.register_memory(area.address, area.length)


def test_direct_reads_end_with_the_file(driver: Any, tmp_path: Path) -> None:
    for size in (0, 1, 511, 512, 513, 4096, 5000, 9000):
        body = noise(size, size + 1)
        (tmp_path / str(size)).write_bytes(body.tobytes())
        fd = open_direct(tmp_path / str(size))
        memory = aligned(16384)
        assert run(driver, reads(fd, memory, 16384, [0])) == [size]
        assert np.array_equal(memory[:size], body)
        os.close(fd)


def test_a_gate_that_closes_while_requests_wait(driver: Any, big: Any) -> None:
    """Each is done or cancelled; the memory of a cancelled one was not touched."""
    fd, body = big
    gate = native.Gate()
    memory = aligned(8 * MIB)
    memory[:] = 0xEE
    requests = reads(fd, memory, 65536, [65536 * i for i in range(128)])
    requests["gate"] = gate.address
    driver.submit(requests, "token")
    gate.close()
    assert reap(driver) == ["token"]
    for i, result in enumerate(results(requests)):
        got = memory[65536 * i : 65536 * (i + 1)]
        assert result in (65536, -errno.ECANCELED)
        assert np.array_equal(got, body[65536 * i : 65536 * (i + 1)]) if result > 0 else (got == 0xEE).all()


@pytest.mark.parametrize("kind", DRIVERS)
def test_its_threads(kind: str) -> None:
    def names() -> list[str]:
        return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))

    before = names()
    driver = MAKERS[kind](8, threads=3, name="drive")
    assert driver.threads == 3
    started = names()
    for name in before:
        started.remove(name)
    assert started == ["drive-0", "drive-1", "drive-2", "drive-io-0"]
    driver.close()
    assert names() == before


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("spdk", 8), "ring: 'spdk'"),
        (("aio", 0), "depth"),
        (("uring", 32769), "depth"),
        (("aio", 8, -1), "max_bytes"),
        (("aio", 8, 0, 0), "threads"),
        (("aio", 8, 0, 1025), "threads"),
    ],
)
def test_wrong_arguments(options: tuple[Any, ...], what: str) -> None:
    before = open_descriptors()
    with pytest.raises(ValueError, match=what):
        native.Driver(*options)
    assert open_descriptors() == before
    for wrong in [(), ("aio",), (8, 8), ("aio", "8")]:
        with pytest.raises(TypeError):
            native.Driver(*wrong)


def test_nothing_is_left_of_one_that_could_not_be_made() -> None:
    """aio-max-nr is used up."""
    MAKERS["aio"](1).close()
    before = open_descriptors(), threading.active_count(), len(os.listdir("/proc/self/task"))
    held = []
    with pytest.raises(OSError) as info:
        for _ in range(64):
            held.append(native.Driver("aio", 32768))
    assert info.value.errno == errno.EAGAIN
    for driver in held:
        driver.close()
    assert (open_descriptors(), threading.active_count(), len(os.listdir("/proc/self/task"))) == before


def test_many_small_batches(driver: Any, tmp_path: Path) -> None:
    """A thousand, some taken in while others are submitted."""
    blocks = Blocks(tmp_path, 10, 1_000, times=200)
    table = blocks.chains()
    tokens: list[Any] = []
    for i in range(0, 2_000, 2):
        driver.submit(table[i : i + 2].reshape(-1), i, STEPS)
        if i % 5 == 0:
            tokens += driver.reap()
    tokens += reap(driver, 1_000 - len(tokens))
    assert sorted(tokens) == list(range(0, 2_000, 2))
    blocks.check(table)


def test_a_chain_may_alternate_between_transfers_and_helpers(driver: Any, file: int, data: U8) -> None:
    """A hundred hops there and back."""
    memory = np.zeros(100 * 10, np.uint8)
    table = np.concatenate([reads(file, memory, 10, [10 * i for i in range(100)])] * 2).reshape(2, 100).T.copy()
    table["opcode"][:, 1] = OP_STAT
    kept, table["address"][:, 1] = c_path("/proc/self/fd")
    table["fd"][:, 1] = AT_FDCWD
    got = np.array(run(driver, table.reshape(-1), 200)).reshape(100, 2)
    assert (got[:, 0] == 10).all()
    assert (got[:, 1] == -errno.EISDIR).all()
    assert np.array_equal(memory, data[:1_000])
    assert kept


def test_more_to_check_than_the_driving_thread_keeps_for_itself(driver: Any) -> None:
    """Some go to the helpers; nobody can tell which."""
    memory = np.frombuffer(mmap.mmap(-1, 48 * MIB), dtype=np.uint8)
    table = new_requests(8)
    table["opcode"] = OP_CHECKSUM
    table["address"] = address_of(memory) + MIB * np.arange(8, dtype=np.uint64)
    table["length"] = memory.nbytes - 8 * MIB + np.arange(8, dtype=np.uint64)
    expected = [native.crc32c(memory[: int(length)]) for length in table["length"]]
    assert run(driver, table) == expected


def test_plain_requests_of_every_kind(driver: Any, file: int, path: Path) -> None:
    """Without chains, too, it takes every opcode."""
    kept, address = c_path(str(path))
    memory = np.zeros(10, np.uint8)
    table = join(
        request(OP_OPEN, fd=AT_FDCWD, address=address),
        request(OP_READ | FLAG_LINK, address=address_of(memory), length=10),
        request(OP_NOP),
        request(99),
    )
    got = run(driver, table)
    os.close(got[0])
    assert got[1:] == [-errno.EBADF, 0, -errno.EINVAL]
    assert kept
