"""Decoders written from docs/design/codecs.md alone, in plain Python: slow, and nothing like the extension's."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

CHUNK = 32_768
WIDTH = {0: 1, 1: 2, 2: 2, 3: 4, 4: 1, 5: 1}
STEP = {0: 0, 1: 1, 2: 8, 3: 1, 4: 1, 5: 8}


def huffman_plane(data: bytes, count: int) -> list[int]:
    """Symbols of a Huffman-coded plane."""
    first, span = data[0], data[1] + 1
    lengths = {}
    for i in range(span):
        bits = data[2 + i // 2] >> 4 * (i % 2) & 15
        if bits:
            lengths[first + i] = bits
    codes, code, before = {}, 0, 0
    for bits, symbol in sorted((bits, symbol) for symbol, bits in lengths.items()):
        code <<= bits - before
        before = bits
        codes[format(code, f"0{bits}b")] = symbol
        code += 1
    at = 2 + (span + 1) // 2
    sizes = struct.unpack_from("<4H", data, at)
    at += 8
    streams = []
    for size in sizes:
        streams.append("".join(format(byte, "08b") for byte in data[at : at + size]))
        at += size
    assert at == len(data)
    symbols, places = [], [0] * 4
    for i in range(count):
        k = i // 128 % 4
        end = places[k] + 1
        while streams[k][places[k] : end] not in codes:
            end += 1
            assert end - places[k] <= 11
        symbols.append(codes[streams[k][places[k] : end]])
        places[k] = end
    for stream, place in zip(streams, places, strict=True):
        assert len(stream) - place < 8
    return symbols


def plane(method: int, data: bytes, count: int, step: int) -> list[int]:
    """Symbols of a plane, by its method."""
    if method == 0:
        return list(data)
    if method == 1:
        assert len(data) == 1
        return [data[0]] * count
    if method == 2:
        return huffman_plane(data, count)
    assert method == 3
    lowest, bases = data[0], -(-count // 256)
    symbols = huffman_plane(data[1 + bases :], count)
    added = [lowest + step * (data[1 + run // 2] >> 4 * (run % 2) & 15) - 128 for run in range(-(-count // 128))]
    return [(symbol + added[i // 128]) % 256 for i, symbol in enumerate(symbols)]


def elements_of(planes: list[list[int]], dtype: int) -> bytes:
    """Bytes of the elements, from their planes, the top one last."""
    width = WIDTH[dtype]
    if dtype == 4:
        low, top = planes
        planes = [[high << 4 | low[i // 2] >> 4 * (i % 2) & 15 for i, high in enumerate(top)]]
    out = bytearray()
    for symbols in zip(*planes, strict=True):
        word = sum(symbol << 8 * i for i, symbol in enumerate(symbols))
        if dtype != 0:
            word = word >> 1 | (word & 1) << 8 * width - 1
        out += word.to_bytes(width, "little")
    return bytes(out)


def huffman(payload: bytes, raw_length: int, dtype: int) -> bytes:
    """Decode what the codec "huffman" stored."""
    width = WIDTH[dtype]
    count_planes = 2 if dtype == 4 else width
    out, at = b"", 0
    while len(out) + width <= raw_length:
        count = min(CHUNK, (raw_length - len(out)) // width)
        words = struct.unpack_from(f"<{count_planes}I", payload, at)
        at += 4 * count_planes
        planes = []
        for i, word in enumerate(words):
            symbols = (count + 1) // 2 if dtype == 4 and i == 0 else count
            step = STEP[dtype] if i == count_planes - 1 else 0
            size = word & 0xFFFFFF
            planes.append(plane(word >> 24, payload[at : at + size], symbols, step))
            assert len(planes[-1]) == symbols
            at += size
        out += elements_of(planes, dtype)
    return out + payload[at:]


def packed(payload: bytes, raw_length: int, dtype: int) -> bytes:
    """Decode what the codec "packed" stored."""
    width = WIDTH[dtype]
    runs, tail = divmod(raw_length, 128 * width)
    rest = runs * 65
    escapes = list(payload[rest + runs * 128 * (width - 1) + tail :])
    top = []
    for run in range(runs):
        base = payload[run]
        nibbles = payload[runs + 64 * run : runs + 64 * run + 64]
        for above in [byte & 15 for byte in nibbles] + [byte >> 4 for byte in nibbles]:
            top.append(escapes.pop(0) if base and not above else base + above)
    assert not escapes
    lower = [list(payload[rest + i * runs * 128 : rest + (i + 1) * runs * 128]) for i in range(width - 1)]
    start = rest + runs * 128 * (width - 1)
    return elements_of([*lower, top], dtype) + payload[start : start + tail]


E4M3 = np.array(
    [
        (-1.0 if code & 0x80 else 1.0)
        * ((code & 7) * 2.0**-9 if not code & 0x78 else (8 + (code & 7)) * 2.0 ** ((code >> 3 & 15) - 10))
        if code & 0x7F != 0x7F
        else np.nan
        for code in range(256)
    ],
    np.float32,
)
"""The value of every code."""


def nearest_e4m3(values: npt.NDArray[np.float32]) -> U8:
    """Codes nearest to finite values, ties to the even one, saturating."""
    positive = E4M3[:0x7F].astype(np.float64)
    magnitudes = np.minimum(np.abs(values.astype(np.float64)), 448.0)
    right = np.searchsorted(positive, magnitudes)
    left = np.maximum(right - 1, 0)
    down, up = magnitudes - positive[left], positive[right] - magnitudes
    codes = np.where(down < up, left, np.where(up < down, right, np.where(left % 2 == 0, left, right)))
    return (codes | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


_PARAMETERS = struct.Struct("<BBBxHHHHI")


def groups_of(parameters: bytes, elements: int) -> tuple[npt.NDArray[np.int64], int]:
    """For each element of the whole parts the number of its group, and how many groups there are."""
    _, _, parts, group_tokens, group_channels, tokens, channels, part_elements = _PARAMETERS.unpack(parameters)
    numbers: list[Any] = []
    first = 0
    for part in range(elements // part_elements):
        keys = parts == 1 or (parts == 2 and part % 2 == 0)
        rows = np.arange(part_elements // channels)[:, None]
        columns = np.arange(channels)[None, :]
        if keys:
            bands = rows // tokens * -(-tokens // group_tokens) + rows % tokens // group_tokens
            one = bands * channels + columns
        else:
            one = rows * -(-channels // group_channels) + columns // group_channels
        numbers.append(first + one.reshape(-1))
        first += int(one.max()) + 1
    return (np.concatenate(numbers) if numbers else np.zeros(0, np.int64)), first


def steps_of(payload: bytes, groups: int) -> npt.NDArray[np.float64]:
    """The step of each group."""
    (exponent,) = struct.unpack_from("<hxx", payload)
    codes = np.frombuffer(payload, np.uint8, groups, 4)
    return np.exp2(exponent - codes / 8.0)


def grouped_values(payload: bytes, parameters: bytes, raw_length: int, int4: bool) -> tuple[Any, Any, bytes]:
    """Values, float64, and steps of the elements of whole parts, and the bytes after them."""
    width = WIDTH[parameters[0]]
    elements = raw_length // width // _PARAMETERS.unpack(parameters)[7] * _PARAMETERS.unpack(parameters)[7]
    group, groups = groups_of(parameters, elements)
    step = steps_of(payload, groups)[group]
    at = 4 + groups
    lowest = np.full(groups, -127)
    if int4:
        lowest = np.frombuffer(payload, np.int8, groups, at).astype(int)
        at += groups
        pairs = np.frombuffer(payload, np.uint8, elements // 2, at)
        levels = np.stack([pairs & 15, pairs >> 4], 1).reshape(-1).astype(int)
        at += elements // 2
    else:
        levels = np.frombuffer(payload, np.uint8, elements, at).astype(int)
        at += elements
    return (levels + lowest[group]) * step, step, payload[at:]
