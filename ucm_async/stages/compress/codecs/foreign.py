"""Codecs of other packages: elements by planes, by the extension, and then a general compressor, shard by shard."""

from __future__ import annotations

import ctypes
import errno
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np

from .... import coding as c
from ....coding import Codings
from ....engines import requests as rq
from ....errors import ConfigError
from ....native import execute
from ....types import U8
from .base import Codec, Context, Layout

__all__ = ["ForeignCodec"]

# parameters[1]: in which order the compressor gets the bytes.
_NONE, _BYTES, _BITS = 0, 1, 2
_PLANES: Final = {"none": _NONE, "bytes": _BYTES, "bits": _BITS}
_ORDERS: Final = {_NONE: c.RAW, _BYTES: c.BYTE_PLANES, _BITS: c.BIT_PLANES}

_LENGTH: Final = np.dtype("<u4")
_PYBUF_READ: Final = 0x100
_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.restype = ctypes.py_object
_view.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)


class ForeignCodec(Codec):
    """A compressor that knows only bytes.

    Parameters
    ----------
    layout
        Its `dtype` counts.
    planes
        How elements are ordered for the compressor: "bytes" compresses each plane by itself, "bits" and "none" a shard
        as a whole.
    """

    error: ClassVar[type[Exception]]
    """What the package raises for a payload that is none."""

    def __init__(self, layout: Layout, planes: Any) -> None:
        if planes not in _PLANES:
            raise ConfigError(f"codec {self.name!r}: planes {planes!r}, must be one of {', '.join(map(repr, _PLANES))}")
        self.parameters = bytes((layout.dtype_number, _PLANES[planes])).ljust(c.PARAMETER_BYTES, b"\0")

    @abstractmethod
    def compress(self, data: memoryview, context: Context) -> bytes:
        """Compress one plane, or one shard; the result need not say how long it is."""

    @classmethod
    @abstractmethod
    def decompress(cls, payload: memoryview, raw_length: int, context: Context) -> bytes:
        """Decompress to at most `raw_length` bytes in as much memory; raises `error` for a bad payload."""

    def _encode(self, codings: Codings, context: Context) -> None:
        with context.entered():
            for i in range(len(codings)):
                codings["result"][i] = c.place_behind(codings, i) or self._encode_row(codings[i], context)
                if codings["result"][i] == 0:  # did not shrink
                    self._copy_row(codings, i, context)
            _take_checksums(codings)

    @classmethod
    def decode(cls, codings: Codings, context: Context) -> None:
        """See `Codec.decode`."""
        with context.entered():
            for i in range(len(codings)):
                codings["result"][i] = cls._decode_row(codings[i], context)

    def _copy_row(self, codings: Codings, i: int, context: Context) -> None:
        row = codings[i]
        raw, stored = ((int(row[one]), int(row["source_length"])) for one in ("source", "target"))
        codings["codec"][i] = c.RAW
        codings["result"][i] = context.run_one(c.RAW, 0, raw, stored, int(row["gate"]), encode=True)

    def _encode_row(self, row: np.void, context: Context) -> int:
        """Returns the stored length, 0 if that would not be less, or a negative errno."""
        length = int(row["source_length"])
        if length > context.shard_bytes or int(row["target_length"]) < length:
            return -errno.ENOBUFS
        dtype, planes = int(row["parameters"][0]), int(row["parameters"][1])
        ordered = context.scratch[:length]
        raw = (int(row["source"]), length)
        result = context.run_one(_ORDERS[planes], dtype, raw, _place(ordered), int(row["gate"]), encode=True)
        if result <= 0:
            return result
        pieces, tail = _cut(ordered, dtype, planes)
        stored = [self._shrink(piece, context) for piece in pieces]
        lengths = [np.array([len(one) for one in stored], _LENGTH).view(np.uint8)] if planes == _BYTES else []
        parts = [*lengths, *stored, tail]
        if sum(map(len, parts)) >= length:
            return 0
        return _put(parts, int(row["target"]), context)

    def _shrink(self, piece: U8, context: Context) -> U8:
        packed = self.compress(piece.data, context) if len(piece) else b""
        return np.frombuffer(packed, np.uint8) if len(packed) < len(piece) else piece

    @classmethod
    def _decode_row(cls, row: np.void, context: Context) -> int:
        stored, length = int(row["source_length"]), int(row["target_length"])
        dtype, planes = int(row["parameters"][0]), int(row["parameters"][1])
        raw = (int(row["target"]), length)
        if stored == length:  # did not shrink
            return context.run_one(c.RAW, 0, (int(row["source"]), stored), raw, int(row["gate"]), encode=False)
        if stored > length or planes not in _ORDERS or dtype not in c.DTYPE_BYTES or row["parameters"][2:].any():
            return -errno.EBADMSG
        if length > context.shard_bytes:
            return -errno.ENOBUFS
        payload: U8 = np.frombuffer(_view(int(row["source"]), stored, _PYBUF_READ), np.uint8)
        ordered = context.scratch[:length]
        try:
            cls._expand(payload, *_cut(ordered, dtype, planes), planes == _BYTES, context)
        except (cls.error, _WrongLengthError):
            return -errno.EBADMSG
        return context.run_one(_ORDERS[planes], dtype, _place(ordered), raw, int(row["gate"]), encode=False)

    @classmethod
    def _expand(cls, payload: U8, pieces: Sequence[U8], tail: U8, has_lengths: bool, context: Context) -> None:
        """Fill `pieces` and `tail`."""
        at = _LENGTH.itemsize * len(pieces) if has_lengths else 0
        body = len(payload) - at - len(tail)
        if body < 0:
            raise _WrongLengthError
        lengths = payload[:at].view(_LENGTH).tolist() if has_lengths else [body]
        if sum(lengths) != body:
            raise _WrongLengthError
        for piece, length in zip(pieces, lengths, strict=True):
            packed = payload[at : at + length]
            data = packed
            if length != len(piece):
                data = np.frombuffer(cls.decompress(packed.data, len(piece), context), np.uint8)
                if len(data) != len(piece):
                    raise _WrongLengthError
            _put([data], piece.ctypes.data, context)
            at += length
        _put([payload[at:]], tail.ctypes.data, context)


class _WrongLengthError(Exception):
    """Lengths in a payload do not fit each other."""


def _cut(ordered: U8, dtype: int, planes: int) -> tuple[list[U8], U8]:
    """Return what is compressed by itself, and what is no whole element and stays as it is."""
    if planes != _BYTES:
        return [ordered], ordered[len(ordered) :]
    width = c.DTYPE_BYTES[dtype]
    elements = len(ordered) // width
    return [ordered[i * elements : (i + 1) * elements] for i in range(width)], ordered[width * elements :]


def _take_checksums(codings: Codings) -> None:
    """Fill in the checksums that are asked for."""
    rows = np.flatnonzero((codings["flags"] & c.CODING_CHECKSUM > 0) & (codings["result"] >= 0))
    requests = rq.new_requests(len(rows))
    requests["opcode"] = rq.OP_CHECKSUM
    requests["address"] = codings["target"][rows]
    requests["length"] = codings["result"][rows]
    execute(requests)
    codings["checksum"][rows] = requests["result"]


def _place(data: U8) -> tuple[int, int]:
    """Address and length; whoever calls keeps the array alive."""
    return data.ctypes.data, len(data)


def _put(parts: Sequence[U8], target: int, context: Context) -> int:
    """Copy one after another to the address `target`, without the GIL; returns how many bytes."""
    at = target
    for part in parts:
        at += context.run_one(c.RAW, 0, _place(part), (at, len(part)), 0, encode=True)
    return at - target
