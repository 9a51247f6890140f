"""Runs packed requests one after another, with the system calls that Python offers."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Final

from ..engines import requests as op
from .crc32c import crc32c
from .gate import Gate, through
from .memory import Data, iovecs_of, path_of, requests_of, view_of

PIECE_BYTES: Final = 64 << 10  # a gate is left and entered again after as much
AT_REMOVEDIR: Final = 0x200
CANCELED: Final = -errno.ECANCELED
FLAGS: Final = op.FLAG_LINK | op.FLAG_CHAIN | op.FLAG_CACHED | op.FLAG_IF_WELL

Row = tuple[int, int, int, int, int, int, int]
"""A request as Python numbers: opcode, fd, offset, address, length, gate, result."""


def execute(requests: Data, /) -> None:
    """Run a batch in the calling thread, in order."""
    run(requests_of(requests))


class _Job:
    """What one run remembers for the requests that follow."""

    def __init__(self) -> None:
        self.descriptor = -errno.EBADF  # of the last OP_OPEN, or what its links end with
        self.previous = op.PENDING_RESULT  # result of the request before
        self.well = True  # all requests so far did what they should


def run(batch: op.Requests) -> None:
    """Run `batch`, one job, and write each ``result`` in place."""
    results = batch["result"]
    job = _Job()
    for i, row in enumerate(batch.tolist()):
        skipped = row[0] & op.FLAG_IF_WELL and not job.well
        job.previous = CANCELED if skipped else _run_one(row, job)
        job.well = job.well and _went_well(row, job.previous)
        results[i] = job.previous


def _went_well(row: Row, result: int) -> bool:
    if result < 0:
        return False
    opcode, _, _, address, length, _, _ = row
    code = opcode & op.OP_MASK
    if code in (op.OP_READ, op.OP_WRITE):
        return result == length
    if code in (op.OP_READV, op.OP_WRITEV):
        return result == sum(map(len, iovecs_of(address, length)))
    return True


def _run_one(row: Row, job: _Job) -> int:
    opcode, fd, offset, address, length, gate, _ = row
    code = opcode & op.OP_MASK
    if opcode & ~(op.OP_MASK | FLAGS):
        return -errno.EINVAL
    if code in (op.OP_COPY, op.OP_CHECKSUM, op.OP_MOVE):
        start = job.previous if opcode & op.FLAG_CHAIN else 0
        if start < 0:
            return -errno.EINVAL if start == op.PENDING_RESULT else CANCELED
        if code == op.OP_MOVE:
            return _move(address, offset, length, gate)
        return _copy(address, offset if code == op.OP_COPY else None, length, gate, start)
    if code == op.OP_NOP:
        return 0
    linked = bool(opcode & op.FLAG_LINK)
    if linked and job.descriptor < 0:
        return job.descriptor
    if code <= op.OP_WRITEV and gate and Gate.at(gate).closed:
        return CANCELED  # what the kernel moves cannot be held off by a gate, but need not be begun
    result = _call(opcode, job.descriptor if linked else fd, offset, address, length)
    if code == op.OP_OPEN:
        job.descriptor = result if result >= 0 else CANCELED
    elif code == op.OP_CLOSE and linked:
        job.descriptor = -errno.EBADF  # the number may belong to somebody else by now
    return result


def _call(opcode: int, fd: int, offset: int, address: int, length: int) -> int:
    call = _CALLS.get(opcode & op.OP_MASK)
    if call is None:
        return -errno.EINVAL
    if opcode & op.FLAG_CACHED:
        return -errno.EAGAIN  # Python cannot ask for it; the caller then opens in the usual way
    try:
        return call(fd, offset, address, length)
    except OSError as error:
        return -(error.errno or errno.EIO)
    except (OverflowError, ValueError):
        return -errno.EINVAL


def _copy(target: int, source: int | None, length: int, gate: int, value: int) -> int:
    if length and (not target or source == 0):
        return -errno.EFAULT
    for done in range(0, length, PIECE_BYTES):
        size = min(PIECE_BYTES, length - done)
        piece = _Piece(target + done, source and source + done, size, value)
        if not through(gate, piece):
            return CANCELED
        value = piece.value
    return value


def _move(target: int, source: int, length: int, gate: int) -> int:
    if length and (not target or not source):
        return -errno.EFAULT
    for done in range(0, length, PIECE_BYTES):
        size = min(PIECE_BYTES, length - done)
        if not through(gate, partial(ctypes.memmove, target + done, source + done, size)):
            return CANCELED
    return 0


class _Piece:
    """One piece of a copy, or of a checksum where there is no source."""

    def __init__(self, target: int, source: int | None, size: int, value: int) -> None:
        self.target, self.source, self.size, self.value = target, source, size, value

    def __call__(self) -> None:
        if self.source is None:
            self.value = crc32c(view_of(self.target, self.size), self.value)
            return
        octets = ctypes.string_at(self.source, self.size)  # what is copied is what is summed, whoever writes meanwhile
        ctypes.memmove(self.target, octets, self.size)
        self.value = crc32c(octets, self.value)


def _read(fd: int, offset: int, address: int, length: int) -> int:
    return _readv(fd, offset, [view_of(address, length)])


def _write(fd: int, offset: int, address: int, length: int) -> int:
    return _writev(fd, offset, [view_of(address, length)])


def _readv(fd: int, offset: int, views: list[memoryview]) -> int:
    """Read until the views are full or the file ends."""
    done = 0
    while any(map(len, views)):
        try:
            count = os.preadv(fd, views, offset + done)
        except OSError as error:
            if done and error.errno == errno.EINVAL:
                break  # O_DIRECT, and the end of the file is not aligned
            raise
        if count == 0:
            break
        done += count
        _skip(views, count)
    return done


def _writev(fd: int, offset: int, views: list[memoryview]) -> int:
    done = 0
    while any(map(len, views)):
        count = os.pwritev(fd, views, offset + done)
        if count == 0:
            raise OSError(errno.EIO, "wrote nothing")
        done += count
        _skip(views, count)
    return done


def _skip(views: list[memoryview], count: int) -> None:
    """Take the first `count` bytes, and what is empty then, off `views`."""
    while views and count >= len(views[0]):
        count -= len(views[0])
        del views[0]
    if count:
        views[0] = views[0][count:]


def _open(fd: int, flags: int, address: int, mode: int) -> int:
    return os.open(path_of(address), flags, mode, dir_fd=fd)


def _rename(fd: int, target: int, address: int, flags: int) -> int:
    old, new = path_of(address), path_of(target)
    if flags & op.RENAME_NOREPLACE:
        os.link(old, new, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)  # fails if it exists, as wanted
        os.unlink(old, dir_fd=fd)
    else:
        os.rename(old, new, src_dir_fd=fd, dst_dir_fd=fd)
    return 0


def _unlink(fd: int, _: int, address: int, flags: int) -> int:
    remove: Callable[..., None] = os.rmdir if flags & AT_REMOVEDIR else os.unlink
    remove(path_of(address), dir_fd=fd)
    return 0


def _stat(fd: int, _: int, address: int, __: int) -> int:
    found = os.stat(path_of(address), dir_fd=fd)
    return found.st_size if stat.S_ISREG(found.st_mode) else -errno.EISDIR


def _fallocate(fd: int, offset: int, _: int, length: int) -> int:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, offset, length)
    elif os.fstat(fd).st_size < offset + length:
        os.ftruncate(fd, offset + length)
    return 0


def _mkdir(fd: int, _: int, address: int, mode: int) -> int:
    os.mkdir(path_of(address), mode, dir_fd=fd)
    return 0


def _on_descriptor(call: Callable[[int], None]) -> Callable[[int, int, int, int], int]:
    def run_it(fd: int, _: int, __: int, ___: int) -> int:
        if fd < 0:
            return -errno.EBADF  # Python would call it a wrong argument
        call(fd)
        return 0

    return run_it


_CALLS: Final[dict[int, Callable[[int, int, int, int], int]]] = {
    op.OP_READ: _read,
    op.OP_WRITE: _write,
    op.OP_READV: lambda fd, offset, address, count: _readv(fd, offset, iovecs_of(address, count)),
    op.OP_WRITEV: lambda fd, offset, address, count: _writev(fd, offset, iovecs_of(address, count)),
    op.OP_FDATASYNC: _on_descriptor(getattr(os, "fdatasync", os.fsync)),
    op.OP_OPEN: _open,
    op.OP_CLOSE: _on_descriptor(os.close),
    op.OP_RENAME: _rename,
    op.OP_UNLINK: _unlink,
    op.OP_STAT: _stat,
    op.OP_MKDIR: _mkdir,
    op.OP_FALLOCATE: _fallocate,
    op.OP_FSYNC: _on_descriptor(os.fsync),
}
