"""Real memory at real addresses, as the kernel touches it: a piece at a time, until a request is complete.

Requests carry addresses, so a simulated kernel writes to where a real one would. `MemoryWatch` is the witness: no two
requests may be at work on the same bytes, if one of them writes there.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from typing import Final, TypeAlias

import numpy as np

from ...engines import requests as rq
from ...native import execute

__all__ = ["LazyMapping", "MemoryWatch", "Ranges", "is_closed", "put", "ranges_of", "take", "text_at"]

Ranges: TypeAlias = list[tuple[int, int]]
"""Address and length of each piece of a transfer, in order."""

IOVECS_MAX: Final = 1024


def text_at(address: int) -> str:
    """Return the NUL-terminated path at an address; UnicodeDecodeError never, as paths are bytes to the kernel."""
    return ctypes.string_at(address).decode(errors="surrogateescape")


def ranges_of(code: int, address: int, length: int) -> Ranges:
    """Return what a transfer moves: one range, or those of its list of vectors."""
    if code in (rq.OP_READ, rq.OP_WRITE):
        return [(address, length)]
    vectors = np.frombuffer(ctypes.string_at(address, length * rq.IOVEC.itemsize), dtype=rq.IOVEC)
    return list(zip(vectors["address"].tolist(), vectors["length"].tolist(), strict=True))


def take(ranges: Ranges, start: int, stop: int) -> bytes:
    """Copy bytes `start` to `stop` of what the ranges hold, one after another."""
    out = []
    for address, length in ranges:
        if start < length and stop > 0:
            low = max(start, 0)
            out.append(ctypes.string_at(address + low, min(stop, length) - low))
        start -= length
        stop -= length
    return out[0] if len(out) == 1 else b"".join(out)


def put(ranges: Ranges, start: int, data: bytes) -> None:
    """Copy `data` to where byte `start` of the ranges and the following lie."""
    at = 0
    for address, length in ranges:
        if at == len(data):
            return
        if start < length:
            count = min(length - start, len(data) - at)
            ctypes.memmove(address + start, data[at : at + count], count)
            at += count
            start = length
        start -= length


class LazyMapping(mmap.mmap):
    """Memory for an arena that is not prefaulted; otherwise as `ucm_async.native.Mapping`."""

    page_mode = "simulated"

    @property
    def length(self) -> int:
        """Bytes of it."""
        return len(self)

    def populate(self, offset: int, length: int) -> None:
        """Do nothing."""

    @property
    def address(self) -> int:
        """Where it starts."""
        return ctypes.addressof(ctypes.c_ubyte.from_buffer(self))


class MemoryWatch:
    """Which memory requests are at work on.

    Attributes
    ----------
    violations
        What was done that must not be, as text.
    """

    def __init__(self) -> None:
        self.violations: list[str] = []
        self._busy: list[tuple[Ranges, bool]] = []

    def begin(self, ranges: Ranges, writes: bool, what: str) -> tuple[Ranges, bool]:
        """Note that `what` reads the ranges, or writes to them, from now on; returns the token for `end`."""
        self.look(ranges, writes, what)
        token = (ranges, writes)
        self._busy.append(token)
        return token

    def end(self, token: tuple[Ranges, bool]) -> None:
        """Note that it is over."""
        self._busy = [one for one in self._busy if one is not token]

    def look(self, ranges: Ranges, writes: bool, what: str) -> None:
        """Complain if a transfer under way is at work on some of these bytes, and it or `what` writes there."""
        for others, they_write in self._busy:
            if not (writes or they_write):
                continue
            for address, length in ranges:
                if any(address < other + size and other < address + length for other, size in others):
                    does = "being written by" if they_write else "being read by"
                    self.violations.append(f"{what} at work on memory that is {does} a transfer under way")
                    return


def is_closed(gate: int) -> bool:
    """Tell whether the gate at an address is closed; 0 is no gate."""
    if not gate:
        return False
    _PROBE["gate"] = gate
    execute(_PROBE)
    return int(_PROBE["result"][0]) == -errno.ECANCELED


_BYTE: Final = np.zeros(1, dtype=np.uint8)
_PROBE: Final = rq.new_requests(1)
_PROBE["opcode"] = rq.OP_CHECKSUM
_PROBE["address"] = _BYTE.ctypes.data
_PROBE["length"] = 1
