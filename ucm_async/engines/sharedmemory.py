"""A little memory that the processes using one directory share, and locks that end with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import struct
from pathlib import Path
from typing import Final

__all__ = ["MEMORY_DIRECTORY", "PrivateMemory", "SharedMemory"]

MEMORY_DIRECTORY: Final = Path("/dev/shm")  # where shm_open(3) makes its objects
NAME_BYTES: Final = 48

_ALIVE: Final = 1 << 62
_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid


class SharedMemory:
    """The real one; a simulation has its own (see `ucm_async.engines.system.System.shared_memory`).

    A file in the directory holds the name of an object below ``/dev/shm``, and its bytes are what locks are named by.
    The memory is not the file itself: a store to a page of a file that is being written back waits for the file system,
    and who uses this is an event loop.

    Locks are of the open file description (fcntl(2), F_OFD_SETLK), so two of this class in one process exclude each
    other, as two processes do.

    Parameters
    ----------
    path
        The file; made if it is missing.
    nbytes
        Of the memory, if it has to be made.

    Attributes
    ----------
    memory
        The mapping, writable, once it is attached.

    Raises
    ------
    OSError
        The file cannot be made or opened.
    """

    memory: mmap.mmap

    def __init__(self, path: Path, nbytes: int) -> None:
        self._path = path
        self._nbytes = nbytes
        self._object: Path | None = None
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    # ---- locks

    def lock(self, byte: int, *, wait: bool = False) -> bool:
        """Take the lock of a byte; False if somebody else has it. With `wait` wait for it."""
        return self._lock(fcntl.F_WRLCK, byte, wait=wait)

    def unlock(self, byte: int) -> None:
        """Give the lock of a byte back."""
        self._lock(fcntl.F_UNLCK, byte)

    def _lock(self, kind: int, byte: int, *, wait: bool = False) -> bool:
        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        try:
            fcntl.fcntl(self._fd, command, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    # ---- memory

    def attach(self, nbytes: int = 0) -> bool:
        """Map the memory; True if it is new, and zeros. One process at a time: hold a lock that the others wait for.

        Parameters
        ----------
        nbytes
            How many it gets if it is new, in place of what the constructor was told. What is there keeps its length.

        Raises
        ------
        OSError
            There is no room for it. EXDEV: a living process uses memory that cannot be seen from here; so it is with
            containers that share the directory and not ``/dev/shm``.
        """
        name = os.pread(self._fd, NAME_BYTES, 0).rstrip(b"\0").decode(errors="replace")
        new = False
        self._nbytes = nbytes or self._nbytes
        try:
            fd = os.open(MEMORY_DIRECTORY / (name or "-"), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            if not self._lock(fcntl.F_WRLCK, _ALIVE):
                why = f"processes that use it have their memory in a {MEMORY_DIRECTORY} that is not ours"
                raise OSError(errno.EXDEV, why, str(self._path)) from None
            fd, name, new = *self._create(), True
        try:
            self._lock(fcntl.F_RDLCK, _ALIVE, wait=True)
            self.memory = mmap.mmap(fd, 0)
            self._object = MEMORY_DIRECTORY / name
        finally:
            os.close(fd)
        return new

    def _create(self) -> tuple[int, str]:
        name = f"ucm-space-{secrets.token_hex(8)}"
        fd = os.open(MEMORY_DIRECTORY / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._nbytes)  # a hole, touched when there is no room, would be SIGBUS
            os.pwrite(self._fd, name.encode().ljust(NAME_BYTES, b"\0"), 0)
        except BaseException:
            os.close(fd)
            os.unlink(MEMORY_DIRECTORY / name)
            raise
        return fd, name

    @property
    def last(self) -> bool:
        """Whether nobody else has it attached. Hold the lock under which others attach."""
        alone = self._lock(fcntl.F_WRLCK, _ALIVE)
        self._lock(fcntl.F_RDLCK, _ALIVE)
        return alone

    def remove(self) -> None:
        """Remove the memory, as the last one: whoever attaches next gets new one."""
        if self._object is not None:
            self._object.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmap, and give all locks back. Idempotent. Where a view of `memory` is left, it is unmapped with that."""
        if self._object is not None:
            with contextlib.suppress(BufferError):
                self.memory.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._object, self._fd = None, -1


class PrivateMemory(SharedMemory):
    """Memory that nobody else sees, where none can be shared; its locks are always free."""

    def __init__(self, nbytes: int) -> None:
        self._fd = -1
        self._object = None
        self._nbytes = nbytes

    def attach(self, nbytes: int = 0) -> bool:
        """See `SharedMemory.attach`: it is new."""
        self.memory = mmap.mmap(-1, nbytes or self._nbytes)
        return True

    @property
    def last(self) -> bool:
        """See `SharedMemory.last`: nobody else has it."""
        return True

    def _lock(self, kind: int, byte: int, *, wait: bool = False) -> bool:
        return True

    def close(self) -> None:
        """See `SharedMemory.close`."""
        if hasattr(self, "memory"):
            with contextlib.suppress(BufferError):
                self.memory.close()
