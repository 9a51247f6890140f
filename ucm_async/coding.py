"""The packed coding: one shard to encode or decode. The record that the extension, its twin and the codecs share.

Many of them are a C-contiguous numpy array of `CODING`, which one call works through without the GIL. Who made the
array keeps source, target and gate alive until the call returns. The layout is that of ``ext/coding.h``; a test
compares the two.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "CODING",
    "MIXED",
    "PARAMETER_BYTES",
    "SHARD_BYTES_MAX",
    "Codings",
    "EncodedRows",
    "codec_label",
    "new_codings",
    "place_behind",
]

PARAMETER_BYTES: Final = 16
SHARD_BYTES_MAX: Final = 1 << 31

CODING: Final = np.dtype(
    [
        ("source", "<u8"),  # address
        ("source_length", "<u8"),
        ("target", "<u8"),  # address; must not overlap the source
        ("target_length", "<u8"),  # decoding: the raw length, exactly; encoding: at least that
        ("gate", "<u8"),  # address of a Gate that guards the raw side, be it source or target; 0 = none
        ("codec", "<u4"),  # a number below; encoding puts RAW where that is what was stored, and AUTO's choice
        ("flags", "<u4"),  # CODING_*
        ("parameters", "u1", PARAMETER_BYTES),
        ("checksum", "<u4"),  # with CODING_CHECKSUM: CRC-32C of the stored bytes, those that were read or written
        ("reserved", "<u4"),
        ("result", "<i8"),  # bytes written, or a negative errno: see CodecContext in _native.pyi
    ],
    align=False,
)

CODING_CHECKSUM: Final = 1
"""Fill in the checksum, while the stored bytes are in the cache."""
CODING_BEHIND: Final = 2
"""Encoding: the target is where the coding before it ended, and is filled in; it fails as that one failed."""

Codings: TypeAlias = npt.NDArray[Any]
"""A C-contiguous array of `CODING`, shape (n,)."""

# Numbers of codecs. They stand in headers, so none is ever given to another codec.
RAW: Final = 0
HUFFMAN: Final = 1
PACKED: Final = 2
FP8_E4M3: Final = 3
INT8: Final = 4
INT4: Final = 5
LZ4: Final = 16
ZSTD: Final = 17
# Never in a header: they only order the bytes, for compressors that are no part of the extension.
BYTE_PLANES: Final = 128
BIT_PLANES: Final = 129
AUTO: Final = 255

CODEC_NAMES: Final = {
    RAW: "raw",
    HUFFMAN: "huffman",
    PACKED: "packed",
    FP8_E4M3: "fp8_e4m3",
    INT8: "int8",
    INT4: "int4",
    LZ4: "lz4",
    ZSTD: "zstd",
}

# parameters[0]: the element type.
DTYPES: Final = {
    "uint8": 0,
    "int8": 0,
    "bfloat16": 1,
    "float16": 2,
    "float32": 3,
    "float8_e4m3": 4,
    "float8_e5m2": 5,
}
DTYPE_BYTES: Final = {0: 1, 1: 2, 2: 2, 3: 4, 4: 1, 5: 1}

FLAG_ENTROPY: Final = 1
"""In parameters[1] of a lossy codec: the Huffman coder stores what it stores."""

MIXED: Final = errno.ESTALE
"""Why an encoded shard is refused whose parameters are not those of its block's others: a header has one set."""


def new_codings(n: int) -> Codings:
    """Return `n` zeroed codings."""
    return np.zeros(n, dtype=CODING)


def place_behind(codings: Codings, i: int) -> int:
    """Do what CODING_BEHIND asks for coding `i`; returns 0, or the negative errno with which it fails."""
    if not codings["flags"][i] & CODING_BEHIND:
        return 0
    if i == 0:
        return -errno.EINVAL
    before = int(codings["result"][i - 1])
    if before < 0:
        return before
    codings["target"][i] = int(codings["target"][i - 1]) + before
    return 0


def codec_label(number: int) -> str:
    """Return the name of one of our codecs by its number in headers, or the number as text."""
    return CODEC_NAMES.get(number, str(number))


@dataclass(slots=True)
class EncodedRows:
    """What has to be known of encoded rows to store them, and to decode them. A row has k shards: a block's, or one.

    Attributes
    ----------
    codecs
        uint32, shape (n, k): by number; `RAW` where a shard did not shrink.
    offsets
        int64, shape (n, k): where each shard's stored bytes begin in the memory of its row.
    lengths
        int64, shape (n, k): bytes that are stored of it.
    checksums
        uint32, shape (n, k): CRC-32C of these.
    parameters
        uint8, shape (n, 16): of the codecs of a row.
    lossy
        Bool, shape (n,): whether they lose something.
    """

    codecs: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    checksums: npt.NDArray[np.uint32]
    parameters: npt.NDArray[np.uint8]
    lossy: npt.NDArray[np.bool_]

    @classmethod
    def zeros(cls, n: int, k: int) -> EncodedRows:
        """Return `n` rows of `k` shards, to be filled in."""
        return cls(
            np.zeros((n, k), np.uint32),
            np.zeros((n, k), np.int64),
            np.zeros((n, k), np.int64),
            np.zeros((n, k), np.uint32),
            np.zeros((n, PARAMETER_BYTES), np.uint8),
            np.zeros(n, np.bool_),
        )

    @classmethod
    def join(cls, parts: Sequence[EncodedRows]) -> EncodedRows:
        """Return the rows of all `parts`, one after another."""
        return cls(
            np.concatenate([one.codecs for one in parts]),
            np.concatenate([one.offsets for one in parts]),
            np.concatenate([one.lengths for one in parts]),
            np.concatenate([one.checksums for one in parts]),
            np.concatenate([one.parameters for one in parts]),
            np.concatenate([one.lossy for one in parts]),
        )

    def __len__(self) -> int:
        return len(self.codecs)

    def rows(self, which: Any) -> EncodedRows:
        """Return some rows: views for a slice, copies for indexes and masks."""
        return EncodedRows(
            self.codecs[which],
            self.offsets[which],
            self.lengths[which],
            self.checksums[which],
            self.parameters[which],
            self.lossy[which],
        )

    def put(self, which: Any, rows: EncodedRows) -> None:
        """Overwrite some rows."""
        self.codecs[which] = rows.codecs
        self.offsets[which] = rows.offsets
        self.lengths[which] = rows.lengths
        self.checksums[which] = rows.checksums
        self.parameters[which] = rows.parameters
        self.lossy[which] = rows.lossy
