"""Memory for an arena."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from typing import Final, final

import numpy as np

PAGE_BYTES: Final = mmap.PAGESIZE
HUGE_BYTES: Final = 2 << 20
LENGTH_MAX: Final = 1 << 60


@final
class Mapping(mmap.mmap):
    """Prefaulted, page-aligned memory: anonymous, or shared from offset 0 of `fd`. Supports the buffer protocol.

    A request for huge pages is passed on, but neither aligned nor verified: ``page_mode`` is always ``"4k"``.
    """

    address: int
    length: int
    page_mode: str
    _shared: bool

    def __new__(cls, length: int, fd: int = -1, huge: bool = True, populate: bool = True) -> Mapping:
        """Map `length` bytes, and prefault them if `populate`. Raises OSError where that fails."""
        if not 0 < length <= LENGTH_MAX:
            raise ValueError(f"length: {length}, must be 1 ... {LENGTH_MAX}")
        if fd >= 0 and (size := os.fstat(fd).st_size) < length:
            raise ValueError(f"length: {length}, but the file has {size} bytes")
        flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mapping = super().__new__(cls, fd, length, flags)
        mapping.length = length
        mapping.page_mode = "4k"
        mapping.address = ctypes.addressof(ctypes.c_ubyte.from_buffer(mapping))
        if huge and fd < 0 and hasattr(mmap, "MADV_HUGEPAGE"):
            mapping._advise_huge()
        mapping._shared = fd >= 0
        if populate:
            mapping.populate(0, length)
        return mapping

    def __init__(self, length: int, fd: int = -1, huge: bool = True, populate: bool = True) -> None:
        super().__init__()

    def _advise_huge(self) -> None:
        with contextlib.suppress(OSError):  # a kernel without huge pages; small ones do
            self.madvise(mmap.MADV_HUGEPAGE)

    def populate(self, offset: int, length: int, /) -> None:
        """Fault in a part."""
        if offset < 0 or offset % HUGE_BYTES:
            raise ValueError(f"offset: {offset}, must be a multiple of {HUGE_BYTES}")
        if self.closed:
            raise ValueError("Mapping: closed")
        if length < 1 or offset + length > self.length:
            raise ValueError(f"length: {length} bytes from {offset} on, must lie within {self.length}")
        pages = np.frombuffer(self, dtype=np.uint8, count=length, offset=offset)[::PAGE_BYTES]
        if self._shared:
            pages.max()  # another process may be writing here, so only read
        else:
            pages[:] = 0
