"""CRC-32C (Castagnoli) with numpy: many lanes of the buffer advance together, then the lanes are folded into one value.

A CRC is linear over GF(2). So the register after ``A + B`` is the register after ``A``, moved past ``len(B)`` zero
bytes, xor the register of ``B`` started from zero; and zero bytes in front of a register of zero change nothing, which
lets the first lane be padded. The polynomial is that of RFC 3720, reflected.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .memory import Data, array_of

POLYNOMIAL: Final = 0x82F63B78
ALL_ONES: Final = 0xFFFFFFFF
WORD_BYTES: Final = 4
SHORT_BYTES: Final = 64  # below it a plain loop is as fast
CHUNK_BYTES: Final = 1 << 20  # lanes of one step stay in the processor's cache
LANES_PER_LANE_BYTE: Final = 16  # balance of steps (calls of numpy) against lanes (work a call)

Words = npt.NDArray[np.uint32]


def crc32c(data: Data, value: int = 0, /) -> int:
    """Return the CRC-32C of `data`, going on from `value`."""
    if not 0 <= value <= ALL_ONES:
        raise OverflowError(f"value: {value}, must fit in 32 bits")
    octets = array_of(data, np.uint8, "data")
    register = value ^ ALL_ONES
    for start in range(0, len(octets), CHUNK_BYTES):
        register = _advance(register, octets[start : start + CHUNK_BYTES])
    return register ^ ALL_ONES


def _advance(register: int, octets: npt.NDArray[np.uint8]) -> int:
    if len(octets) < SHORT_BYTES:
        table = _byte_table()
        for octet in octets.tolist():
            register = table[(register ^ octet) & 0xFF] ^ (register >> 8)
        return register
    return _past_zeros(register, len(octets)) ^ _lanes(octets)


def _lanes(octets: npt.NDArray[np.uint8]) -> int:
    """Register after `octets` from a register of zero."""
    lane_bytes = WORD_BYTES
    while lane_bytes * lane_bytes * LANES_PER_LANE_BYTE < len(octets):
        lane_bytes *= 2
    lanes = 1 << (-(-len(octets) // lane_bytes) - 1).bit_length()
    padded = np.zeros(lanes * lane_bytes, dtype=np.uint8)
    padded[len(padded) - len(octets) :] = octets
    steps = np.ascontiguousarray(padded.view("<u4").reshape(lanes, -1).T)
    low, high = _word_tables()
    registers = np.zeros(lanes, dtype=np.uint32)
    for word in steps:
        registers ^= word
        registers = low[registers & 0xFFFF] ^ high[registers >> 16]
    while len(registers) > 1:
        registers = _apply(_zeros_operator(lane_bytes), registers[0::2]) ^ registers[1::2]
        lane_bytes *= 2
    return int(registers[0])


def _past_zeros(register: int, count: int) -> int:
    """Move a register past `count` zero bytes."""
    one = np.array([register], dtype=np.uint32)
    for bit in range(count.bit_length()):
        if count >> bit & 1:
            one = _apply(_zeros_operator(1 << bit), one)
    return int(one[0])


def _apply(operator: Words, registers: Words) -> Words:
    """Apply an operator, uint32 of shape (4, 256): the image of each value of each byte of the register."""
    image: Words = operator[0][registers & 0xFF] ^ operator[1][registers >> 8 & 0xFF]
    image ^= operator[2][registers >> 16 & 0xFF]
    image ^= operator[3][registers >> 24]
    return image


@functools.cache
def _zeros_operator(count: int) -> Words:
    """Operator that moves a register past `count` (a power of two) zero bytes."""
    basis = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))
    if count == 1:
        images = np.array(_byte_table(), dtype=np.uint32)[basis & 0xFF] ^ (basis >> 8)
    else:
        half = _zeros_operator(count // 2)
        images = _apply(half, _apply(half, basis))
    return np.stack([_span(images[8 * byte : 8 * byte + 8]) for byte in range(WORD_BYTES)])


def _span(images: Words) -> Words:
    """All xor combinations of k images: index i combines those of the bits set in i. Shape (2**k,)."""
    combined = np.zeros(1, dtype=np.uint32)
    for image in images:
        combined = np.concatenate([combined, combined ^ image])
    return combined


@functools.cache
def _word_tables() -> tuple[Words, Words]:
    """Images of the low and the high half of a register that moves past one word. Shape (65536,) each."""
    operator = _zeros_operator(WORD_BYTES)
    basis: Any = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))
    images = _apply(operator, basis)
    return _span(images[:16]), _span(images[16:])


@functools.cache
def _byte_table() -> list[int]:
    table = []
    for octet in range(256):
        for _ in range(8):
            octet = octet >> 1 ^ (POLYNOMIAL if octet & 1 else 0)  # noqa: PLW2901
        table.append(octet)
    return table
