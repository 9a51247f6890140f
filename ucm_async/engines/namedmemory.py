"""Memory by a name that all processes of a host know, and locks in it that end with their holder.

What the kernel does, and no more: which bytes are locked for what is for its user to say.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from typing import Final

from ..native import Mapping
from .sharedmemory import MEMORY_DIRECTORY

__all__ = ["NamedMemory"]

_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock: type, whence (SEEK_SET), start, length, and a pid that must be 0."""

_LOCK_NAP_S: Final = 0.005


class NamedMemory:
    """An open object of shm_open(3); a simulation has its own (see `ucm_async.engines.system.System.named_memory`).

    Its locks are record locks of the open file (fcntl(2), F_OFD_SETLK): two of this class in one process exclude each
    other, as two processes do. The object may lose its name while it is open. Everything here blocks.

    Parameters
    ----------
    name
        With the slash of shm_open(3).
    fd
        A descriptor of it, which belongs to this object from now on.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self._fd = fd

    @classmethod
    def open(cls, name: str) -> NamedMemory:
        """Open the object, or make an empty one that is the owner's alone.

        Raises
        ------
        ImportError
            The package posix_ipc is missing.
        PermissionError
            It belongs to another user.
        OSError, ValueError
            It cannot be opened, or is not one.
        """
        import posix_ipc  # noqa: PLC0415  (an extra)

        try:
            fd = int(posix_ipc.SharedMemory(name, posix_ipc.O_CREAT, mode=0o600).fd)
        except posix_ipc.PermissionsError as error:
            raise PermissionError(errno.EACCES, str(error), name) from error
        except posix_ipc.Error as error:
            raise OSError(errno.EIO, str(error), name) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no shared memory", name)
        return cls(name, fd)

    @property
    def owner(self) -> int:
        """The user whose it is."""
        return os.fstat(self._fd).st_uid

    @property
    def nbytes(self) -> int:
        """How long it is."""
        return os.fstat(self._fd).st_size

    def truncate(self, nbytes: int) -> None:
        """Give it a length; what is new is zeros."""
        os.ftruncate(self._fd, nbytes)

    def read(self, nbytes: int) -> bytes:
        """Return its first bytes, fewer where it is shorter."""
        return os.pread(self._fd, nbytes, 0)

    def map(self, nbytes: int) -> Mapping:
        """Map its first bytes, not faulted in. OSError where there is no address space left for it."""
        return Mapping(nbytes, self._fd, populate=False)

    # ---- locks

    def lock(self, byte: int, *, shared: bool = False, patience_s: float = 0.0) -> bool:
        """Lock a byte, for this open file alone or `shared` with others; False if somebody held it all the time."""
        give_up = time.monotonic() + patience_s
        wanted = _flock(fcntl.F_RDLCK if shared else fcntl.F_WRLCK, byte)
        while True:
            try:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, wanted)
                return True
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as fcntl(2) has it
                if time.monotonic() >= give_up:
                    return False
            time.sleep(_LOCK_NAP_S)

    def unlock(self, byte: int) -> None:
        """Give a lock back."""
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, byte))

    def locked(self, byte: int) -> bool:
        """Tell whether anybody else has a lock on a byte. Only asks, and takes none."""
        told = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
        return bool(_FLOCK.unpack(told)[0] != fcntl.F_UNLCK)

    # ---- the name

    def is_named(self) -> bool:
        """Tell whether the name still means this object."""
        try:
            named = os.stat(f"{MEMORY_DIRECTORY}{self.name}")
        except FileNotFoundError:
            return False
        own = os.fstat(self._fd)
        return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)

    def unlink(self) -> None:
        """Remove the name, whatever it means; the memory goes with the last who has it mapped."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{MEMORY_DIRECTORY}{self.name}")

    def close(self) -> None:
        """Close the descriptor. Give locks back before: a mapping keeps the open file alive, and with it them."""
        os.close(self._fd)


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
