"""Slots for dumps: segments come up to the cap, then the coldest blocks go; and segments go when the cap is lowered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status
from ucm_async.engines.system import System
from ucm_async.stages.slab import slab
from ucm_async.stages.slab.memory import SlabMemory

from .support import GIB, SLOT, check, content, data_files, disk_usage, dump, keys, slot_counts, stage_statistics


@contextmanager
def watched(directory: Path, bound: int) -> Iterator[None]:
    """See to it that the data files never occupy more than `bound` bytes."""
    seen, stop = [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.001):
            seen[0] = max(seen[0], disk_usage(directory))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert 0 < seen[0] <= bound, f"{seen[0]} bytes of {bound}"


async def used(store: ucm.Store, directory: Path) -> int:
    """Usage as the store tells it, which is what is on the disk."""
    about = stage_statistics(store)["space"]
    assert about["reserved_bytes"] == 0
    assert about["used_bytes"] == await asyncio.to_thread(disk_usage, directory)
    return int(about["used_bytes"])


async def test_segments_come_as_they_are_needed(tmp_path: Path) -> None:
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert await asyncio.to_thread(data_files, tmp_path) == []
        assert (await dump(store, 0, 5)).all()
        one = await used(store, tmp_path)
        assert len(await asyncio.to_thread(data_files, tmp_path)) == 1
        assert (await dump(store, 5, 20)).all()
        assert await used(store, tmp_path) == one
        assert (await dump(store, 100, 100)).all()
        assert await used(store, tmp_path) == 5 * one
        assert slot_counts(store)["stored"] == 125


def neighbour(directory: Path) -> SlabMemory:
    """What another process has of a store's memory. Blocks."""
    (path,) = directory.glob("*/slab/lock")
    return SlabMemory(System(), path)


async def test_nobody_waits_for_a_stopped_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dumps get the slots of cold blocks in place of a new segment, and closing goes on; nothing is lost by that."""
    monkeypatch.setattr(slab, "CLOSE_PATIENCE_S", 0.1)
    store = await ucm.open_store("Slab", **keys(tmp_path))
    assert (await dump(store, 0, 20)).all()
    free = slot_counts(store)["free"]
    other = await asyncio.to_thread(neighbour, tmp_path)
    assert await other.acquire(1)  # and it is stopped now
    try:
        assert (await dump(store, 100, free + 5)).all()
        assert slot_counts(store)["free"] == 0
        assert len(await asyncio.to_thread(data_files, tmp_path)) == 1
        await store.aclose()
    finally:
        other.release()
        other.close()
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert (await check(store, 100, free + 5)).all()
        assert (await dump(store, 200, free + 5)).all()
        assert len(await asyncio.to_thread(data_files, tmp_path)) > 1


async def test_the_first_dump_waits_for_the_lock(tmp_path: Path) -> None:
    """With nothing to evict and no segment yet there is no other way; but no longer than its deadline."""
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        other = await asyncio.to_thread(neighbour, tmp_path)
        assert await other.acquire(1)
        ids = ucm.block_ids(range(2))
        short = store.dump(ids[:1], None, content(ids[:1]), timeout=0.1)
        long = store.dump(ids[1:], None, content(ids[1:]))
        assert (await short).status.tolist() == [Status.TIMEOUT]
        await asyncio.sleep(1)
        assert not store.check(long)
        other.release()
        assert (await long).ok.all()
        other.close()


async def test_a_cancelled_wait_for_the_lock_leaves_it_to_others(tmp_path: Path) -> None:
    async with ucm.open_store("Slab", **keys(tmp_path)):
        one, other = [await asyncio.to_thread(neighbour, tmp_path) for _ in range(2)]
        for turns in range(6):
            waiting = asyncio.ensure_future(one.acquire(10))
            for _ in range(turns):
                await asyncio.sleep(0)
            if waiting.cancel():
                await asyncio.wait([waiting])
                assert waiting.cancelled()
            else:
                assert waiting.result()
                one.release()
            assert await other.acquire(0)
            assert not await one.acquire(0)
            other.release()
        one.close()
        other.close()


async def test_the_cap_is_kept_and_the_coldest_go(tmp_path: Path) -> None:
    with watched(tmp_path, 160 * SLOT):
        async with ucm.open_store("Slab", **keys(tmp_path, capacity=160)) as store:
            assert (await dump(store, 0, 100)).all()
            assert (await check(store, 0, 30)).all()  # asked for, so no longer the coldest
            for first in range(200, 300, 10):
                assert (await dump(store, first, 10)).all()
            assert (await check(store, 0, 30)).all()
            assert not (await check(store, 30, 40)).any()
            assert (await check(store, 200, 100)).all()
            await used(store, tmp_path)
            assert stage_statistics(store)["evicted"] > 0


async def test_a_batch_that_is_larger_than_the_cap(tmp_path: Path) -> None:
    async with ucm.open_store("Slab", **keys(tmp_path, capacity=32)) as store:
        for first in (0, 1000, 2000):
            await dump(store, first, 200)
            assert await used(store, tmp_path) <= 32 * SLOT
            counts = slot_counts(store)
            assert counts["taken"] == 0
        assert (await dump(store, 5000, 10)).all()
        assert (await check(store, 5000, 10)).all()


async def test_a_cap_that_holds_no_segment(tmp_path: Path) -> None:
    async with ucm.open_store("Slab", **keys(tmp_path, capacity=0.5)) as store:
        ids = ucm.block_ids([1])
        result = await store.dump(ids, None, content(ids), timeout=5)
        assert result.status.tolist() == [Status.NO_SPACE]
        assert await used(store, tmp_path) == 0


async def test_a_lowered_cap_takes_whole_segments(tmp_path: Path) -> None:
    async with ucm.open_store("Slab", **keys(tmp_path, capacity=320)) as store:
        assert (await dump(store, 0, 200)).all()
        before = await used(store, tmp_path)
    lower = keys(tmp_path, capacity=100)
    async with ucm.open_store("Slab", **lower) as store:
        while stage_statistics(store)["space"]["used_bytes"] > lower["posix_capacity_gb"] * GIB:
            await asyncio.sleep(0.01)
        assert await used(store, tmp_path) < before
        counts = slot_counts(store)
        assert counts["stored"] > 0
        assert counts["taken"] == 0
        came = await check(store, 0, 200)
        assert came.sum() == counts["stored"]
        assert (await dump(store, 500, 50)).all()
        assert (await check(store, 500, 50)).all()
        assert await used(store, tmp_path) <= 100 * SLOT


async def test_shards_keep_their_slot_until_the_block_is_given_up(tmp_path: Path) -> None:
    async with ucm.open_store("Slab", **keys(tmp_path, capacity=256)) as store:
        ids = ucm.block_ids(range(40))
        rows = content(ids).reshape(40, 4, -1)
        assert (await store.dump(ids, [0] * 40, rows[:, 0].copy())).ok.all()
        assert slot_counts(store)["taken"] == 40
        for first in range(100, 500, 40):
            assert (await dump(store, first, 40)).all()
        await store.delete(ids[20:])
        assert slot_counts(store)["taken"] == 20
        for shard in (3, 1, 2):
            assert (await store.dump(ids[:20], [shard] * 20, rows[:20, shard].copy())).ok.all()
        assert slot_counts(store)["taken"] == 0
        assert (await check(store, 0, 20)).all()


async def test_incomplete_blocks_do_not_take_every_slot(tmp_path: Path) -> None:
    """The oldest of them are given up, as of any that exceed ``partial_blocks_max``."""
    async with ucm.open_store("Slab", **keys(tmp_path, capacity=64)) as store:
        ids = ucm.block_ids(range(60))
        rows = content(ids).reshape(60, 4, -1)
        for at in range(0, 60, 10):
            assert (await store.dump(ids[at : at + 10], [0] * 10, rows[at : at + 10, 0].copy())).ok.all()
        while slot_counts(store)["taken"] > 16:  # they go after the dump was reported
            await asyncio.sleep(0.01)
        assert slot_counts(store)["taken"] > 0
        assert (await dump(store, 100, 10)).all()


async def test_blocks_that_are_being_read_stay(tmp_path: Path) -> None:
    """Loads and dumps beside each other on a store that is full: nothing wrong comes, and what is asked for stays."""
    async with ucm.open_store("Slab", **keys(tmp_path, capacity=64)) as store:
        assert (await dump(store, 0, 20)).all()
        ids = ucm.block_ids(range(20))
        wanted = content(ids)

        stop = asyncio.Event()

        async def keep_reading() -> None:
            while not stop.is_set():
                out = np.zeros_like(wanted)
                result = await store.load(ids, None, out)
                assert result.ok.all(), dict(result.failures)
                assert (out == wanted).all()

        reading = asyncio.ensure_future(keep_reading())
        for first in range(1000, 1200, 8):
            assert (await dump(store, first, 8)).all()
        stop.set()
        await reading
        assert stage_statistics(store)["evicted"] > 100


async def test_what_is_set_aside_is_accounted_for(tmp_path: Path) -> None:
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert (await dump(store, 0, 4)).all()
        (path,) = await asyncio.to_thread(data_files, tmp_path)

        def damage() -> None:
            with path.open("r+b") as file:
                file.seek(4096 + 2 * SLOT + 5000)
                byte = file.read(1)[0]
                file.seek(-1, 1)
                file.write(bytes([byte ^ 1]))

        await asyncio.to_thread(damage)
        assert (await check(store, 0, 4, (Status.CORRUPT,))).sum() == 3
        assert slot_counts(store)["bad"] == 1
        assert len(await asyncio.to_thread(data_files, tmp_path)) == 2
        await used(store, tmp_path)
