"""Raw memory from Python: views of addresses, and the addresses of views."""

from __future__ import annotations

import ctypes
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..engines.requests import IOVEC, REQUEST, Requests

Data: TypeAlias = Any
"""Anything with the buffer protocol. No type says that before Python 3.12."""

IOV_MAX: Final = 1024
WORD_BYTES: Final = 8
_PYBUF_WRITE: Final = 0x200
_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.restype = ctypes.py_object
_view.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)


def view_of(address: int, length: int) -> memoryview:
    """Return a writable view of `length` bytes at `address`. Nothing keeps the memory alive."""
    view: memoryview = _view(address, length, _PYBUF_WRITE)
    return view


def path_of(address: int) -> bytes:
    """Return the NUL-terminated path at `address`."""
    return ctypes.string_at(address)


def iovecs_of(address: int, count: int) -> list[memoryview]:
    """Return views of the `count` ranges that an array of ``iovec`` at `address` lists. ValueError past `IOV_MAX`."""
    if count > IOV_MAX:
        raise ValueError(f"{count} iovecs, the kernel takes {IOV_MAX}")
    table = np.frombuffer(view_of(address, count * IOVEC.itemsize), dtype=IOVEC)
    return [view_of(base, length) for base, length in table.tolist()]


def address_of(data: Data) -> int:
    """Return where the bytes of a C-contiguous buffer lie."""
    return int(np.frombuffer(data, dtype=np.uint8).__array_interface__["data"][0])


def array_of(data: Data, dtype: npt.DTypeLike, name: str, *, writable: bool = False) -> npt.NDArray[Any]:
    """Return a flat array over `data`, which the errors call `name`: as strict about it as the extension.

    Raises
    ------
    TypeError, BufferError
        No buffer protocol; not C-contiguous, or read-only where it must be writable.
    ValueError
        Not a whole number of items, or not aligned to words.
    """
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("not C-contiguous")
    if writable and view.readonly:
        raise BufferError("read-only")
    item = np.dtype(dtype)
    if view.nbytes % item.itemsize:
        raise ValueError(f"{name}: {view.nbytes} bytes, must be a multiple of {item.itemsize}")
    if view.nbytes == 0:
        return np.empty(0, dtype=item)
    octets = np.frombuffer(data, dtype=np.uint8)
    if octets.ctypes.data % min(item.itemsize, WORD_BYTES):
        raise ValueError(f"{name}: not aligned")
    return octets.view(item)


def requests_of(data: Data) -> Requests:
    """Return the requests in `data`, writable in place."""
    return array_of(data, REQUEST, "requests", writable=True)
