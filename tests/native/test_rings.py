"""What the rings add: bounds, short transfers, O_DIRECT, registered memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async.engines.requests import FLAG_LINK, IOVEC, OP_CHECKSUM, OP_FSYNC, OP_READ, OP_READV, OP_WRITE

from .tools import (
    MAKERS,
    RINGS,
    U8,
    address_of,
    aligned,
    join,
    native,
    noise,
    open_direct,
    readable,
    reads,
    reap,
    request,
    results,
    run,
)

MIB = 1 << 20


@pytest.fixture
def big(tmp_path: Path) -> Any:
    """A file of 4 MiB opened with O_DIRECT, and what is in it."""
    body = noise(4 * MIB)
    path = tmp_path / "big"
    path.write_bytes(body.tobytes())
    fd = open_direct(path)
    yield fd, body
    os.close(fd)


def test_other_opcodes_are_refused(ring: Any, file: int) -> None:
    requests = join(
        request(OP_FSYNC, fd=file),
        request(OP_CHECKSUM),
        request(OP_READ | FLAG_LINK, fd=file),
        request(0),
        request(OP_READ, fd=file, length=0),
    )
    assert run(ring, requests) == [-errno.EINVAL] * 4 + [0]


def test_too_many_vectors(ring: Any, file: int) -> None:
    iovecs = np.zeros(1025, IOVEC)
    assert run(ring, request(OP_READV, fd=file, address=address_of(iovecs), length=1025)) == [-errno.EINVAL]


def test_a_closed_gate_keeps_requests_from_the_kernel(ring: Any, file: int) -> None:
    gate = native.Gate()
    memory = np.full(200, 0xEE, np.uint8)
    requests = reads(file, memory, 100, [0, 100])
    requests["gate"] = gate.address
    assert run(ring, requests) == [100, 100]
    gate.close()
    memory[:] = 0xEE
    assert run(ring, requests) == [-errno.ECANCELED] * 2
    assert (memory == 0xEE).all()


@pytest.mark.parametrize("kind", RINGS)
def test_no_more_than_depth_are_with_the_kernel(kind: str, big: Any) -> None:
    fd, body = big
    context = MAKERS[kind](4)
    memory = aligned(4 * MIB)
    requests = reads(fd, memory, 64 * 1024, [64 * 1024 * i for i in range(64)])
    context.submit(requests, "token")
    assert context.depth == 4
    assert context.in_flight <= 4
    assert context.in_flight + context.waiting >= 60
    tokens: list[str] = []
    while not tokens:
        assert readable(context, 30)
        tokens = context.reap()
        assert context.in_flight <= 4
    assert (context.in_flight, context.waiting) == (0, 0)
    assert np.array_equal(memory, body)
    context.close()
    assert (context.in_flight, context.waiting, context.depth) == (0, 0, 4)


@pytest.mark.parametrize("kind", RINGS)
def test_no_more_bytes_than_allowed_are_with_the_kernel(kind: str, big: Any) -> None:
    fd, body = big
    context = MAKERS[kind](64, max_bytes=256 * 1024)
    memory = aligned(4 * MIB)
    context.submit(reads(fd, memory, 128 * 1024, [128 * 1024 * i for i in range(32)]), "token")
    assert context.in_flight <= 2
    assert reap(context) == ["token"]
    assert np.array_equal(memory, body)
    large = reads(fd, memory, MIB, [MIB * i for i in range(4)])  # each alone exceeds the bound, and still goes
    memory[:] = 0
    context.submit(large, "large")
    assert context.in_flight <= 1
    assert reap(context) == ["large"]
    assert np.array_equal(memory, body)
    context.close()


@pytest.mark.parametrize("kind", RINGS)
def test_vectors_count_with_all_their_bytes(kind: str, big: Any) -> None:
    fd, _ = big
    context = MAKERS[kind](64, max_bytes=100 * 1024)
    memory = aligned(MIB)
    iovecs = np.zeros(16, IOVEC)
    iovecs["address"] = address_of(memory) + np.arange(16, dtype=np.uint64) * 65536
    iovecs["length"] = 65536
    one = request(OP_READV, fd=fd, address=address_of(iovecs), length=4)
    requests = join(*[one] * 4)
    context.submit(requests, "token")
    assert context.in_flight <= 1
    reap(context)
    assert results(requests) == [4 * 65536] * 4
    context.close()


@pytest.mark.parametrize("kind", RINGS)
def test_which_batch_goes_on(kind: str, big: Any) -> None:
    """Large ones one after the other, and a small one waits for none of them."""
    fd, body = big
    context = MAKERS[kind](1)
    memory = aligned(4 * MIB)
    quarters = [reads(fd, memory[MIB * i :], 16 * 1024, [MIB * i + 16 * 1024 * k for k in range(64)]) for i in range(3)]
    for token, requests in zip(("first", "second", "third"), quarters, strict=True):
        context.submit(requests, token)
    context.submit(reads(fd, memory[3 * MIB :], MIB // 2, [3 * MIB, 3 * MIB + MIB // 2]), "small")
    done: list[str] = []
    while len(done) < 4:
        assert readable(context, 30)
        done += context.reap()
    assert done == ["small", "first", "second", "third"]
    assert np.array_equal(memory, body)
    context.close()


def test_direct_reads_end_with_the_file(ring: Any, tmp_path: Path) -> None:
    """A file that ends inside a sector, on a sector, and on a page."""
    for size in (0, 1, 511, 512, 513, 1536, 4095, 4096, 5000, 8192, 9000):
        body = noise(size, size + 1)
        path = tmp_path / str(size)
        path.write_bytes(body.tobytes())
        fd = open_direct(path)
        memory = aligned(16384)
        memory[:] = 0xEE
        assert run(ring, reads(fd, memory, 16384, [0])) == [size]
        assert np.array_equal(memory[:size], body)
        os.close(fd)


def test_direct_writes(ring: Any, tmp_path: Path) -> None:
    fd = open_direct(tmp_path / "new", os.O_RDWR)
    memory = aligned(MIB)
    memory[:] = noise(MIB)
    writes = [
        request(OP_WRITE, fd=fd, address=address_of(memory) + at, length=64 * 1024, offset=at)
        for at in range(0, MIB, 64 * 1024)
    ]
    assert run(ring, join(*writes)) == [64 * 1024] * 16
    assert (tmp_path / "new").read_bytes() == memory.tobytes()
    os.close(fd)


def test_direct_transfers_must_be_aligned(ring: Any, big: Any) -> None:
    fd, _ = big
    memory = aligned(8192)
    requests = reads(fd, memory, 4096, [0, 4096])
    requests["offset"][0] = 7
    first, second = run(ring, requests)
    assert first == -errno.EINVAL or first == 4096  # some file systems fall back to the page cache
    assert second == 4096


def test_a_write_across_the_size_limit_ends_in_its_error(ring: Any, tmp_path: Path) -> None:
    """The first part fits below RLIMIT_FSIZE, the rest does not: a short write is continued and then fails."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fd = os.open(tmp_path / "limited", os.O_RDWR | os.O_CREAT)
    data = noise(8192)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        got = run(ring, request(OP_WRITE, fd=fd, address=address_of(data), length=8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert got == [-errno.EFBIG]
    assert os.fstat(fd).st_size == 4096
    os.close(fd)


def test_uring_with_force_async(file: int, data: U8) -> None:
    context = MAKERS["uring"](8, force_async=True)
    memory = np.zeros(200_000, np.uint8)
    assert run(context, reads(file, memory, 1000, [1000 * i for i in range(200)])) == [1000] * 200
    assert np.array_equal(memory, data[:200_000])
    context.close()


def test_uring_with_registered_memory(big: Any) -> None:
    """Inside the range, across its end, and outside of it."""
    fd, body = big
    context = MAKERS["uring"](8)
    area = native.Mapping(4 * MIB)
    inside = np.frombuffer(area, np.uint8)[: 2 * MIB]
    if not context.register_memory(area.address, 2 * MIB):
        pytest.skip("the kernel refuses registered memory here")
    whole = np.frombuffer(area, np.uint8)
    assert run(context, reads(fd, whole, 512 * 1024, [512 * 1024 * i for i in range(8)])) == [512 * 1024] * 8
    assert np.array_equal(whole, body)
    whole[:] = 0
    assert run(context, reads(fd, whole[MIB:], 2 * MIB, [0])) == [2 * MIB]
    assert np.array_equal(whole[MIB : 3 * MIB], body[: 2 * MIB])
    other = aligned(MIB)
    assert run(context, reads(fd, other, MIB, [0])) == [MIB]
    assert np.array_equal(other, body[:MIB])
    assert inside is not None
    context.close()


def test_uring_registers_once_and_first() -> None:
    context = MAKERS["uring"](8)
    area = native.Mapping(2 * MIB)
    context.submit(bytearray(), None)
    with pytest.raises(ValueError, match="before the first submit"):
        context.register_memory(area.address, 2 * MIB)
    context.close()
    with pytest.raises(ValueError, match="close"):
        context.register_memory(area.address, 2 * MIB)
    for wrong in [(-1, 1), (0, 2**64), ("a", 1), (1,)]:
        with pytest.raises((TypeError, OverflowError)):
            context.register_memory(*wrong)


def test_uring_says_no_to_memory_that_is_not_there() -> None:
    context = MAKERS["uring"](8)
    assert context.register_memory(4096, 4096) is False
    assert context.register_memory(4096, 0) is False
    context.close()


@pytest.mark.parametrize("kind", RINGS)
@pytest.mark.parametrize("depth", [0, -1, 32769])
def test_depth_out_of_range(kind: str, depth: int) -> None:
    with pytest.raises(ValueError, match="depth"):
        MAKERS[kind](depth)


@pytest.mark.parametrize("kind", RINGS)
def test_max_bytes_out_of_range(kind: str) -> None:
    with pytest.raises(ValueError, match="max_bytes"):
        MAKERS[kind](1, max_bytes=-1)


def test_aio_needs_room_in_the_system() -> None:
    """io_setup counts against aio-max-nr: when that is used up, OSError with EAGAIN, and nothing stays open."""
    MAKERS["aio"](1).close()
    held = []
    with pytest.raises(OSError) as info:
        for _ in range(64):
            held.append(native.AioContext(32768))
    assert info.value.errno == errno.EAGAIN
    for context in held:
        context.close()
    native.AioContext(8).close()
