"""Shards and blocks of different codecs and parameters beside each other: under one header, and in one directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import coding as c
from ucm_async.abc import Lower
from ucm_async.config import StoreConfig
from ucm_async.native import NATIVE
from ucm_async.stages.compress.codecs import Layout, make_codec
from ucm_async.stages.compress.stage import CompressStage

from .stores import SHARD, SHARDS, StoredFile, file_of, keys, load_all, open_compressed, real_blocks
from .tools import U8, decoded, encode, new_context

pytestmark = pytest.mark.skipif(not NATIVE, reason="needs the extension")


def stage_of(codec: str) -> type[CompressStage]:
    """A Compress stage that has its own mind about the codec."""

    class Other(CompressStage):
        def __init__(self, config: StoreConfig, lower: Lower | None) -> None:
            super().__init__(config.replace(compress_codec=codec), lower)

    return Other


def after(codec: str, raw: U8, layout: Layout) -> U8:
    """What `codec` alone makes of a shard."""
    context = new_context()
    return decoded(encode(make_codec(codec, layout), raw, context), context)


@pytest.mark.parametrize("pipeline", ["Compress|Posix", "Compress|Slab"])
@pytest.mark.parametrize(("first", "second"), [("huffman", "int4"), ("int4", "huffman"), ("zstd", "zstd:planes=bits")])
async def test_a_codec_that_changes_in_the_middle_of_a_block(
    tmp_path: Path, pipeline: str, first: str, second: str
) -> None:
    """What cannot be said under the header of the first codec is stored as it is; a block that comes whole is new."""
    ids, data = real_blocks(3)
    rows = data.reshape(3, SHARDS, SHARD)
    slab = {"posix_capacity_gb": 0.03} if pipeline.endswith("Slab") else {}
    async with ucm.open_store(pipeline, **keys(tmp_path, compress_codec=first, **slab)) as store:
        assert (await store.dump(ids, [0, 0, 2], rows[range(3), [0, 0, 2]])).ok.all()
        await store.replace_stage("Compress", stage_of(second))
        block, shard = np.array([[0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 2], [1, 3], [2, 3], [2, 2], [2, 0]]).T
        result = await store.dump(ids[block], shard, rows[block, shard])
        assert result.ok.all(), result.failures
        assert (await store.lookup(ids)).tolist() == [True, True, False]
        assert (await store.dump(ids[2:], [1], rows[2, 1:2])).ok.all()
        counts = store.statistics().pipeline["Compress"]["stage"]["dump"]["counts"]
        assert counts["mixed_shards"] == 6  # of blocks 0 and 2, but the last one, by when nothing of the first is left
        result, back = await load_all(store, ids)
        assert result.ok.all(), result.failures
    expected = data.copy()
    for at in ((0, 0), *((1, i) for i in range(SHARDS)), (2, 1)):
        codec = first if at == (0, 0) else second
        expected[at[0], at[1] * SHARD : (at[1] + 1) * SHARD] = after(codec, rows[at], Layout())
    assert (back == expected).all()
    async with ucm.open_store(pipeline, **keys(tmp_path, compress_codec=second, **slab)) as store:
        result, back = await load_all(store, ids)
    assert result.ok.all()
    assert (back == expected).all()


async def test_the_header_of_such_a_block(tmp_path: Path) -> None:
    """It says the first one's parameters, whether they lose something, and which shards are as they were."""
    ids, data = real_blocks(1)
    rows = data.reshape(SHARDS, SHARD)
    each = np.repeat(ids, SHARDS, axis=0)
    async with open_compressed(tmp_path, "int4") as store:
        assert (await store.dump(each[:2], [0, 1], rows[:2])).ok.all()
        await store.replace_stage("Compress", stage_of("packed"))
        assert (await store.dump(each[2:], [2, 3], rows[2:])).ok.all()
    stored = StoredFile(file_of(tmp_path, ids[0]))
    assert stored.entries["codec"].tolist() == [c.INT4, c.INT4, c.RAW, c.RAW]
    assert stored.entries["stored_length"].tolist()[2:] == [SHARD, SHARD]
    assert stored.head["flags"][0] == 1
    assert stored.head["codec_parameters"][0].tobytes() == make_codec("int4", Layout()).parameters


async def test_shards_in_pieces(tmp_path: Path) -> None:
    """Gathered before they are encoded, so they are not read from the caller a second time."""
    ids, data = real_blocks(1)
    cut = (6000, SHARD - 6000)
    pieces = [[bytearray(s[:6000]), bytearray(s[6000:])] for s in data.reshape(SHARDS, SHARD)]
    each = np.repeat(ids, SHARDS, axis=0)
    async with open_compressed(tmp_path, "huffman", tensor_size_list=cut) as store:
        assert (await store.dump(each[:1], [0], pieces[:1])).ok.all()
        await store.replace_stage("Compress", stage_of("int8"))
        assert (await store.dump(each[1:], [1, 2, 3], pieces[1:])).ok.all()
        back = [[bytearray(len(one)) for one in row] for row in pieces]
        assert (await store.load(each, range(SHARDS), back)).ok.all()
    assert back == pieces


@pytest.mark.parametrize("setting", ["auto", "int4+huffman"])
async def test_blocks_of_other_parameters(tmp_path: Path, setting: str) -> None:
    """Each is read as its header says, whatever the codec, its options and the layout that are set now."""
    kv = {"compress_parts": "kv", "compress_tokens": 16, "compress_part_bytes": 4096}
    wide = {"compress_parts": "k", "compress_tokens": 8, "compress_channels": 128}
    ways: list[tuple[str, dict[str, Any], Layout]] = [
        ("int4", {}, Layout()),
        ("int4:group_tokens=8,group_channels=16", kv, Layout("bfloat16", "kv", 16, 64, 4096)),
        ("int8+huffman", wide, Layout("bfloat16", "k", 8, 128)),
        ("fp8_e4m3", kv, Layout("bfloat16", "kv", 16, 64, 4096)),
        ("zstd:planes=bits", {}, Layout()),
        ("lz4:planes=none", {}, Layout()),
        ("packed", wide, Layout()),
    ]
    ids, data = real_blocks(len(ways))
    expected = data.copy()
    for i, (codec, layout_keys, layout) in enumerate(ways):
        async with open_compressed(tmp_path, codec, **layout_keys) as store:
            assert (await store.dump(ids[i : i + 1], None, data[i : i + 1])).ok.all()
        expected[i] = np.concatenate([after(codec, one, layout) for one in data[i].reshape(SHARDS, SHARD)])
    async with open_compressed(tmp_path, setting, compress_parts="v", compress_tokens=2) as store:
        result, back = await load_all(store, ids)
    assert result.ok.all(), result.failures
    assert (back == expected).all()
