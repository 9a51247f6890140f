"""The record, the context, and many threads."""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async import _portable, native
from ucm_async import coding as c
from ucm_async.native import NATIVE
from ucm_async.stages.compress.codecs import Context, Layout, decode, make_codec, raise_for_failures

from .tools import DTYPES, decoded, encode, kv_blocks, new_context, random_shard

HEADER = Path(__file__).parents[2] / "ext" / "coding.h"

needs_extension = pytest.mark.skipif(not NATIVE, reason="needs the extension")


@pytest.mark.skipif(not HEADER.exists(), reason="the C sources are not here")
def test_fields_and_numbers_are_those_of_c() -> None:
    text = HEADER.read_text()
    struct = re.search(r"struct coding \{(.*?)\};", text, re.S)
    assert struct
    fields = re.findall(r"^\s*(u?int\d+_t) (\w+)(?:\[\w+\])?;", struct[1], re.M)
    kinds = {"uint64_t": "<u8", "int64_t": "<i8", "uint32_t": "<u4", "uint8_t": "|u1"}
    assert [(name, kinds[kind]) for kind, name in fields] == [
        (name, c.CODING[name].base.str) for name in c.CODING.names or ()
    ]
    assert native.CODING_BYTES == c.CODING.itemsize == 80
    numbers = {name: int(value) for name, value in re.findall(r"\bCODEC_(\w+) = (\d+)", text)}
    assert numbers == {name: getattr(c, name) for name in numbers}
    planes = (HEADER.parent / "planes.h").read_text()
    order = re.search(r"enum dtype \{ (.*?), DTYPES \}", planes)
    assert order
    names = [one.strip().removeprefix("DTYPE_").lower() for one in order[1].split(",")]
    assert {name: c.DTYPES[name] for name in names[1:]} == {name: i for i, name in enumerate(names) if i}


@needs_extension
@pytest.mark.parametrize(
    ("codings", "kind"),
    [
        (np.zeros(71, np.uint8), ValueError),
        (np.zeros(80 + 1, np.uint8)[1:], ValueError),
        (c.new_codings(4)[::2], (BufferError, ValueError)),
        (bytes(80), BufferError),
        (7, TypeError),
    ],
)
def test_wrong_arrays(codings: Any, kind: Any) -> None:
    for context in (native.CodecContext(), _portable.CodecContext()):
        for method in (context.encode, context.decode):
            with pytest.raises(kind):
                method(codings)


@pytest.mark.parametrize("wrong", [-1, c.SHARD_BYTES_MAX + 1])
def test_wrong_sizes(wrong: int) -> None:
    with pytest.raises(ValueError, match="lossy_bytes"):
        native.CodecContext(wrong)
    with pytest.raises(ValueError, match="shard_bytes"):
        Context(wrong)


@needs_extension
def test_limits_of_a_coding() -> None:
    context = native.CodecContext()
    memory = np.zeros(100, np.uint8)
    one = c.new_codings(1)
    for source, target, codec, expected in [
        (c.SHARD_BYTES_MAX + 1, 2**63, c.RAW, -errno.EMSGSIZE),
        (100, 99, c.RAW, -errno.ENOBUFS),
        (100, 99, c.HUFFMAN, -errno.ENOBUFS),
        (100, 100, c.ZSTD, -errno.ENOSYS),
        (0, 0, c.HUFFMAN, 0),
    ]:
        one["source"], one["source_length"] = memory.ctypes.data, source
        one["target"], one["target_length"] = memory.ctypes.data, target
        one["codec"] = codec
        context.encode(one)
        assert int(one["result"][0]) == expected
    one["source_length"], one["target_length"], one["codec"] = 10, c.SHARD_BYTES_MAX + 1, c.HUFFMAN
    context.decode(one)
    assert int(one["result"][0]) == -errno.EMSGSIZE


@pytest.mark.parametrize("module", ["extension", "twin"])
def test_an_empty_array_is_nothing_to_do(module: str) -> None:
    context: Any = native.CodecContext() if module == "extension" else _portable.CodecContext()
    context.encode(c.new_codings(0))
    context.decode(c.new_codings(0))


@needs_extension
def test_a_second_thread_is_refused() -> None:
    context = new_context(1 << 22)
    codec = make_codec("huffman", Layout("uint8"))
    raw = np.random.default_rng(0).choice(np.arange(50, dtype=np.uint8), 1 << 22)
    target = np.zeros_like(raw)
    codings = np.repeat(c.new_codings(1), 20)
    codings["source"], codings["source_length"] = raw.ctypes.data, len(raw)
    codings["target"], codings["target_length"] = target.ctypes.data, len(raw)
    worker = threading.Thread(target=codec.encode, args=(codings, context))
    other, refused = codings[:1].copy(), False
    worker.start()
    while worker.is_alive() and not refused:
        try:
            codec.encode(other, context)
        except RuntimeError as error:
            assert "in use by another thread" in str(error)
            refused = True
    worker.join()
    assert refused
    raise_for_failures(codings)
    for spec in ("zstd", "lz4"):
        with context.entered(), pytest.raises(RuntimeError, match="in use"):
            make_codec(spec).encode(other, context)


@needs_extension
@pytest.mark.parametrize("spec", ["huffman", "packed", "zstd", "lz4", "int4+huffman", "auto"])
def test_threads_with_contexts_of_their_own_share_a_codec(spec: str) -> None:
    codec = make_codec(spec)
    blocks = [np.ascontiguousarray(kv_blocks()[i, : 60_000 + 1000 * i]) for i in range(8)]
    expected = [encode(codec, block, new_context()) for block in blocks]

    def work(seed: int) -> None:
        context = new_context()
        for i in np.random.default_rng(seed).permutation(8):
            stored = encode(codec, blocks[i], context)
            assert stored == expected[i]
            back = decoded(stored, context)
            assert not codec.lossless or np.array_equal(back, blocks[i])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


@needs_extension
def test_one_call_decodes_what_many_codecs_stored() -> None:
    context = new_context()
    specs = ["raw", "huffman", "packed", "zstd", "lz4", "fp8_e4m3", "int4+huffman", "zstd:planes=none", "auto"]
    raw = np.ascontiguousarray(kv_blocks()[0][:65_536])
    stored = [encode(make_codec(spec), raw, context) for spec in specs]
    payloads = [np.frombuffer(one.payload, np.uint8) for one in stored]
    targets = np.zeros((len(specs), len(raw)), np.uint8)
    codings = c.new_codings(len(specs))
    for i, one in enumerate(stored):
        codings["source"][i], codings["source_length"][i] = payloads[i].ctypes.data, len(payloads[i])
        codings["target"][i], codings["target_length"][i] = targets[i].ctypes.data, len(raw)
        codings["codec"][i], codings["parameters"][i] = one.codec, np.frombuffer(one.parameters, np.uint8)
    codings["codec"][3] = 12_345  # one that nobody knows does not keep the others back
    decode(codings, context)
    assert codings["result"].tolist() == [65_536] * 3 + [-errno.ENOSYS] + [65_536] * 5
    for i in (0, 1, 2, 4, 7, 8):
        assert np.array_equal(targets[i], raw), specs[i]


@needs_extension
@pytest.mark.parametrize("order", [c.BYTE_PLANES, c.BIT_PLANES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_planes_are_those_of_the_twin(order: int, dtype: str, context: Context) -> None:
    for length in (0, 1, 7, 100, 4097, 70_003, 300_000):
        raw = random_shard(np.random.default_rng(length), dtype, length)
        results = []
        for one in (context.native, _portable.CodecContext()):
            apart, back = np.zeros_like(raw), np.zeros_like(raw)
            codings = c.new_codings(1)
            codings["codec"], codings["parameters"][0, 0] = order, c.DTYPES[dtype]
            codings["source"], codings["source_length"] = raw.ctypes.data, length
            codings["target"], codings["target_length"] = apart.ctypes.data, length
            one.encode(codings)
            assert codings["result"].tolist() == [length]
            codings["source"], codings["target"] = apart.ctypes.data, back.ctypes.data
            one.decode(codings)
            assert codings["result"].tolist() == [length]
            assert np.array_equal(back, raw)
            results.append(apart)
        assert np.array_equal(*results)
        for one in (context.native, _portable.CodecContext()):
            codings["parameters"][0, 5] = 1
            one.decode(codings)
            assert codings["result"].tolist() == [-errno.EBADMSG if length else codings["result"][0]]


@pytest.mark.skipif("UCM_ASYNC_SANITIZED" in os.environ, reason="the sanitizer keeps freed memory for a while")
@needs_extension
def test_memory_and_references_come_back() -> None:
    def resident_kib() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024

    codings = c.new_codings(3)
    before = sys.getrefcount(codings)
    context = native.CodecContext(100_000)
    assert context.nbytes > 100_000
    for _ in range(100):
        context.encode(codings)
        with pytest.raises(ValueError, match="codings"):
            context.decode(np.zeros(7, np.uint8))
    assert sys.getrefcount(codings) == before
    for _ in range(10):
        native.CodecContext(1_000_000)
    first = resident_kib()
    for _ in range(200):
        native.CodecContext(1_000_000)
    assert resident_kib() - first < 3000


@pytest.mark.parametrize("spec", ["raw", "auto", "lz4", "zstd"])
def test_codings_behind_each_other_with_checksums(spec: str) -> None:
    """Shards lie one behind another, as a packed block has them, and each has the checksum of its stored bytes."""
    shards = kv_blocks()[0][: 5 * 6144].reshape(5, 6144).copy()
    shards[2] = np.random.default_rng(1).integers(0, 256, 6144)  # does not shrink
    packed = np.zeros(shards.size, np.uint8)
    context = Context(6144)
    codings = c.new_codings(5)
    codings["source"] = shards.ctypes.data + 6144 * np.arange(5)
    codings["source_length"] = codings["target_length"] = 6144
    codings["target"][0] = packed.ctypes.data
    codings["flags"] = c.CODING_BEHIND | c.CODING_CHECKSUM
    codings["flags"][0] = c.CODING_CHECKSUM
    make_codec(spec, Layout("bfloat16")).encode(codings, context)
    lengths = codings["result"]
    assert lengths[2] == 6144 and codings["codec"][2] == c.RAW
    starts = np.cumsum(lengths) - lengths
    assert (codings["target"] - packed.ctypes.data == starts).all()
    sums = [native.crc32c(packed[a : a + n]) for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    assert codings["checksum"].tolist() == sums

    back = np.zeros_like(shards)
    codings["source"], codings["source_length"] = codings["target"], lengths
    codings["target"] = back.ctypes.data + 6144 * np.arange(5)
    codings["checksum"], codings["flags"] = 0, c.CODING_CHECKSUM
    decode(codings, context)
    assert (back == shards).all() and codings["checksum"].tolist() == sums


@pytest.mark.parametrize("spec", ["raw", "lz4"])
def test_a_coding_that_is_behind_a_failed_one_fails_like_it(spec: str) -> None:
    shard = np.zeros(64, np.uint8)
    codings = c.new_codings(3)
    codings["source"] = codings["target"] = shard.ctypes.data
    codings["source_length"], codings["target_length"] = 64, 63
    codings["flags"] = c.CODING_BEHIND
    codec = make_codec(spec, Layout("uint8"))
    codec.encode(codings, Context(64))
    assert codings["result"].tolist() == [-errno.EINVAL] * 3
    codings["flags"][0] = 0
    codec.encode(codings, Context(64))
    assert codings["result"].tolist() == [-errno.ENOBUFS] * 3
