"""Encoding and decoding without the extension: shards as they are, and their planes of bytes or bits.

So the codecs lz4 and zstd work here, too. The others say ENOSYS.
"""

from __future__ import annotations

import errno
import threading
from typing import Final, final

import numpy as np

from .. import coding as c
from ..types import U8
from .crc32c import crc32c
from .gate import through
from .memory import Data, array_of, view_of

CHUNK_ELEMENTS: Final = 32768
_WORDS: Final = {1: "u1", 2: "<u2", 4: "<u4"}


@final
class CodecContext:
    """Memory for encoding and decoding in one thread at a time; here it needs none."""

    def __init__(self, lossy_bytes: int = 0, wide: bool = True) -> None:
        if not 0 <= lossy_bytes <= c.SHARD_BYTES_MAX:
            raise ValueError(f"lossy_bytes: {lossy_bytes}, must be 0 ... {c.SHARD_BYTES_MAX}")
        self.nbytes = 0
        self.wide = False
        self._busy = threading.Lock()

    def encode(self, codings: Data, /) -> None:
        """Encode an array of CODING."""
        self._run(codings, _encode)

    def decode(self, codings: Data, /) -> None:
        """Decode an array of CODING."""
        self._run(codings, _decode)

    def _run(self, codings: Data, one: object) -> None:
        assert callable(one)
        rows = array_of(codings, c.CODING, "codings", writable=True)
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("the context is in use by another thread")
        try:
            for i in range(len(rows)):
                one(rows, i)
        finally:
            self._busy.release()


def _encode(rows: c.Codings, i: int) -> None:
    wrong = c.place_behind(rows, i)
    result = rows["result"][i] = wrong or _encode_one(rows, i)
    if rows["flags"][i] & c.CODING_CHECKSUM and result >= 0:
        rows["checksum"][i] = _checksum(int(rows["target"][i]), result)


def _checksum(address: int, length: int) -> int:
    return crc32c(view_of(address, length)) if length else 0


def _encode_one(rows: c.Codings, i: int) -> int:
    row = rows[i]
    length, codec = int(row["source_length"]), int(row["codec"])
    if length > c.SHARD_BYTES_MAX:
        return -errno.EMSGSIZE
    if int(row["target_length"]) < length:
        return -errno.ENOBUFS
    if codec in (c.BYTE_PLANES, c.BIT_PLANES):
        return _move(row, length, lambda raw, out: _planes(row, raw, out, apart=True))
    if codec not in (c.RAW, c.AUTO):
        return -errno.ENOSYS
    if codec == c.AUTO and not _is_known(row):
        return -errno.EINVAL
    rows["codec"][i] = c.RAW
    return _move(row, length, _copy)


def _decode(rows: c.Codings, i: int) -> None:
    if rows["flags"][i] & c.CODING_CHECKSUM:
        rows["checksum"][i] = _checksum(int(rows["source"][i]), int(rows["source_length"][i]))
    rows["result"][i] = _decode_one(rows[i])


def _decode_one(row: np.void) -> int:
    length, stored, codec = int(row["target_length"]), int(row["source_length"]), int(row["codec"])
    if length > c.SHARD_BYTES_MAX:
        return -errno.EMSGSIZE
    planes = codec in (c.BYTE_PLANES, c.BIT_PLANES)
    if not planes and codec not in (c.RAW, c.HUFFMAN, c.PACKED, c.FP8_E4M3, c.INT8, c.INT4, c.AUTO):
        return -errno.ENOSYS
    if stored != length:
        return -errno.ENOSYS if codec not in (c.RAW, c.AUTO) and not planes else -errno.EBADMSG
    if planes:
        result = _move(row, length, lambda source, raw: _planes(row, source, raw, apart=False))
        return -errno.EBADMSG if result == -errno.EINVAL else result
    return _move(row, length, _copy)


def _move(row: np.void, length: int, how: object) -> int:
    """Run `how(source, target)` inside the gate, over arrays of uint8."""
    assert callable(how)
    if length == 0:
        return 0
    source: U8 = np.frombuffer(view_of(int(row["source"]), length), np.uint8)
    target: U8 = np.frombuffer(view_of(int(row["target"]), length), np.uint8)
    wrong: list[int] = []

    def piece() -> None:
        result = how(source, target)
        if result:
            wrong.append(result)

    if not through(int(row["gate"]), piece):
        return -errno.ECANCELED
    return wrong[0] if wrong else length


def _copy(source: U8, target: U8) -> int:
    target[:] = source
    return 0


def _is_known(row: np.void) -> bool:
    return int(row["parameters"][0]) in c.DTYPE_BYTES and not row["parameters"][1:].any()


def _planes(row: np.void, source: U8, target: U8, *, apart: bool) -> int:
    """Elements to planes or back; what is no whole element stays as it is. Planes of bits go chunk by chunk."""
    if not _is_known(row):
        return -errno.EINVAL
    dtype = int(row["parameters"][0])
    width = c.DTYPE_BYTES[dtype]
    bits = int(row["codec"]) == c.BIT_PLANES
    one = _chunk_apart if apart else _chunk_together
    whole = len(source) // width * width
    step = CHUNK_ELEMENTS * width if bits else max(whole, 1)
    for start in range(0, whole, step):
        end = min(start + step, whole)
        target[start:end] = one(source[start:end], width, dtype != 0, bits)
    target[whole:] = source[whole:]
    return 0


def _chunk_apart(source: U8, width: int, rotated: bool, bits: bool) -> U8:
    words = source.view(_WORDS[width])
    if rotated:
        words = words << 1 | words >> (8 * width - 1)
    planes = np.ascontiguousarray(words).view(np.uint8).reshape(-1, width).T
    return np.concatenate([_bits_apart(plane) for plane in planes] if bits else list(planes))


def _chunk_together(source: U8, width: int, rotated: bool, bits: bool) -> U8:
    planes = source.reshape(width, -1)
    if bits:
        planes = np.stack([_bits_together(plane) for plane in planes])
    words = np.ascontiguousarray(planes.T).view(_WORDS[width])[:, 0]
    if rotated:
        words = words >> 1 | words << (8 * width - 1)
    return np.ascontiguousarray(words).view(np.uint8)


def _bits_apart(plane: U8) -> U8:
    whole = len(plane) // 8 * 8
    bits = np.unpackbits(plane[:whole], bitorder="little").reshape(-1, 8)
    return np.concatenate([np.packbits(bits.T, bitorder="little"), plane[whole:]])


def _bits_together(plane: U8) -> U8:
    whole = len(plane) // 8 * 8
    bits = np.unpackbits(plane[:whole], bitorder="little").reshape(8, -1)
    return np.concatenate([np.packbits(bits.T, bitorder="little"), plane[whole:]])
