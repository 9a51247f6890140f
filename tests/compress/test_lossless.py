"""Every bit comes back: real and random shards, all element types, odd lengths."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ucm_async import coding as c
from ucm_async.errors import ConfigError
from ucm_async.native import NATIVE
from ucm_async.stages.compress.codecs import Context, Layout, make_codec

from .tools import (
    BLOCK_BYTES,
    DTYPES,
    SPECIALS,
    as_dtype,
    decoded,
    encode,
    kv_blocks,
    new_context,
    random_length,
    random_shard,
)

SHARDS = int(os.environ.get("UCM_ASYNC_CODEC_SHARDS", "150"))
"""Random shards for each codec; 10000 for the long form."""

SPECS = ("raw", "auto", "huffman", "packed", "lz4", "lz4:planes=bytes", "lz4:planes=none", "zstd", "zstd:planes=bits")
PACKED_DTYPES = ("bfloat16", "float32")

needs_extension = pytest.mark.skipif(not NATIVE, reason="needs the extension")


def dtypes_of(spec: str) -> tuple[str, ...]:
    return PACKED_DTYPES if spec == "packed" else DTYPES


@needs_extension
@pytest.mark.parametrize("spec", SPECS)
def test_random_and_real_shards(spec: str) -> None:
    contexts = [new_context(), new_context(wide=False)]
    codecs = [make_codec(spec, Layout(dtype)) for dtype in dtypes_of(spec)]
    shrunk = 0
    for seed in range(SHARDS):
        rng = np.random.default_rng(seed)
        which = seed % len(codecs)
        raw = random_shard(rng, dtypes_of(spec)[which], random_length(rng))
        stored = encode(codecs[which], raw, contexts[seed % 2])
        assert np.array_equal(decoded(stored, contexts[seed // 2 % 2]), raw), seed
        assert (stored.codec == c.RAW) == (len(stored.payload) == len(raw)), seed
        shrunk += stored.codec != c.RAW
    assert shrunk > SHARDS // 5 or spec == "raw"


@needs_extension
@pytest.mark.parametrize("shard_bytes", [BLOCK_BYTES, 65_536, 12_288])
@pytest.mark.parametrize(
    ("spec", "ratio"), [("huffman", 1.45), ("packed", 1.30), ("auto", 1.45), ("lz4", 1.15), ("zstd", 1.37)]
)
def test_real_blocks_shrink_as_promised(spec: str, ratio: float, shard_bytes: int, context: Context) -> None:
    codec = make_codec(spec)
    raw_total = stored_total = 0
    for block in kv_blocks()[::5]:
        for start in range(0, min(BLOCK_BYTES, 40 * shard_bytes), shard_bytes):
            raw = np.ascontiguousarray(block[start : start + shard_bytes])
            stored = encode(codec, raw, context)
            assert np.array_equal(decoded(stored, context), raw)
            raw_total += len(raw)
            stored_total += len(stored.payload)
    assert raw_total / stored_total >= ratio


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", ["auto", "huffman", "packed", "lz4", "zstd"])
def test_special_values_keep_every_bit(spec: str, dtype: str, context: Context) -> None:
    if dtype not in dtypes_of(spec):
        pytest.skip("the codec does not take it")
    codec = make_codec(spec, Layout(dtype))
    item = Layout(dtype).itemsize
    specials = np.array(SPECIALS[item], f"<u{item}")
    rng = np.random.default_rng(5)
    words = as_dtype(rng.normal(0, 1, 3000), dtype).copy().view(f"<u{item}")
    for share in (0.002, 0.1, 1.0):
        some = words.copy()
        places = rng.random(len(words)) < share
        some[places] = rng.choice(specials, int(places.sum()))
        raw = some.view(np.uint8)
        assert np.array_equal(decoded(encode(codec, raw, context), context), raw)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_there_is(dtype: str) -> None:
    """All 2**16 patterns, in order and shuffled, with the kernels of both kinds."""
    words = np.arange(1 << 16, dtype="<u2")
    if Layout(dtype).itemsize == 4:
        words = (words.astype("<u4") << 16 | words).view("<u2")
    np.random.default_rng(1).shuffle(words[len(words) // 2 :])
    raw = words.view(np.uint8)
    contexts = [new_context(), new_context(wide=False)]
    for spec in ("huffman", "packed", "auto", "lz4", "zstd"):
        if dtype not in dtypes_of(spec):
            continue
        stored = [encode(make_codec(spec, Layout(dtype)), raw, context) for context in contexts]
        assert stored[0] == stored[1], "both kinds of kernels store the same"
        for one in contexts:
            assert np.array_equal(decoded(stored[0], one), raw)


@needs_extension
@settings(max_examples=60)
@given(
    data=st.data(),
    spec=st.sampled_from(SPECS),
    length=st.integers(0, 3000)
    | st.sampled_from([1, 127, 128, 129, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537]),
)
def test_any_bytes(data: st.DataObject, spec: str, length: int) -> None:
    dtype = data.draw(st.sampled_from(dtypes_of(spec)))
    alphabet = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=40))
    weights = data.draw(st.integers(0, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    chance = np.exp2(-np.arange(len(alphabet)) * weights / 3.0)
    raw = rng.choice(np.array(alphabet, np.uint8), length, p=chance / chance.sum())
    context = _shared_context()
    assert np.array_equal(decoded(encode(make_codec(spec, Layout(dtype)), raw, context), context), raw)


def _shared_context(found: list[Context] = []) -> Context:  # noqa: B006
    if not found:
        found.append(new_context())
    return found[0]


@needs_extension
def test_the_same_bytes_every_time(context: Context) -> None:
    """What a context did before leaves no trace in what it does next."""
    codec = make_codec("huffman")
    raw = np.ascontiguousarray(kv_blocks()[0][:50_000])
    first = encode(codec, raw, context)
    encode(make_codec("fp8_e4m3+huffman"), np.ascontiguousarray(kv_blocks()[3]), context)
    encode(make_codec("huffman", Layout("uint8")), np.arange(256, dtype=np.uint8), context)
    assert encode(codec, raw, context) == first == encode(codec, raw, new_context())


@needs_extension
def test_auto_takes_what_suits(context: Context) -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, 65_536, dtype=np.uint8)
    real = np.ascontiguousarray(kv_blocks()[0][:65_536])
    exponents = np.exp2(rng.integers(-14, 1, 32_768).astype(np.float64))
    flat = as_dtype(exponents * rng.uniform(1, 2, 32_768) * rng.choice([-1, 1], 32_768), "bfloat16")
    chosen = {
        name: encode(make_codec("auto"), raw, context).codec
        for name, raw in {"noise": noise, "real": real, "flat": flat.copy()}.items()
    }
    assert chosen == {"noise": c.RAW, "real": c.HUFFMAN, "flat": c.PACKED}
    assert encode(make_codec("auto", Layout("uint8")), noise, context).codec == c.RAW


@pytest.mark.parametrize("dtype", [one for one in DTYPES if one not in PACKED_DTYPES])
def test_packed_refuses_other_types(dtype: str) -> None:
    with pytest.raises(ConfigError, match="must be one of 'bfloat16', 'float32'"):
        make_codec("packed", Layout(dtype))
