"""The short way of one small block: taken where it can be, and the same answers where it cannot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status
from ucm_async.types import U8

from .support import BLOCK, content, dump, find_block, keys, stage_statistics

SEGMENT_SLOTS = 31  # of `keys`


def short_way(store: ucm.Store) -> int:
    """How many loads went it, to a good end."""
    return int(stage_statistics(store)["load"]["counts"].get("express", 0))


async def load_one(store: ucm.Store, number: int) -> tuple[Status, U8]:
    out = np.zeros((1, BLOCK), dtype=np.uint8)
    result = await store.load(ucm.block_ids([number]), None, out)
    await asyncio.sleep(0)  # it is noted after the caller
    return Status(result.status[0]), out[0]


@pytest.mark.parametrize("backends", [1, 2])
async def test_one_small_block_goes_it(tmp_path: Path, backends: int) -> None:
    folders = [str(tmp_path / str(i)) for i in range(backends)]
    async with ucm.open_store("Slab", **keys(tmp_path, storage_backends=folders)) as store:
        assert (await dump(store, 0, 40)).all()
        for number in range(40):
            status, out = await load_one(store, number)
            assert status == Status.OK
            assert (out == content(ucm.block_ids([number]))[0]).all()
        if stage_statistics(store)["load"]["engine"]["name"] == "auto":
            assert short_way(store) == 40
        assert (await load_one(store, 40))[0] == Status.MISS
        await store.delete(ucm.block_ids([3]))
        assert (await load_one(store, 3))[0] == Status.MISS
        assert short_way(store) <= 40


async def test_a_damaged_block_is_corrupt_and_set_aside(tmp_path: Path) -> None:
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert (await dump(store, 0, 3)).all()
        slot = find_block(tmp_path, ucm.block_ids([1])[0].tobytes())
        assert slot is not None
        byte = slot.read()[9000]
        slot.write(bytes([byte ^ 1]), 9000)
        assert (await load_one(store, 1))[0] == Status.CORRUPT
        assert (await load_one(store, 1))[0] == Status.MISS
        assert short_way(store) == 0
        assert [path.name for path in tmp_path.glob("*/quarantine/*")] == [ucm.block_ids([1])[0].tobytes().hex()]


async def test_a_segment_that_another_store_made_is_opened_first(tmp_path: Path) -> None:
    async with (
        ucm.open_store("Slab", **keys(tmp_path)) as reader,
        ucm.open_store("Slab", **keys(tmp_path)) as writer,
    ):
        assert (await dump(writer, 0, 2 * SEGMENT_SLOTS)).all()
        for before, number in enumerate((0, 1, SEGMENT_SLOTS + 1)):
            assert (await load_one(reader, number))[0] == Status.OK
            assert short_way(reader) == before, "the first one opens the segments"


async def test_many_at_once(tmp_path: Path) -> None:
    """More than there are chains: the others go the ordinary way, and every one gets its own bytes."""
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert (await dump(store, 0, 100)).all()
        out = np.zeros((100, BLOCK), dtype=np.uint8)
        ids = ucm.block_ids(range(100))
        results = await asyncio.gather(*(store.load(ids[i : i + 1], None, out[i : i + 1]) for i in range(100)))
        assert all(result.ok.all() for result in results)
        assert (out == content(ids)).all()
