"""What the codec tests share: shards of every kind, and coding them with guards around the memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from ucm_async.coding import Codings, new_codings
from ucm_async.native import CodecContext
from ucm_async.stages.compress.codecs import Codec, Context, decode

U8 = npt.NDArray[np.uint8]

GUARD = 64
"""Bytes on each side of a target that must stay as they were."""
GUARD_BYTE = 0xA5
BLOCK_BYTES = 368_640
SHARD_MAX = 400_000

DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3", "float8_e5m2", "int8", "uint8")
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3": 1, "float8_e5m2": 1, "int8": 1, "uint8": 1}


@lru_cache(maxsize=1)
def kv_blocks() -> U8:
    """Real KV blocks, bf16: uint8, shape (8, BLOCK_BYTES), read-only: tests of other processes have the same ones."""
    with resources.as_file(resources.files("ucm_async.bench") / "data" / "kv_smollm2_bf16.npy") as path:
        blocks: U8 = np.load(path).view(np.uint8).reshape(8, BLOCK_BYTES)
    blocks.flags.writeable = False
    return blocks


def as_dtype(values: npt.NDArray[Any], dtype: str) -> U8:
    """Floats as elements of `dtype`; to bf16 and the 8-bit types by cutting bits off."""
    if dtype in ("float16", "float32"):
        with np.errstate(over="ignore"):
            return values.astype(dtype).view(np.uint8)
    words = values.astype(np.float32).view(np.uint32)
    if dtype == "bfloat16":
        return (words >> 16).astype(np.uint16).view(np.uint8)
    if dtype == "float8_e5m2":
        with np.errstate(over="ignore"):
            return (values.astype(np.float16).view(np.uint16) >> 8).astype(np.uint8)
    if dtype == "float8_e4m3":
        exponent = ((words >> 23 & 0xFF).astype(int) - 120).clip(0, 15)
        return (words >> 24 & 0x80 | exponent.astype(np.uint32) << 3 | words >> 20 & 7).astype(np.uint8)
    return values.clip(-128, 127).astype(np.int8).view(np.uint8)


def to_float(data: U8 | bytes, dtype: str) -> npt.NDArray[np.float32]:
    """Elements of a 16- or 32-bit type as float32."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype).astype(np.float32)


SPECIALS = {
    1: [0x00, 0x80, 0x01, 0x7F, 0xFF, 0x7C, 0xFC, 0x7E, 0x78],
    2: [0, 0x8000, 1, 0x8001, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF, 0x7C00, 0xFC00, 0x7E00, 0x03FF, 0x7F7F],
    4: [0, 0x80000000, 1, 0x80000001, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x007FFFFF],
}
"""Elements that codecs get wrong first, as bit patterns, by bytes of an element."""


def random_shard(rng: np.random.Generator, dtype: str, length: int) -> U8:
    """A shard of `length` bytes, of one of many kinds."""
    item = ITEM_BYTES[dtype]
    count = length // item + 1
    kind = int(rng.integers(9))
    if kind == 0:
        data = rng.integers(0, 256, count * item, dtype=np.uint8)
    elif kind == 1:
        data = np.full(count * item, rng.integers(256), np.uint8)
    elif kind == 2:
        data = rng.choice(np.array([0, 0, 0, 7, 255], np.uint8), count * item)
    elif kind == 3:
        data = np.tile(rng.integers(0, 256, int(rng.integers(1, 40)), dtype=np.uint8), count * item)[: count * item]
    elif kind == 4 and dtype == "bfloat16":
        start = int(rng.integers(0, BLOCK_BYTES - length)) if length < BLOCK_BYTES else 0
        data = np.resize(kv_blocks()[rng.integers(8)][start:], count * item)
    else:
        scale = np.exp2(rng.integers(-30, 20)) * np.exp2(rng.normal(0, 2, count // 64 + 1)).repeat(64)[:count]
        data = as_dtype(rng.normal(0, 1, count) * scale, dtype).copy()
        if kind == 5:
            words = data.view(f"<u{item}")
            words[rng.random(count) < 0.01] = rng.choice(np.array(SPECIALS[item], f"<u{item}"))
        elif kind == 6:
            data[: count // 2 * item] = 0
    return np.ascontiguousarray(data[:length])


def random_length(rng: np.random.Generator) -> int:
    """A length: small and odd ones often, several chunks now and then."""
    kind = int(rng.integers(10))
    if kind < 3:
        return int(rng.integers(0, 70))
    if kind < 6:
        return int(rng.integers(70, 5000))
    return int(rng.integers(5000, 30_000 if kind < 9 else 150_000))


@dataclass
class Stored:
    """One encoded shard, as a header and a file would keep it."""

    codec: int
    parameters: bytes
    payload: bytes
    raw_length: int


def new_context(shard_bytes: int = SHARD_MAX, *, wide: bool = True) -> Context:
    """A context; `wide` False runs the kernels of processors without AVX2."""
    context = Context(shard_bytes)
    if not wide:
        context.native = CodecContext(shard_bytes, False)
        assert not context.native.wide
    return context


def one_coding(source: U8, target: U8, target_length: int) -> Codings:
    """A coding from `source` into `target`, which has guards around."""
    coding = new_codings(1)
    coding["source"] = source.ctypes.data
    coding["source_length"] = len(source)
    coding["target"] = target.ctypes.data + GUARD
    coding["target_length"] = target_length
    return coding


def guarded(length: int) -> U8:
    """Memory for a target, with its guards."""
    return np.full(length + 2 * GUARD, GUARD_BYTE, np.uint8)


def check_guards(target: U8) -> None:
    """Fail if a byte before or after the target was written."""
    assert (target[:GUARD] == GUARD_BYTE).all() and (target[len(target) - GUARD :] == GUARD_BYTE).all()


def encode_result(codec: Codec, raw: U8, context: Context) -> tuple[int, Codings, U8]:
    """Encode one shard; returns the result, the coding and the target."""
    target = guarded(len(raw))
    before = raw.copy()
    coding = one_coding(raw, target, len(raw))
    codec.encode(coding, context)
    check_guards(target)
    assert np.array_equal(raw, before), "the source was written"
    return int(coding["result"][0]), coding, target


def encode(codec: Codec, raw: U8, context: Context) -> Stored:
    """Encode one shard, which must work."""
    result, coding, target = encode_result(codec, raw, context)
    assert 0 <= result <= codec.bound(len(raw))
    payload = target[GUARD : GUARD + result].tobytes()
    return Stored(int(coding["codec"][0]), coding["parameters"][0].tobytes(), payload, len(raw))


def decode_result(stored: Stored, context: Context) -> tuple[int, U8]:
    """Decode one shard, whatever it is; returns the result and the target's bytes."""
    source: U8 = np.frombuffer(bytearray(stored.payload), np.uint8)  # exactly as long: a sanitizer sees reads behind it
    target = guarded(stored.raw_length)
    coding = one_coding(source, target, stored.raw_length)
    coding["codec"] = stored.codec
    coding["parameters"] = np.frombuffer(stored.parameters, np.uint8)
    decode(coding, context)
    check_guards(target)
    return int(coding["result"][0]), target[GUARD : GUARD + stored.raw_length]


def decoded(stored: Stored, context: Context) -> U8:
    """Decode one shard, which must work."""
    result, raw = decode_result(stored, context)
    assert result == stored.raw_length
    return raw
