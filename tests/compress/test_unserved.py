"""Blocks that are fine, and that this store cannot serve: misses for it, until a dump stores them anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import ucm_async as ucm
from tests.cache.support import cache_keys
from ucm_async import Status
from ucm_async import coding as c
from ucm_async.errors import UnknownCodecError
from ucm_async.native import NATIVE
from ucm_async.stages.compress.codecs import can_decode, registry
from ucm_async.store import Store

from .stores import (
    SHARD,
    SHARDS,
    StoredFile,
    file_of,
    is_stored,
    keys,
    load_all,
    open_compressed,
    quarantined,
    real_blocks,
)
from .tools import U8

pytestmark = pytest.mark.skipif(not NATIVE, reason="needs the extension")

SEEN = {"hidden": "codec 'zstd' is not installed", "refused": "stored with loss, by codec 'int8'"}


def forget_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry._entries["zstd"]
    monkeypatch.setitem(registry._entries, "zstd", registry._Entry(entry.number, "no_such_package:Codec", "zstandard"))


def compressed(store: Store) -> Any:
    return store.statistics().pipeline["Compress"]["stage"]


@pytest.fixture(params=["hidden", "refused"])
async def why(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def blocks(tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[U8, U8]]:
    """Four blocks, of which the store of `opened` cannot serve the middle ones."""
    ids, data = real_blocks(4)
    async with open_compressed(tmp_path, "zstd" if why == "hidden" else "int8") as store:
        assert (await store.dump(ids[1:3], None, data[1:3])).ok.all()
    async with open_compressed(tmp_path, "huffman") as store:
        assert (await store.dump(ids, None, data)).ok.all()
    if why == "hidden":
        forget_zstd(monkeypatch)
    yield ids, data


def opened(directory: Path, why: str, **changes: Any) -> Any:
    return open_compressed(directory, "packed", refuse_lossy=why == "refused", **changes)


async def find_out(store: Store, ids: U8, why: str) -> None:
    """Load, and see that the middle ones are not served, and misses from then on."""
    assert (await store.lookup(ids)).all()
    result, _ = await load_all(store, ids)
    assert result.status.tolist() == [Status.OK, Status.CORRUPT, Status.CORRUPT, Status.OK]
    assert SEEN[why] in result.failures[1].reason
    assert (await store.lookup(ids)).tolist() == [True, False, False, True]
    assert await store.lookup_on_prefix(ids) == 0


@pytest.mark.parametrize("durability", ["stored", "synced"])
async def test_a_dump_stores_them_anew(tmp_path: Path, blocks: tuple[U8, U8], why: str, durability: Any) -> None:
    ids, data = blocks
    async with opened(tmp_path, why) as store:
        await find_out(store, ids, why)
        assert is_stored(tmp_path, ids[1])  # for others who can serve it
        assert (await store.dump(ids, None, data, durability=durability)).ok.all()
        assert (await store.lookup(ids)).all()
        assert await store.lookup_on_prefix(ids) == 3
        result, back = await load_all(store, ids)
        assert result.ok.all()
        assert compressed(store)["unserved_blocks"] == 0
        assert compressed(store)["dump"]["counts"]["made_way"] == 2
    assert (back == data).all()
    assert [StoredFile(file_of(tmp_path, one)).head["codec"][0] for one in ids] == [
        c.HUFFMAN,
        c.PACKED,
        c.PACKED,
        c.HUFFMAN,
    ]
    assert quarantined(tmp_path) == []


async def test_what_another_store_has_stored_anew_stays(tmp_path: Path, blocks: tuple[U8, U8], why: str) -> None:
    """The dump looks before it removes, and a load finds out, too."""
    ids, data = blocks
    async with opened(tmp_path, why) as store, open_compressed(tmp_path, "lz4") as other:
        await find_out(store, ids, why)
        await other.delete(ids[1:3])
        assert (await other.dump(ids[1:3], None, data[1:3])).ok.all()
        assert (await store.dump(ids[1:2], None, data[1:2])).ok.all()
        assert compressed(store)["dump"]["counts"]["made_way"] == 0
        assert compressed(store)["dump"]["counts"]["already_stored"] == 1
        result, back = await load_all(store, ids)
        assert result.ok.all()
        assert (back == data).all()
        assert (await store.lookup(ids)).all()
    assert StoredFile(file_of(tmp_path, ids[1])).head["codec"][0] == c.LZ4


async def test_shards_that_come_one_at_a_time(tmp_path: Path, blocks: tuple[U8, U8], why: str) -> None:
    """All at a time, in tasks of their own: the block is removed once, before the first is written."""
    ids, data = blocks
    rows = data.reshape(-1, SHARD)
    async with opened(tmp_path, why, slice_bytes=SHARD) as store:
        await find_out(store, ids, why)
        at = range(SHARDS, 3 * SHARDS)
        tasks = [store.dump(ids[i // SHARDS : i // SHARDS + 1], [i % SHARDS], rows[i : i + 1]) for i in at]
        assert all(result.ok.all() for result in await asyncio.gather(*tasks))
        assert compressed(store)["dump"]["counts"]["made_way"] == 2
        assert (await store.lookup(ids)).all()
        result, back = await load_all(store, ids)
        assert result.ok.all(), result.failures
        assert (back == data).all()


async def test_a_delete_forgets_them(tmp_path: Path, blocks: tuple[U8, U8], why: str) -> None:
    ids, _ = blocks
    async with opened(tmp_path, why) as store:
        await find_out(store, ids, why)
        await store.delete(ids)
        assert compressed(store)["unserved_blocks"] == 0
        assert not (await store.lookup(ids)).any()


async def test_below_a_cache(tmp_path: Path, blocks: tuple[U8, U8], why: str) -> None:
    """The Cache asks before it leaves out a dump, so it writes them, too."""
    ids, data = blocks
    below = keys(tmp_path, compress_codec="huffman", refuse_lossy=why == "refused")
    async with ucm.open_store("Cache|Compress|Posix", **cache_keys(16, **below)) as store:
        result, _ = await load_all(store, ids)
        assert result.status.tolist() == [Status.OK, Status.CORRUPT, Status.CORRUPT, Status.OK]
        assert (await store.dump(ids, None, data)).ok.all()
    async with opened(tmp_path, why) as store:
        result, back = await load_all(store, ids)
        assert result.ok.all()
        assert (back == data).all()


@pytest.mark.parametrize("pipeline", ["Compress|Slab"])
async def test_in_a_slab(tmp_path: Path, pipeline: str) -> None:
    ids, data = real_blocks(3)
    made = keys(tmp_path, posix_capacity_gb=0.03)
    async with ucm.open_store(pipeline, **made, compress_codec="int4") as store:
        assert (await store.dump(ids, None, data)).ok.all()
    async with ucm.open_store(pipeline, **made, compress_codec="huffman", refuse_lossy=True) as store:
        result, _ = await load_all(store, ids)
        assert set(result.status.tolist()) == {Status.CORRUPT}
        assert (await store.dump(ids, None, data)).ok.all()
        result, back = await load_all(store, ids)
        assert result.ok.all()
        assert (back == data).all()


async def test_a_codec_of_another_version_is_replaced(tmp_path: Path) -> None:
    ids, data = real_blocks(2)
    async with open_compressed(tmp_path) as store:
        assert (await store.dump(ids, None, data)).ok.all()
        stored = StoredFile(file_of(tmp_path, ids[0]))
        stored.head["codec"] = stored.entries["codec"][1] = 9999
        stored.put()
        result, _ = await load_all(store, ids)
        assert isinstance(result.failures[0], UnknownCodecError)
        assert (await store.dump(ids, None, data)).ok.all()
        result, back = await load_all(store, ids)
        assert result.ok.all()
        assert (back == data).all()


def test_which_codecs_can_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(can_decode(number) for number in (c.RAW, c.HUFFMAN, c.PACKED, c.FP8_E4M3, c.INT8, c.INT4, c.LZ4, c.ZSTD))
    assert not can_decode(9999)
    forget_zstd(monkeypatch)
    assert not can_decode(c.ZSTD)
    monkeypatch.setattr("ucm_async.stages.compress.codecs.decoding.NATIVE", False)
    assert [can_decode(number) for number in (c.RAW, c.LZ4, c.HUFFMAN)] == [True, True, False]
