"""A small file that processes map together, and locks on its bytes that end with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from pathlib import Path
from typing import Final

__all__ = ["PrivateFile", "SharedFile"]

_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid


class SharedFile:
    """The real one; a simulation has its own (see `ucm_async.engines.system.System.shared_file`).

    Locks are of the open file description (fcntl(2), F_OFD_SETLK), so two of this class in one process exclude each
    other, as two processes do. The bytes they are named by need not exist.

    Parameters
    ----------
    path
        Made if it is missing. All of its bytes are allocated: touching a hole on a full disk would be SIGBUS.
    nbytes
        Its length. A file that is longer stays as it is.

    Attributes
    ----------
    memory
        The mapping: writable, `nbytes` bytes, zeros when the file is new.

    Raises
    ------
    OSError
        It cannot be made, allocated, mapped or locked here.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(self._fd).st_size < nbytes:
                os.posix_fallocate(self._fd, 0, nbytes)
            self.memory = mmap.mmap(self._fd, nbytes)
        except BaseException:
            os.close(self._fd)
            raise

    def lock(self, byte: int, *, wait: bool = False) -> bool:
        """Take the lock of a byte; False if somebody else has it. With `wait` wait for it."""
        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        try:
            fcntl.fcntl(self._fd, command, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def unlock(self, byte: int) -> None:
        """Give the lock of a byte back."""
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))

    def close(self) -> None:
        """Unmap, and give all locks back. Views of `memory` must be gone. Idempotent."""
        if self._fd >= 0:
            self.memory.close()
            os.close(self._fd)
            self._fd = -1


class PrivateFile(SharedFile):
    """One that nobody else sees, where there can be no file: memory alone, and locks that are always free."""

    def __init__(self, nbytes: int) -> None:
        self._fd = -1
        self.memory = mmap.mmap(-1, nbytes)

    def lock(self, byte: int, *, wait: bool = False) -> bool:
        """See `SharedFile.lock`: True."""
        return True

    def unlock(self, byte: int) -> None:
        """See `SharedFile.unlock`: nothing to do."""

    def close(self) -> None:
        """See `SharedFile.close`."""
        self.memory.close()
