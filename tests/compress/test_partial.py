"""Loads and dumps of single shards: what is read, decoded and checked for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ucm_async import Status
from ucm_async.native import NATIVE
from ucm_async.store import Store

from .stores import PLAIN_FILE, SHARD, SHARDS, StoredFile, file_of, open_compressed, quarantined, real_blocks

pytestmark = pytest.mark.skipif(not NATIVE, reason="needs the extension")


def blocks_read(store: Store) -> int:
    return int(store.statistics().pipeline["Posix"]["stage"]["load"]["counts"].get("blocks", 0))


@pytest.mark.parametrize("shards", [range(SHARDS), [2, 0], [1, 1, 3]])
async def test_a_block_is_read_once_for_its_shards(tmp_path: Path, shards: list[int]) -> None:
    ids, data = real_blocks(1)
    async with open_compressed(tmp_path) as store:
        assert (await store.dump(ids, None, data)).ok.all()
        back = np.zeros((len(shards), SHARD), np.uint8)
        assert (await store.load(np.repeat(ids, len(shards), axis=0), shards, back)).ok.all()
        assert blocks_read(store) == 1
    assert (back == data.reshape(SHARDS, SHARD)[shards]).all()


async def test_layer_by_layer(tmp_path: Path) -> None:
    """One task over many blocks, in the order of an engine that saves and loads its layers one after another."""
    ids, data = real_blocks(80)  # enough for a slice for each queue
    shard, block = np.divmod(np.arange(len(ids) * SHARDS), len(ids))
    rows = np.ascontiguousarray(data.reshape(-1, SHARDS, SHARD).swapaxes(0, 1)).reshape(-1, SHARD)
    async with open_compressed(tmp_path) as store:
        assert (await store.dump(ids[block], shard, rows)).ok.all()
        back = np.zeros_like(rows)
        assert (await store.load(ids[block], shard, back)).ok.all()
        assert blocks_read(store) == len(ids)
    assert (back == rows).all()
    assert all(file_of(tmp_path, one).stat().st_size < PLAIN_FILE for one in ids)  # whole blocks are packed


async def test_only_what_was_asked_for_is_decoded(tmp_path: Path) -> None:
    """So damage of another shard is not seen; that of this one is, and takes the block."""
    ids, data = real_blocks(1)
    async with open_compressed(tmp_path) as store:
        assert (await store.dump(ids, None, data)).ok.all()
        stored = StoredFile(file_of(tmp_path, ids[0]))
        stored.shard(2)[5] ^= 1
        stored.put(sums=False)
        back = np.zeros((2, SHARD), np.uint8)
        assert (await store.load(ids[[0, 0]], [1, 3], back)).ok.all()
        assert (back == data.reshape(SHARDS, SHARD)[[1, 3]]).all()
        assert quarantined(tmp_path) == []
        result = await store.load(ids, [2], back[:1])
        assert result.status.tolist() == [Status.CORRUPT]
        assert not (await store.lookup(ids)).any()
