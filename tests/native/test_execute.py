"""Every opcode, run in the calling thread."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async.engines.requests import (
    FLAG_CACHED,
    FLAG_CHAIN,
    FLAG_IF_WELL,
    FLAG_LINK,
    IOVEC,
    OP_CHECKSUM,
    OP_CLOSE,
    OP_COPY,
    OP_FALLOCATE,
    OP_FDATASYNC,
    OP_FSYNC,
    OP_MKDIR,
    OP_MOVE,
    OP_NOP,
    OP_OPEN,
    OP_READ,
    OP_READV,
    OP_RENAME,
    OP_STAT,
    OP_UNLINK,
    OP_WRITE,
    OP_WRITEV,
    RENAME_NOREPLACE,
    new_requests,
)

from .tools import U8, address_of, c_path, join, native, noise, open_descriptors, request, results


def execute(*parts: Any) -> list[int]:
    requests = join(*parts)
    native.execute(requests)
    return results(requests)


@pytest.fixture
def directory(tmp_path: Path) -> Any:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


class Paths:
    """Paths whose addresses stay valid as long as this object."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def __call__(self, path: str) -> int:
        kept, address = c_path(path)
        self.kept.append(kept)
        return address


@pytest.fixture
def at() -> Paths:
    return Paths()


def test_read_and_write(file: int, data: U8) -> None:
    memory = np.zeros(5000, np.uint8)
    assert execute(request(OP_READ, fd=file, address=address_of(memory), length=5000, offset=77)) == [5000]
    assert np.array_equal(memory, data[77:5077])
    new = noise(3000, 2)
    assert execute(request(OP_WRITE, fd=file, address=address_of(new), length=3000, offset=100)) == [3000]
    assert os.pread(file, 3000, 100) == new.tobytes()


def test_read_at_and_behind_the_end(file: int, data: U8) -> None:
    memory = np.full(4096, 0xEE, np.uint8)
    ask = {"fd": file, "address": address_of(memory), "length": 4096}
    assert execute(request(OP_READ, offset=len(data) - 10, **ask)) == [10]
    assert (memory[10:] == 0xEE).all()
    assert execute(request(OP_READ, offset=len(data), **ask), request(OP_READ, offset=10**12, **ask)) == [0, 0]


def test_nothing_to_do(file: int) -> None:
    assert execute(request(OP_READ, fd=file), request(OP_WRITE, fd=file), request(OP_READV, fd=file)) == [0, 0, 0]
    assert execute(request(OP_COPY), request(OP_CHECKSUM), request(OP_MOVE)) == [0, 0, 0]
    native.execute(new_requests(0))


def vectors(*arrays: U8) -> Any:
    made = np.zeros(len(arrays), IOVEC)
    made["address"] = [address_of(one) for one in arrays]
    made["length"] = [len(one) for one in arrays]
    return made


def test_vectors(file: int, data: U8) -> None:
    parts = [np.zeros(size, np.uint8) for size in (1, 4096, 0, 333)]
    iovecs = vectors(*parts)
    assert execute(request(OP_READV, fd=file, address=address_of(iovecs), length=4, offset=5)) == [4430]
    assert np.array_equal(np.concatenate(parts), data[5 : 5 + 4430])
    parts[1][:] = 7
    assert execute(request(OP_WRITEV, fd=file, address=address_of(iovecs), length=4, offset=9)) == [4430]
    assert os.pread(file, 4430, 9) == np.concatenate(parts).tobytes()


def test_vectors_across_the_end(file: int, data: U8) -> None:
    parts = [np.zeros(64, np.uint8) for _ in range(1024)]
    iovecs = vectors(*parts)
    start = len(data) - 1000
    before = iovecs.copy()
    assert execute(request(OP_READV, fd=file, address=address_of(iovecs), length=1024, offset=start)) == [1000]
    assert np.array_equal(np.concatenate(parts)[:1000], data[start:])
    assert np.array_equal(iovecs, before)  # the caller's list stays as it was


def test_too_many_vectors(file: int) -> None:
    iovecs = np.zeros(1025, IOVEC)
    assert execute(request(OP_READV, fd=file, address=address_of(iovecs), length=1025)) == [-errno.EINVAL]


def test_a_pipe_has_no_offsets() -> None:
    reading, writing = os.pipe()
    memory = np.zeros(10, np.uint8)
    assert execute(request(OP_READ, fd=reading, address=address_of(memory), length=10)) == [-errno.ESPIPE]
    os.close(reading)
    os.close(writing)


def test_errors_are_results(tmp_path: Path, at: Paths, directory: int, file: int) -> None:
    memory = np.zeros(10, np.uint8)
    assert execute(
        request(OP_READ, fd=-1, address=address_of(memory), length=10),
        request(OP_READ, fd=directory, address=address_of(memory), length=10),
        request(OP_READ, fd=file, address=8, length=10),
        request(OP_OPEN, fd=directory, address=at("absent"), offset=os.O_RDONLY),
        request(OP_STAT, fd=directory, address=at("absent")),
        request(OP_UNLINK, fd=directory, address=at("absent")),
        request(OP_RENAME, fd=directory, address=at("absent"), offset=at("other")),
        request(OP_CLOSE, fd=-1),
        request(OP_FSYNC, fd=-1),
        request(OP_FDATASYNC, fd=-1),
        request(OP_FALLOCATE, fd=file, length=0),
        request(OP_MKDIR, fd=directory, address=at("file"), length=0o700),
    ) == [
        -errno.EBADF,
        -errno.EISDIR,
        -errno.EFAULT,
        -errno.ENOENT,
        -errno.ENOENT,
        -errno.ENOENT,
        -errno.ENOENT,
        -errno.EBADF,
        -errno.EBADF,
        -errno.EBADF,
        -errno.EINVAL,
        -errno.EEXIST,
    ]


@pytest.mark.parametrize("opcode", [14, 15, 19, 255, 0x1000 | OP_READ, 0x10000 | OP_CLOSE])
def test_unknown_opcodes_and_flags(opcode: int) -> None:
    assert execute(request(opcode, fd=-1)) == [-errno.EINVAL]


def test_a_file_from_its_making_to_its_name(tmp_path: Path, at: Paths, directory: int) -> None:
    """Open, reserve, write, sync, close, rename: one job with one descriptor."""
    body = noise(10_000)
    before = open_descriptors()
    requests = join(
        request(OP_MKDIR, fd=directory, address=at("ab"), length=0o755),
        request(OP_OPEN, fd=directory, address=at("ab/new"), offset=os.O_WRONLY | os.O_CREAT | os.O_EXCL, length=0o640),
        request(OP_FALLOCATE | FLAG_LINK, offset=0, length=20_000),
        request(OP_WRITE | FLAG_LINK, address=address_of(body), length=10_000),
        request(OP_FDATASYNC | FLAG_LINK),
        request(OP_CLOSE | FLAG_LINK),
        request(OP_RENAME, fd=directory, address=at("ab/new"), offset=at("ab/final"), length=RENAME_NOREPLACE),
        request(OP_STAT, fd=directory, address=at("ab/final")),
        request(OP_FSYNC, fd=directory),
    )
    native.execute(requests)
    got = results(requests)
    assert got[0] == 0 and got[1] >= 0
    assert got[2:] == [0, 10_000, 0, 0, 0, 20_000, 0]
    assert (tmp_path / "ab" / "final").read_bytes()[:10_000] == body.tobytes()
    assert (tmp_path / "ab" / "final").stat().st_mode & 0o777 == 0o640
    assert open_descriptors() == before


def test_rename_replaces_only_if_it_may(tmp_path: Path, at: Paths, directory: int) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    fields = {"fd": directory, "address": at("a"), "offset": at("b")}
    assert execute(request(OP_RENAME, length=RENAME_NOREPLACE, **fields)) == [-errno.EEXIST]
    assert (tmp_path / "b").read_text() == "b"
    assert execute(request(OP_RENAME, length=0, **fields)) == [0]
    assert (tmp_path / "b").read_text() == "a" and not (tmp_path / "a").exists()


def test_unlink_and_stat(tmp_path: Path, at: Paths, directory: int, path: Path, data: U8) -> None:
    (tmp_path / "d").mkdir()
    at_removedir = 0x200
    assert execute(
        request(OP_STAT, fd=directory, address=at("file")),
        request(OP_STAT, fd=directory, address=at("d")),
        request(OP_UNLINK, fd=directory, address=at("file")),
        request(OP_UNLINK, fd=directory, address=at("d"), length=at_removedir),
    ) == [len(data), -errno.EISDIR, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_what_is_linked_to_a_failed_open_is_not_run(at: Paths, directory: int) -> None:
    memory = np.full(10, 0xEE, np.uint8)
    assert execute(
        request(OP_OPEN, fd=directory, address=at("absent"), offset=os.O_RDONLY),
        request(OP_READ | FLAG_LINK, address=address_of(memory), length=10),
        request(OP_CLOSE | FLAG_LINK),
    ) == [-errno.ENOENT, -errno.ECANCELED, -errno.ECANCELED]
    assert (memory == 0xEE).all()


def test_a_link_without_an_open_or_after_the_close(at: Paths, directory: int, path: Path) -> None:
    assert execute(request(OP_FSYNC | FLAG_LINK)) == [-errno.EBADF]
    got = execute(
        request(OP_OPEN, fd=directory, address=at("file"), offset=os.O_RDONLY),
        request(OP_CLOSE | FLAG_LINK),
        request(OP_CLOSE | FLAG_LINK),
    )
    assert got[1:] == [0, -errno.EBADF]


def test_each_open_has_its_own_links(tmp_path: Path, at: Paths, directory: int) -> None:
    (tmp_path / "a").write_bytes(b"aaaa")
    (tmp_path / "b").write_bytes(b"bbbb")
    memory = np.zeros(8, np.uint8)
    job = []
    for i, name in enumerate(["a", "b"]):
        job += [
            request(OP_OPEN, fd=directory, address=at(name), offset=os.O_RDONLY),
            request(OP_READ | FLAG_LINK, address=address_of(memory) + 4 * i, length=4),
            request(OP_CLOSE | FLAG_LINK),
        ]
    execute(*job)
    assert memory.tobytes() == b"aaaabbbb"


def test_open_descriptors_are_not_inherited(at: Paths, directory: int, path: Path) -> None:
    (fd,) = execute(request(OP_OPEN, fd=directory, address=at("file"), offset=os.O_RDONLY))
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_open_only_if_cached(at: Paths, directory: int, path: Path) -> None:
    """What was just used needs no disk; making a file always may. Old kernels always say EAGAIN."""
    path.stat()
    (fd,) = execute(request(OP_OPEN | FLAG_CACHED, fd=directory, address=at("file"), offset=os.O_RDONLY))
    assert fd >= 0 or fd == -errno.EAGAIN
    if fd >= 0:
        os.close(fd)
    flags = os.O_WRONLY | os.O_CREAT
    assert execute(request(OP_OPEN | FLAG_CACHED, fd=directory, address=at("new"), offset=flags, length=0o600)) == [
        -errno.EAGAIN
    ]


def test_a_chain_breaks_with_its_link() -> None:
    data = noise(100)
    gate = native.Gate()
    gate.close()
    where = address_of(data)
    assert execute(
        request(OP_CHECKSUM, address=where, length=100, gate=gate.address),
        request(OP_CHECKSUM | FLAG_CHAIN, address=where, length=100),
    ) == [-errno.ECANCELED, -errno.ECANCELED]
    assert execute(request(OP_CHECKSUM | FLAG_CHAIN, address=where, length=100)) == [-errno.EINVAL]


def test_a_move_is_a_link_of_a_chain_like_any_other() -> None:
    data, moved = noise(100), np.zeros(100, np.uint8)
    move = request(OP_MOVE | FLAG_IF_WELL, address=address_of(moved), offset=address_of(data), length=100)
    wrong = request(OP_STAT, fd=-1, address=address_of(np.zeros(1, np.uint8)))
    assert execute(wrong, move)[1] == -errno.ECANCELED
    assert not moved.any()
    assert execute(request(OP_CHECKSUM, address=address_of(data), length=100), move)[1] == 0
    assert np.array_equal(moved, data)


def test_nothing_pads_a_chain(file: int, data: U8) -> None:
    memory = np.zeros(10, np.uint8)
    assert execute(
        request(OP_NOP),
        request(OP_READ | FLAG_IF_WELL, fd=file, address=address_of(memory), length=10),
        request(OP_NOP | FLAG_IF_WELL),
    ) == [0, 10, 0]
    assert np.array_equal(memory, data[:10])


def test_what_must_not_follow_a_failure(file: int, data: U8) -> None:
    """After an error or a short read the guarded requests are left out, the others (the close) are not."""
    memory, copied = np.zeros(4096, np.uint8), np.full(10, 0xEE, np.uint8)
    fine = request(OP_READ, fd=file, address=address_of(memory), length=10)
    short = request(OP_READ, fd=file, address=address_of(memory), length=4096, offset=len(data) - 5)
    iovecs = vectors(memory[:3], memory[3:100])
    short_vector = request(OP_READV, fd=file, address=address_of(iovecs), length=2, offset=len(data) - 5)
    wrong = request(OP_READ, fd=-1, address=address_of(memory), length=1)
    copy = request(OP_COPY | FLAG_IF_WELL, address=address_of(copied), offset=address_of(memory), length=10)
    for bad, result in ((short, 5), (short_vector, 5), (wrong, -errno.EBADF)):
        assert execute(fine, bad, copy, fine, copy) == [10, result, -errno.ECANCELED, 10, -errno.ECANCELED]
        assert (copied == 0xEE).all()
    assert execute(fine, copy) == [10, native.crc32c(data[:10])]
    assert np.array_equal(copied, data[:10])


def test_a_closed_gate_cancels_data_but_not_the_close(at: Paths, directory: int, path: Path) -> None:
    gate = native.Gate()
    gate.close()
    memory = np.full(10, 0xEE, np.uint8)
    source = noise(10)
    before = open_descriptors()
    got = execute(
        request(OP_OPEN, fd=directory, address=at("file"), offset=os.O_RDONLY, gate=gate.address),
        request(OP_READ | FLAG_LINK, address=address_of(memory), length=10, gate=gate.address),
        request(OP_COPY, address=address_of(memory), offset=address_of(source), length=10, gate=gate.address),
        request(OP_MOVE, address=address_of(memory), offset=address_of(source), length=10, gate=gate.address),
        request(OP_CLOSE | FLAG_LINK, gate=gate.address),
    )
    assert got[1:] == [-errno.ECANCELED] * 3 + [0]
    assert (memory == 0xEE).all()
    assert open_descriptors() == before


def test_a_copy_to_nowhere() -> None:
    for opcode in (OP_COPY, OP_MOVE):
        assert execute(request(opcode, offset=address_of(noise(10)), length=10)) == [-errno.EFAULT]


def test_wrong_arrays() -> None:
    with pytest.raises(TypeError):
        native.execute(7)
    with pytest.raises(ValueError, match="multiple of 48"):
        native.execute(bytearray(47))
    with pytest.raises((BufferError, ValueError)):
        native.execute(bytes(48))
    with pytest.raises((BufferError, ValueError)):
        native.execute(new_requests(4)[::2])
    with pytest.raises(ValueError, match="aligned"):
        native.execute(np.zeros(49 + 48, np.uint8)[1:49])
