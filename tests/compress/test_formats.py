"""What is stored is what docs/design/codecs.md says: a second decoder, in Python, reads it."""

from __future__ import annotations

import numpy as np
import pytest

from ucm_async import coding as c
from ucm_async.stages.compress.codecs import Context, Layout, make_codec

from . import reference
from .tools import DTYPES, ITEM_BYTES, encode, kv_blocks, random_shard, to_float


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("elements", [1, 130, 600, 5000])
def test_huffman(dtype: str, elements: int, context: Context) -> None:
    codec = make_codec("huffman", Layout(dtype))
    stored_any = False
    for seed in range(4):
        rng = np.random.default_rng([seed, elements])
        raw = random_shard(rng, dtype, elements * ITEM_BYTES[dtype] + seed % ITEM_BYTES[dtype])
        stored = encode(codec, raw, context)
        if stored.codec == c.HUFFMAN:
            stored_any = True
            assert reference.huffman(stored.payload, len(raw), codec.parameters[0]) == raw.tobytes()
    assert stored_any or elements < 600


def test_huffman_of_several_chunks(context: Context) -> None:
    raw = np.ascontiguousarray(kv_blocks()[2][:140_001])
    stored = encode(make_codec("huffman"), raw, context)
    assert reference.huffman(stored.payload, len(raw), 1) == raw.tobytes()


@pytest.mark.parametrize("length", [256, 70_000, 70_001])
def test_packed(length: int, context: Context) -> None:
    raw = kv_blocks()[1][:length].copy()
    raw[1000:1100] = 0
    stored = encode(make_codec("packed"), raw, context)
    assert stored.codec == c.PACKED
    assert reference.packed(stored.payload, length, 1) == raw.tobytes()


def test_packed_of_32_bits(context: Context) -> None:
    raw = to_float(np.ascontiguousarray(kv_blocks()[1][:20_000]), "bfloat16").view(np.uint8)
    stored = encode(make_codec("packed", Layout("float32")), raw, context)
    assert stored.codec == c.PACKED
    assert reference.packed(stored.payload, len(raw), 3) == raw.tobytes()


@pytest.mark.parametrize("spec", ["huffman", "packed", "zstd", "lz4"])
def test_headers_name_the_codec(spec: str, context: Context) -> None:
    codec = make_codec(spec)
    stored = encode(codec, np.ascontiguousarray(kv_blocks()[0][:65_536]), context)
    numbers = {"huffman": 1, "packed": 2, "lz4": 16, "zstd": 17}
    planes = {"zstd": 1, "lz4": 2}
    assert stored.codec == codec.number == numbers[spec]
    assert stored.parameters == codec.parameters == bytes([1, planes.get(spec, 0)]) + bytes(14)
