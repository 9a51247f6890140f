"""Blocks and shards of every size, aligned or not, through slots and straight from the caller's memory."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from ucm_async import Store, block_ids, open_store
from ucm_async.testing.stores import all_ok
from ucm_async.types import U8

BLOCKS = 7
GEOMETRIES = [
    (1, 1),
    (7, 1),
    (512, 512),
    (4095, 4095),
    (4097, 4097),
    (8192, 4096),
    (65536, 512),
    (131073, 43691),  # odd, and 3 shards
    (300_000, 100_000),
    (405_504, 4096),  # 99 shards
    (1 << 20, 1 << 18),
]


def page_aligned(count: int, size: int) -> U8:
    return np.frombuffer(mmap.mmap(-1, count * size), dtype=np.uint8).reshape(count, size)


@pytest.mark.parametrize("how", ["psync", "auto", "buffered"])
@pytest.mark.parametrize(("block_size", "shard_size"), GEOMETRIES)
async def test_bytes_come_back(tmp_path: Path, block_size: int, shard_size: int, how: str) -> None:
    keys = {"io_direct": False} if how == "buffered" else {"io_engine": how}
    sizes = {"block_size": block_size, "shard_size": shard_size, "staging_buffer_gb": 0.001}
    async with open_store("Posix", storage_backends=[tmp_path], **sizes, **keys) as store:
        random = np.random.default_rng(block_size)
        data = random.integers(0, 256, (BLOCKS, block_size), dtype=np.uint8)
        await through_slots(store, data, random)
        await straight(store, data, random)


def rows_of(ids: U8, data: U8, shard_size: int) -> tuple[U8, U8, U8]:
    shards = data.shape[1] // shard_size
    return np.repeat(ids, shards, axis=0), np.tile(np.arange(shards), len(ids)), data.reshape(-1, shard_size)


async def through_slots(store: Store, data: U8, random: np.random.Generator) -> None:
    """Shards in random order from several tasks; then whole blocks, and some of the shards."""
    ids = block_ids(range(BLOCKS))
    shard_ids, shards, rows = rows_of(ids, data, store.config.shard_size)
    order = random.permutation(len(rows))
    parts = [part for part in np.array_split(order, 4) if len(part)]
    for task in [store.dump(shard_ids[part], shards[part], rows[part]) for part in parts]:
        assert all_ok(await task)
    assert (await store.lookup(ids)).all()
    back = np.zeros_like(data)
    assert all_ok(await store.load(ids, None, back))
    assert (back == data).all()
    some = random.permutation(len(rows))[: len(rows) // 2 + 1]
    back = np.zeros((len(some), rows.shape[1]), dtype=np.uint8)
    assert all_ok(await store.load(shard_ids[some], shards[some], back))
    assert (back == rows[some]).all()


async def straight(store: Store, data: U8, random: np.random.Generator) -> None:
    """The same from registered memory, as far as its rows are whole pages."""
    ids = block_ids(range(100, 100 + BLOCKS))
    shard_ids, shards, rows = rows_of(ids, data, store.config.shard_size)
    source, back = page_aligned(*data.shape), page_aligned(*rows.shape)
    source[:] = data
    order = random.permutation(len(rows))
    with store.register(source), store.register(back):
        assert all_ok(await store.dump(ids, None, source))
        assert all_ok(await store.load(shard_ids[order], shards[order], back))
    assert (back == rows[order]).all()
