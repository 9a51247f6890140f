"""The packed coding: one shard to encode or decode. The record that the extension, its twin and the codecs share.

Many of them are a C-contiguous numpy array of `CODING`, which one call works through without the GIL. Who made the
array keeps source, target and gate alive until the call returns. The layout is that of ``ext/coding.h``; a test
compares the two.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["CODING", "PARAMETER_BYTES", "SHARD_BYTES_MAX", "Codings", "new_codings"]

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
        ("reserved", "<u4"),
        ("parameters", "u1", PARAMETER_BYTES),
        ("result", "<i8"),  # bytes written, or a negative errno: see CodecContext in _native.pyi
    ],
    align=False,
)

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


def new_codings(n: int) -> Codings:
    """Return `n` zeroed codings."""
    return np.zeros(n, dtype=CODING)
