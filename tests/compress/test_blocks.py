"""Blocks through whole stores: every codec, mixed ones, shards one at a time, odd sizes, and what is in the files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status
from ucm_async import coding as c
from ucm_async.errors import ConfigError, UnknownNameError
from ucm_async.native import NATIVE
from ucm_async.stages.compress.codecs import Layout, make_codec

from .stores import (
    BLOCK,
    PAGE,
    PLAIN_FILE,
    SHARD,
    SHARDS,
    StoredFile,
    file_of,
    is_stored,
    keys,
    load_all,
    open_compressed,
    open_plain,
    quarantined,
    real_blocks,
)
from .tools import SPECIALS, decoded, encode, new_context, random_shard

needs_extension = pytest.mark.skipif(not NATIVE, reason="needs the extension")

BLOCKS = int(os.environ.get("UCM_ASYNC_COMPRESS_BLOCKS", "24"))
"""Blocks of each lossless codec; 10000 for the long form."""

LOSSLESS = ("raw", "auto", "huffman", "packed", "lz4", "zstd")
LOSSY = ("fp8_e4m3", "fp8_e4m3+huffman", "int8", "int4:group_tokens=8", "int4+huffman")
SHRINKING = ("auto", "huffman", "packed", "lz4", "zstd")


@needs_extension
@pytest.mark.timeout(120 + BLOCKS // 20)
@pytest.mark.parametrize("codec", LOSSLESS)
async def test_no_bit_is_lost(tmp_path: Path, codec: str) -> None:
    """Real blocks and random ones of many kinds, whole and in shards."""
    step = 24
    async with open_compressed(tmp_path, codec) as store:
        for seed in range(-(-BLOCKS // step)):
            ids, data = real_blocks(step, seed)
            generator = np.random.default_rng(seed)
            for row in data[::2]:
                row[:] = np.concatenate([random_shard(generator, "bfloat16", SHARD) for _ in range(SHARDS)])
            assert (await store.dump(ids, None, data)).ok.all()
            result, back = await load_all(store, ids)
            assert result.ok.all()
            assert (back == data).all()
            await store.delete(ids[seed % 7 :])
        about = store.statistics().pipeline["Compress"]["stage"]
    assert about["lossless"] is True
    assert about["codec"] == codec
    assert (about["ratio"] > 1.05) == (codec != "raw")


@needs_extension
@pytest.mark.parametrize("codec", LOSSY)
async def test_a_lossy_codec_gives_what_it_promises(tmp_path: Path, codec: str) -> None:
    """What comes back is what the codec alone makes of each shard; the store and the header say that it is lossy."""
    ids, data = real_blocks(3)
    layout = {"compress_parts": "kv", "compress_tokens": 16, "compress_channels": 64, "compress_part_bytes": 4096}
    async with open_compressed(tmp_path, codec, **layout) as store:
        assert (await store.dump(ids, None, data)).ok.all()
        result, back = await load_all(store, ids)
        assert result.ok.all()
        assert store.statistics().pipeline["Compress"]["stage"]["lossless"] is False
    alone, context = make_codec(codec, Layout("bfloat16", "kv", 16, 64, 4096)), new_context()
    shards = data.reshape(-1, SHARD)
    assert (
        back.reshape(-1, SHARD) == np.stack([decoded(encode(alone, one, context), context) for one in shards])
    ).all()
    assert not (back == data).all()
    stored = StoredFile(file_of(tmp_path, ids[0]))
    assert stored.head["flags"][0] == 1
    assert len(stored.bytes) < PLAIN_FILE * 0.6


@needs_extension
async def test_special_values(tmp_path: Path) -> None:
    """NaN payloads, infinities, denormals, negative zero: lossless codecs keep them, lossy ones store the shard raw."""
    ids, data = real_blocks(4)
    words = data.view("<u2")
    generator = np.random.default_rng(3)
    at = generator.integers(0, words.shape[1] // SHARDS, (4, 60))  # in the first shard
    np.put_along_axis(words, at, generator.choice(np.array(SPECIALS[2], "<u2"), at.shape), axis=1)
    for codec in (*SHRINKING, "int4", "fp8_e4m3+huffman"):
        async with open_compressed(tmp_path, codec, namespace=codec) as store:
            assert (await store.dump(ids, None, data)).ok.all()
            result, back = await load_all(store, ids)
            assert result.ok.all()
            whole = codec in SHRINKING
            assert (back[:, : None if whole else SHARD] == data[:, : None if whole else SHARD]).all()


@needs_extension
async def test_every_block_can_be_read_whatever_is_set(tmp_path: Path) -> None:
    """One directory with blocks of every codec, and of no Compress stage; the codec that is set does not matter."""
    ids, data = real_blocks(len(LOSSLESS) + 1)
    async with open_plain(tmp_path) as store:
        assert (await store.dump(ids[-1:], None, data[-1:])).ok.all()
    for i, codec in enumerate(LOSSLESS):
        async with open_compressed(tmp_path, codec) as store:
            assert (await store.dump(ids[i : i + 1], None, data[i : i + 1])).ok.all()
    for codec in ("packed", "int4"):
        async with open_compressed(tmp_path, codec) as store:
            assert (await store.lookup(ids)).all()
            result, back = await load_all(store, ids)
            assert result.ok.all(), result.failures
            assert (back == data).all()


@needs_extension
async def test_a_plain_store_says_what_it_cannot_read(tmp_path: Path) -> None:
    """For it an encoded block is a miss; a load names the codec; and a dump puts a plain copy in its place."""
    ids, data = real_blocks(3)
    async with open_compressed(tmp_path, "huffman") as store:
        assert (await store.dump(ids, None, data)).ok.all()
    async with open_plain(tmp_path) as plain:
        assert not (await plain.lookup(ids)).any()
        result, _ = await load_all(plain, ids)
        assert set(result.status.tolist()) == {Status.CORRUPT}
        assert "stored by codec 'huffman'" in result.failures[0].reason
        assert all(is_stored(tmp_path, one) for one in ids)
        assert quarantined(tmp_path) == []
        assert (await plain.dump(ids[:1], None, data[:1])).ok.all()
        result, back = await load_all(plain, ids[:1])
        assert result.ok.all()
        assert (back == data[:1]).all()
    async with open_compressed(tmp_path) as store:
        result, back = await load_all(store, ids)
        assert result.ok.all()
        assert (back == data).all()


@needs_extension
@pytest.mark.parametrize("codec", ["huffman", "zstd"])
async def test_shards_that_come_one_at_a_time(tmp_path: Path, codec: str) -> None:
    """In any order, from several tasks, beside whole blocks; and what is loaded may be single shards."""
    ids, data = real_blocks(6)
    data[2, SHARD : 2 * SHARD] = np.random.default_rng(1).integers(0, 256, SHARD)  # does not shrink
    rows = data.reshape(-1, SHARD)
    block, shard = np.divmod(np.random.default_rng(5).permutation(len(rows)), SHARDS)
    async with open_compressed(tmp_path, codec) as store:
        tasks = [store.dump(ids[block[p::5]], shard[p::5], rows[(block * SHARDS + shard)[p::5]]) for p in range(5)]
        assert (await store.dump(ids[4:], None, data[4:])).ok.all()
        for task in tasks:
            assert (await task).ok.all()
        assert (await store.lookup(ids)).all()
        result, back = await load_all(store, ids)
        assert result.ok.all(), result.failures
        assert (back == data).all()
        some = np.zeros((7, SHARD), np.uint8)
        assert (await store.load(ids[block[:7]], shard[:7], some)).ok.all()
        assert (some == rows[(block * SHARDS + shard)[:7]]).all()


@needs_extension
async def test_the_last_shard_makes_the_block(tmp_path: Path) -> None:
    ids, data = real_blocks(1)
    async with open_compressed(tmp_path) as store:
        for shard in (3, 0, 2, 1):
            assert not (await store.lookup(ids)).any()
            assert not is_stored(tmp_path, ids[0])
            assert (await store.dump(ids, [shard], data.reshape(-1, SHARD)[shard : shard + 1])).ok.all()
        assert (await store.lookup(ids)).all()
        result, back = await load_all(store, ids)
    assert result.ok.all()
    assert (back == data).all()


@needs_extension
@pytest.mark.parametrize("shard", [5000, 4096, 24576 + 2, 33])
@pytest.mark.parametrize("codec", ["auto", "lz4"])
async def test_odd_sizes(tmp_path: Path, shard: int, codec: str) -> None:
    """Shards that are no whole pages, or no whole elements."""
    size = shard * 3
    ids, data = real_blocks(4, size=size + size % 2)
    data = np.ascontiguousarray(data[:, :size])
    rows, shards = data.reshape(-1, shard), np.tile(np.arange(3), 4)
    async with open_compressed(tmp_path, codec, block_size=size, shard_size=shard) as store:
        assert (await store.dump(ids[:2], None, data[:2])).ok.all()
        each = np.repeat(ids[2:], 3, axis=0)
        for odd in (0, 1):
            part = np.arange(odd, 6, 2)
            assert (await store.dump(each[part], shards[part], rows[6 + part])).ok.all()
        result, back = await load_all(store, ids, size)
        assert result.ok.all(), result.failures
        assert (back == data).all()


@needs_extension
async def test_rows_in_pieces(tmp_path: Path) -> None:
    """Tensors of a shard apart from each other, of different sizes; also of whole blocks."""
    ids, data = real_blocks(3)
    cut = (6000, SHARD - 6000)
    async with open_compressed(tmp_path, tensor_size_list=cut) as store:
        whole = [[bytearray(p) for s in row.reshape(SHARDS, SHARD) for p in (s[:6000], s[6000:])] for row in data]
        assert (await store.dump(ids, None, whole)).ok.all()
        back = [[bytearray(len(piece)) for piece in row] for row in whole]
        assert (await store.load(ids, None, back)).ok.all()
        assert back == whole
        parts = [[bytearray(cut[0]), bytearray(cut[1])] for _ in range(SHARDS)]
        assert (await store.load(np.repeat(ids[:1], SHARDS, axis=0), range(SHARDS), parts)).ok.all()
        assert b"".join(b"".join(row) for row in parts) == data[0].tobytes()


@needs_extension
async def test_files_are_as_long_as_they_need(tmp_path: Path) -> None:
    """Whole pages, shards one behind another; what the store accounts for is what the disk has."""
    ids, data = real_blocks(8)
    data[5] = np.random.default_rng(0).integers(0, 256, BLOCK)
    async with open_compressed(tmp_path) as store:
        assert (await store.dump(ids, None, data)).ok.all()
        files = [file_of(tmp_path, one) for one in ids]
        space = store.statistics().pipeline["Posix"]["stage"]["space"]
    sizes = [path.stat().st_size for path in files]
    assert space["used_bytes"] == sum(sizes)
    assert space["reserved_bytes"] == 0
    assert sizes[5] == PLAIN_FILE
    assert max(sizes[:5]) < PLAIN_FILE * 0.85
    stored = StoredFile(files[0])
    ends = stored.entries["offset"] + stored.entries["stored_length"]
    assert (stored.entries["offset"][1:] == ends[:-1]).all()
    assert sizes[0] == -(-int(ends[-1]) // PAGE) * PAGE
    assert stored.head["codec"][0] == c.HUFFMAN
    assert StoredFile(files[5]).head["codec"][0] == c.RAW


@needs_extension
async def test_a_block_that_saves_no_page_is_stored_plain(tmp_path: Path) -> None:
    ids, data = real_blocks(1)
    data[:] = np.random.default_rng(0).integers(0, 256, BLOCK)
    data[0, : PAGE // 2] = 0  # so that the first shard shrinks, by less than a page
    async with open_compressed(tmp_path, "zstd", dtype="uint8") as store:
        assert (await store.dump(ids, None, data)).ok.all()
    assert StoredFile(file_of(tmp_path, ids[0])).head["codec"][0] == c.RAW
    async with open_plain(tmp_path) as plain:
        result, back = await load_all(plain, ids)
    assert result.ok.all()
    assert (back == data).all()


@needs_extension
async def test_a_stored_block_is_not_encoded_again(tmp_path: Path) -> None:
    ids, data = real_blocks(4)
    async with open_compressed(tmp_path) as store:
        assert (await store.dump(ids, None, data)).ok.all()
        assert (await store.dump(ids, None, data)).ok.all()
        counts = store.statistics().pipeline["Compress"]["stage"]["dump"]["counts"]
        assert counts["already_stored"] == 4
        assert counts["shards"] == 4 * SHARDS
        assert (await store.dump(ids, None, data, durability="synced")).ok.all()


@needs_extension
async def test_a_store_can_refuse_lossy_blocks(tmp_path: Path) -> None:
    ids, data = real_blocks(2)
    async with open_compressed(tmp_path, "int8") as store:
        assert (await store.dump(ids[:1], None, data[:1])).ok.all()
    async with open_compressed(tmp_path, "auto", refuse_lossy=True) as store:
        assert (await store.dump(ids[1:], None, data[1:])).ok.all()
        result, back = await load_all(store, ids)
        assert result.status.tolist() == [Status.CORRUPT, Status.OK]
        assert "stored with loss, by codec 'int8'" in result.failures[0].reason
        assert (back[1] == data[1]).all()
        assert (back[0] == 0xEE).all()
    assert is_stored(tmp_path, ids[0])
    with pytest.raises(ConfigError, match="refuse_lossy"):
        await open_compressed(tmp_path, "int8", refuse_lossy=True)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"compress_codec": "hufman"}, UnknownNameError, "compress_codec: no codec 'hufman'; did you mean 'huffman'"),
        ({"compress_codec": "zstd:level=99"}, ConfigError, "compress_codec: .*level 99"),
        ({"compress_codec": "int4", "dtype": "uint8"}, ConfigError, "compress_codec: .*dtype 'uint8'"),
        ({"compress_codec": "int8", "compress_part_bytes": 100}, ConfigError, "compress_part_bytes: 100"),
        ({"compress_codec": "int8", "compress_channels": 3}, ConfigError, "compress_channels: 3"),
        ({"refuse_losy": True}, ConfigError, "refuse_lossy"),
    ],
)
async def test_wrong_settings(tmp_path: Path, changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        await ucm.open_store("Compress|Posix", **keys(tmp_path, **changes))


@pytest.mark.parametrize(
    ("pipeline", "match"),
    [
        ("Compress", "Compress needs a stage below it"),
        ("Compress|Fake", "Compress hands encoded blocks to Fake, which cannot store them"),
        ("Compress|Cache|Empty", "Compress hands encoded blocks to Cache"),
    ],
)
async def test_compositions_that_cannot_be(pipeline: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        await ucm.open_store(pipeline, block_size=BLOCK)


@needs_extension
async def test_above_a_stage_that_keeps_nothing() -> None:
    async with ucm.open_store("Compress|Empty", block_size=BLOCK, shard_size=SHARD, compress_threads=1) as store:
        ids, data = real_blocks(3)
        assert (await store.dump(ids, None, data)).ok.all()
        result, _ = await load_all(store, ids)
        assert set(result.status.tolist()) == {Status.MISS}
