"""What lossy codecs keep, what they lose, and that it is no more than they say."""

from __future__ import annotations

import numpy as np
import pytest

from ucm_async import coding as c
from ucm_async.errors import ConfigError
from ucm_async.stages.compress.codecs import Context, Layout, make_codec

from . import reference
from .tools import BLOCK_BYTES, as_dtype, decoded, encode, encode_result, kv_blocks, new_context, to_float

KV = Layout("bfloat16", "kv", tokens=16, channels=64, part_bytes=6144)
FLOATS = ("bfloat16", "float16", "float32")
SPECS = ("fp8_e4m3", "fp8_e4m3+huffman", "int8", "int8+huffman", "int4", "int4+huffman")


def relative_l2(raw: np.ndarray, back: np.ndarray) -> float:
    return float(np.linalg.norm(raw - back) / np.linalg.norm(raw))


@pytest.mark.parametrize(
    ("spec", "ratio", "error"),
    [
        ("fp8_e4m3", 2.0, 0.03),
        ("fp8_e4m3+huffman", 2.3, 0.03),
        ("int8", 1.9, 0.006),
        ("int8+huffman", 1.92, 0.006),
        ("int4", 3.2, 0.06),
        ("int4+huffman", 3.4, 0.06),
    ],
)
def test_ratio_and_error_on_real_blocks(spec: str, ratio: float, error: float, context: Context) -> None:
    codec = make_codec(spec, KV)
    assert not codec.lossless
    for block in kv_blocks()[::3]:
        stored = encode(codec, block.copy(), context)
        assert BLOCK_BYTES / len(stored.payload) >= ratio
        back = decoded(stored, context)
        assert relative_l2(to_float(block, "bfloat16"), to_float(back, "bfloat16")) <= error


def finite_patterns(dtype: str) -> np.ndarray:
    words = np.arange(1 << 16, dtype="<u2")
    if dtype == "float32":
        words = (words.astype("<u4") << 16 | 0x8765).view("<u2")
    data = words.view(np.uint8)
    with np.errstate(invalid="ignore"):
        return np.ascontiguousarray(
            data.view(f"<u{4 if dtype == 'float32' else 2}")[np.isfinite(to_float(data, dtype))]
        )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("power", [0, 3, -5])
def test_fp8_rounds_every_finite_element_to_the_nearest(dtype: str, power: int, context: Context) -> None:
    raw = finite_patterns(dtype).view(np.uint8)
    stored = encode(make_codec("fp8_e4m3", Layout(dtype), power=power), raw, context)
    with np.errstate(over="ignore"):
        scaled = to_float(raw, dtype).astype(np.float64) * 2.0**power
    assert np.array_equal(np.frombuffer(stored.payload, np.uint8), reference.nearest_e4m3(scaled))
    back = to_float(decoded(stored, context), dtype)
    assert np.array_equal(back, reference.E4M3[np.frombuffer(stored.payload, np.uint8)] * np.float32(2.0**-power))
    assert np.array_equal(np.signbit(back), np.signbit(to_float(raw, dtype)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_code_of_fp8_has_its_value(dtype: str, context: Context) -> None:
    raw = as_dtype(np.ones(256), dtype).copy()
    stored = encode(make_codec("fp8_e4m3", Layout(dtype)), raw, context)
    stored.payload = bytes(range(256))
    back = to_float(decoded(stored, context), dtype)
    numbers = ~np.isnan(reference.E4M3)
    assert np.array_equal(back[numbers], reference.E4M3[numbers])
    assert (np.abs(back[~numbers]) == 480).all(), "codes that are never stored"


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("special", ["nan", "inf", "-inf"])
def test_a_shard_that_is_not_finite_is_stored_raw(spec: str, dtype: str, special: str, context: Context) -> None:
    values = np.random.default_rng(0).normal(0, 1, 40_000)
    values[39_999 // 64 * 64 - 1] = float(special)
    raw = as_dtype(values, dtype).copy()
    stored = encode(make_codec(spec, Layout(dtype)), raw, context)
    assert stored.codec == c.RAW
    assert np.array_equal(decoded(stored, context), raw)


@pytest.mark.parametrize("int4", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("parts", "tokens", "channels", "group_tokens", "group_channels", "tables"),
    [
        ("v", 1, 64, 16, 64, 1),
        ("k", 16, 64, 16, 64, 3),
        ("kv", 16, 128, 16, 32, 2),
        ("kv", 10, 34, 4, 16, 1),
        ("kv", 5, 2300, 512, 1000, 1),
    ],
)
def test_integers_are_within_a_step(
    int4: bool,
    dtype: str,
    parts: str,
    tokens: int,
    channels: int,
    group_tokens: int,
    group_channels: int,
    tables: int,
    context: Context,
) -> None:
    item = 4 if dtype == "float32" else 2
    layout = Layout(dtype, parts, tokens, channels, tables * tokens * channels * item)
    name = "int4" if int4 else "int8"
    codec = make_codec(name, layout, group_tokens=group_tokens, group_channels=group_channels)
    rng = np.random.default_rng(7)
    shape = (5, tables * tokens, channels)
    values = rng.normal(0, 1, shape) * np.exp2(rng.normal(0, 2, (5, 1, channels))) + rng.normal(0, 1, (5, 1, channels))
    raw = np.concatenate([as_dtype(values.reshape(-1), dtype), rng.integers(0, 256, 2 * item + 1, dtype=np.uint8)])
    stored = encode(codec, raw, context)
    assert stored.codec == codec.number
    expected, step, tail = reference.grouped_values(stored.payload, codec.parameters, len(raw), int4)
    assert tail == raw[-2 * item - 1 :].tobytes(), "what is no whole part stays as it is"
    back = decoded(stored, context)
    assert back[-2 * item - 1 :].tobytes() == tail
    exact = to_float(raw[: -2 * item - 1].copy(), dtype).astype(np.float64)
    found = to_float(back[: -2 * item - 1].copy(), dtype).astype(np.float64)
    precision = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-22}[dtype]
    assert np.allclose(found, expected, rtol=precision, atol=1e-7 * float(step.max()))
    worst = np.abs(expected - exact) / step
    assert worst.max() <= (1.01 if int4 else 0.501)
    group, count = reference.groups_of(codec.parameters, len(exact))
    need = steps_needed(exact, group, count, int4)
    assert (step >= need[group] * 0.999999).all(), "no step is too small"
    assert (step <= need[group] * 2**0.126).all(), "and none is an eighth of an octave too large"


def steps_needed(values: np.ndarray, group: np.ndarray, count: int, int4: bool) -> np.ndarray:
    low, high, far = np.full(count, np.inf), np.full(count, -np.inf), np.zeros(count)
    np.minimum.at(low, group, values)
    np.maximum.at(high, group, values)
    np.maximum.at(far, group, np.abs(values))
    return np.maximum((high - low) / 15, far / 120) if int4 else far / 127


@pytest.mark.parametrize("spec", ["int8", "int4", "int4+huffman"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_and_tiny_values(spec: str, dtype: str, context: Context) -> None:
    codec = make_codec(spec, Layout(dtype))
    zeros = np.zeros(4096, np.uint8)
    assert not decoded(encode(codec, zeros, context), context).any()
    values = np.random.default_rng(1).normal(0, 1, 2048)
    values[64:128] *= 1e-30  # a group that is nothing beside the others
    values[128:192] = -0.0
    raw = as_dtype(values, dtype).copy()
    back = to_float(decoded(encode(codec, raw, context), context), dtype)
    assert np.abs(back[64:128]).max() <= 1e-9
    assert not np.signbit(back[128:192]).any() and not back[128:192].any()
    least = np.full(2048, 1, f"<u{4 if dtype == 'float32' else 2}").view(np.uint8)
    assert np.abs(to_float(decoded(encode(codec, least, context), context), dtype)).max() <= 1e-7


@pytest.mark.parametrize("spec", ["int8", "int4"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_finite_values_stay_finite(spec: str, dtype: str, context: Context) -> None:
    largest = {"bfloat16": 2.0**119, "float16": 65504.0, "float32": 2.0**119}[dtype]
    values = np.random.default_rng(1).choice([-largest, largest, largest / 3], 4096)
    stored = encode(make_codec(spec, Layout(dtype)), as_dtype(values, dtype).copy(), context)
    assert stored.codec != c.RAW
    back = to_float(decoded(stored, context), dtype)
    assert np.isfinite(back).all()
    assert np.abs(back - values).max() <= largest * (0.1 if spec == "int4" else 0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_beyond_what_steps_can_hold_it_is_raw(dtype: str, context: Context) -> None:
    values = np.ones(4096)
    values[7] = 2.0**121
    for spec in ("int8", "int4+huffman"):
        assert encode(make_codec(spec, Layout(dtype)), as_dtype(values, dtype).copy(), context).codec == c.RAW


def test_both_kinds_of_kernels_store_the_same() -> None:
    wide, base = new_context(), new_context(wide=False)
    for spec in SPECS:
        for dtype in FLOATS:
            layout = Layout(dtype, "kv", 16, 64)
            raw = as_dtype(to_float(kv_blocks()[4], "bfloat16")[:30_000].astype(np.float64), dtype).copy()
            codec = make_codec(spec, layout)
            stored = encode(codec, raw, wide)
            assert encode(codec, raw, base) == stored
            assert np.array_equal(decoded(stored, wide), decoded(stored, base))


def test_shards_without_a_whole_part_are_raw(context: Context) -> None:
    raw = np.ascontiguousarray(kv_blocks()[0][:6000])
    stored = encode(make_codec("int4", KV), raw, context)
    assert stored.codec == c.RAW
    assert np.array_equal(decoded(stored, context), raw)


def test_a_context_that_is_too_small_says_so() -> None:
    small = new_context(1000)
    raw = kv_blocks()[0].copy()
    result, _, _ = encode_result(make_codec("int4+huffman", KV), raw, small)
    assert result < 0


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float8_e4m3", "float8_e5m2"])
def test_types_that_have_no_precision_to_lose(spec: str, dtype: str) -> None:
    with pytest.raises(ConfigError, match="dtype"):
        make_codec(spec, Layout(dtype))
