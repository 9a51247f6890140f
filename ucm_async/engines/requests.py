"""The packed request: the one record that every engine, thread pool and simulated device understands.

A batch is a C-contiguous numpy array of `REQUEST`, cut into chains of one length: the `chunk` of a submit. The requests
of a chain run one after another; chains run side by side. Who made the array keeps nothing else alive by hand: the
engine holds it until the batch is done, and writes each `result` in place. What `address`, `offset` and `length` point
to must stay valid until then; that is the business of the arena's leases (see `arena`).

The layout is shared with ``ext/request.h``; a test compares the two.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

REQUEST: Final = np.dtype(
    [
        ("opcode", "<u4"),  # one of OP_*, with FLAG_* in the bits above 0xFF
        ("fd", "<i4"),  # file, or directory that a path is relative to
        ("offset", "<u8"),  # see each opcode
        ("address", "<u8"),
        ("length", "<u8"),
        ("gate", "<u8"),  # address of a Gate that must be open while caller memory is touched; 0 = none
        ("result", "<i8"),  # PENDING_RESULT, then >= 0 or -errno
    ],
    align=False,
)
IOVEC: Final = np.dtype([("address", "<u8"), ("length", "<u8")])
Requests: TypeAlias = npt.NDArray[Any]
"""A C-contiguous array of `REQUEST`, shape (n,)."""

PENDING_RESULT: Final = -(2**63)
"""`result` of a request that has not finished. Set by ``submit``."""

OP_NOP: Final = 0  # nothing; pads a chain -> 0
# Transfers: what a ring of the kernel does; the rest of a chain is run by threads.
OP_READ: Final = 1  # pread(fd, address, length, offset) -> bytes; whole, or short only at the end of the file
OP_WRITE: Final = 2  # pwrite(fd, address, length, offset) -> bytes, whole
OP_READV: Final = 3  # preadv(fd, (iovec*)address, length = number of iovecs, offset) -> bytes
OP_WRITEV: Final = 4
# Files. Paths are NUL-terminated and relative to the directory `fd`.
OP_FDATASYNC: Final = 5  # fdatasync(fd)
OP_OPEN: Final = 6  # openat(fd, address, flags = offset, mode = length) -> descriptor
OP_CLOSE: Final = 7  # close(fd)
OP_RENAME: Final = 8  # renameat2(fd, address, fd, offset, flags = length)
OP_UNLINK: Final = 9  # unlinkat(fd, address, flags = length)
OP_STAT: Final = 10  # fstatat(fd, address) -> size in bytes; -EISDIR where it is not a regular file
OP_MKDIR: Final = 11  # mkdirat(fd, address, mode = length)
OP_FALLOCATE: Final = 12  # fallocate(fd, 0, offset, length) -> 0, also where the file system reserves nothing
OP_FSYNC: Final = 13  # fsync(fd), for directories
# Memory. `offset` is the source address of a copy. The result is the CRC-32C of the bytes (0 ... 2**32-1).
OP_COPY: Final = 16  # memcpy(address, offset, length) and checksum in one pass
OP_CHECKSUM: Final = 17  # checksum of length bytes at address
OP_MOVE: Final = 18  # memcpy(address, offset, length) without a checksum -> 0

FLAG_LINK: Final = 0x100  # use the descriptor of the last OP_OPEN before it in the chain; -ECANCELED if that failed
FLAG_CHAIN: Final = 0x200  # the checksum goes on from the result of the request before it
FLAG_CACHED: Final = 0x400  # OP_OPEN only if no disk is needed (RESOLVE_CACHED); -EAGAIN if it is
FLAG_IF_WELL: Final = 0x800  # only if all before it in the chain went well: data whole, the rest >= 0; else -ECANCELED

RENAME_NOREPLACE: Final = 1
OP_MASK: Final = 0xFF


def new_requests(n: int) -> Requests:
    """Return `n` zeroed requests."""
    return np.zeros(n, dtype=REQUEST)
