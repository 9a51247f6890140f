"""Memory that the processes of a simulated machine share, and its locks; what a dead process stores is seen by nobody.

Python objects outlive the process that they stand for, and go on storing into their mapping. So each process has a
mapping of its own of the same memory (memfd_create(2)), which becomes a private copy when it dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import weakref
from typing import Final

from ...engines.sharedmemory import SharedMemory
from .clock import SimulationError

__all__ = ["Segment", "SimulatedMemory", "make_private"]


class Segment:
    """One piece of memory, and who has which of its locks.

    Attributes
    ----------
    fd
        Of the memory; -1 until somebody attaches it.
    locks
        Who holds each byte that is locked.
    attached
        Who has it mapped.
    """

    def __init__(self) -> None:
        self.fd = -1
        self.locks: dict[int, SimulatedMemory] = {}
        self.attached: set[SimulatedMemory] = set()

    def make(self, nbytes: int) -> None:
        """Make the memory: zeros."""
        self.fd = os.memfd_create("simulated")
        os.ftruncate(self.fd, nbytes)
        weakref.finalize(self, os.close, self.fd)

    def let_go(self, holder: SimulatedMemory) -> None:
        """Give back whatever `holder` has."""
        self.attached.discard(holder)
        for byte in [byte for byte, one in self.locks.items() if one is holder]:
            del self.locks[byte]


class SimulatedMemory(SharedMemory):
    """See `ucm_async.engines.sharedmemory.SharedMemory`; a process of the simulated machine has it.

    Parameters
    ----------
    segments
        All memory of the machine, by name.
    name
        Which of them.
    nbytes
        Of the memory.
    """

    def __init__(self, segments: dict[str, Segment], name: str, nbytes: int) -> None:
        self._segments = segments
        self._name = name
        self._nbytes = nbytes
        self._dead = False

    @property
    def _segment(self) -> Segment:
        return self._segments.setdefault(self._name, Segment())

    def lock(self, byte: int, *, wait: bool = False) -> bool:
        """See `SharedMemory.lock`. Nobody waits: who takes a lock to others' cost gives it back before they run."""
        holder = self if self._dead else self._segment.locks.setdefault(byte, self)
        if wait and holder is not self:
            raise SimulationError(f"{self._name}: the lock {byte} is held, and nobody would give it back")
        return holder is self

    def unlock(self, byte: int) -> None:
        """See `SharedMemory.unlock`."""
        if not self._dead and self._segment.locks.get(byte) is self:
            del self._segment.locks[byte]

    def attach(self, nbytes: int = 0) -> bool:
        """See `SharedMemory.attach`."""
        segment = self._segment
        new = segment.fd < 0
        if new:
            segment.make(nbytes or self._nbytes)
        self.memory = mmap.mmap(segment.fd, 0)
        segment.attached.add(self)
        return new

    @property
    def last(self) -> bool:
        """See `SharedMemory.last`; a dead process is not."""
        return not self._dead and self._segment.attached <= {self}

    def remove(self) -> None:
        """See `SharedMemory.remove`."""
        if not self._dead:
            self._segments.pop(self._name, None)

    def close(self) -> None:
        """See `SharedMemory.close`."""
        if not self._dead:
            self._segment.let_go(self)
        self._dead = True
        if hasattr(self, "memory"):
            with contextlib.suppress(BufferError):
                self.memory.close()

    def die(self) -> None:
        """Give everything back, as the kernel does; what is stored from now on goes to a copy."""
        if self._dead:
            return
        segment = self._segment
        if self in segment.attached:
            make_private(self.memory, segment.fd)
        segment.let_go(self)
        self._dead = True


def make_private(memory: mmap.mmap, fd: int) -> None:
    """Replace a mapping, in its place, by one that is copied on write (mmap(2): MAP_PRIVATE, MAP_FIXED)."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    flags = mmap.MAP_PRIVATE | _MAP_FIXED
    if _mmap(address, len(memory), mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0) != address:
        raise OSError(ctypes.get_errno(), "mmap")


_MAP_FIXED: Final = 0x10
_mmap: Final = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
