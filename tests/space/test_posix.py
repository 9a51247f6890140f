"""A store that keeps within its bytes, on real files."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status
from ucm_async.engines import sharedmemory
from ucm_async.errors import ConfigError
from ucm_async.space.collector import STEP_BLOCKS
from ucm_async.space.ledger import EXACT

from .support import (
    BLOCK,
    FILE,
    SMALL_FILES,
    Watch,
    block_files,
    check_usage,
    content,
    disk_usage,
    keys,
    mounted,
    space_of,
    stage_of,
)


async def dump(store: ucm.Store, first: int, count: int) -> np.ndarray[Any, Any]:
    ids = ucm.block_ids(range(first, first + count))
    result = await store.dump(ids, None, content(ids))
    assert set(result.status.tolist()) <= {Status.OK, Status.NO_SPACE}, result.failures
    return result.ok


async def check(store: ucm.Store, first: int, count: int) -> np.ndarray[Any, Any]:
    """Load blocks: what comes is right; returns which came."""
    ids = ucm.block_ids(range(first, first + count))
    out = np.zeros((count, BLOCK), dtype=np.uint8)
    result = await store.load(ids, None, out)
    assert (out[result.ok] == content(ids)[result.ok]).all()
    assert set(result.status.tolist()) <= {Status.OK, Status.MISS, Status.CORRUPT}
    return result.ok


async def settled(store: ucm.Store) -> None:
    """Wait until nobody collects and nothing needs to be."""
    manager = stage_of(store)._space.manager
    while manager._collecting or (manager.shortage() and not manager._hopeless):
        await asyncio.sleep(0.01)


async def test_without_bounds_nothing_is_ever_removed(tmp_path: Path) -> None:
    async with ucm.open_store("Posix", **keys(tmp_path)) as store:
        for first in range(0, 400, 100):
            assert (await dump(store, first, 100)).all()
        await asyncio.sleep(0.2)
        assert (await check(store, 0, 400)).all()
        assert space_of(store)["collected"]["runs"] == 0
        assert await check_usage(store, tmp_path) == 400 * FILE


async def test_the_cap_is_kept_and_the_coldest_go(tmp_path: Path) -> None:
    async with ucm.open_store("Posix", **keys(tmp_path, capacity=100)) as store:
        assert (await dump(store, 0, 50)).all()
        assert (await dump(store, 50, 40)).all()
        assert (await check(store, 0, 10)).all()  # asked for, so no longer the coldest
        for first in range(100, 160, 10):
            assert (await dump(store, first, 10)).all()
            assert disk_usage(tmp_path) <= 100 * FILE
        await settled(store)
        assert (await check(store, 0, 10)).all()
        assert not (await check(store, 10, 30)).any()
        assert (await check(store, 100, 60)).all()
        assert 80 * FILE <= await check_usage(store, tmp_path) <= 95 * FILE
        about = space_of(store)
        assert about["collected"]["blocks"] >= 50
        assert about["reserved_bytes"] == 0


async def test_a_block_that_can_never_fit(tmp_path: Path) -> None:
    async with ucm.open_store("Posix", **keys(tmp_path, capacity=0.5)) as store:
        ids = ucm.block_ids([1])
        result = await store.dump(ids, None, content(ids))
        assert result.status.tolist() == [Status.NO_SPACE]
        assert "a bound that was set" in str(result.failures[0])
        assert await check_usage(store, tmp_path) == 0


async def test_a_batch_that_is_larger_than_the_cap(tmp_path: Path) -> None:
    """As much of it as fits is taken, and nothing of it makes room for the rest while it is written."""
    async with ucm.open_store("Posix", **keys(tmp_path, capacity=30)) as store:
        taken = await dump(store, 0, 90)
        assert taken.sum() >= 30
        await settled(store)
        assert await check_usage(store, tmp_path) <= 30 * FILE


async def test_shards_hold_their_room_until_the_block_is_whole_or_given_up(tmp_path: Path) -> None:
    async with ucm.open_store("Posix", **keys(tmp_path, capacity=10, space_high=1.0)) as store:
        ids = ucm.block_ids(range(8))
        data = content(ids).reshape(8, 4, -1)
        assert (await store.dump(ids, [0] * 8, data[:, 0].copy())).ok.all()
        assert space_of(store)["reserved_bytes"] == 8 * FILE
        assert (await dump(store, 100, 4)).sum() == 2
        for shard in (1, 2, 3):
            assert (await store.dump(ids[:4], [shard] * 4, data[:4, shard].copy())).ok.all()
        about = space_of(store)
        assert (about["used_bytes"], about["reserved_bytes"]) == (6 * FILE, 4 * FILE)
        await store.delete(ids[4:])  # which gives up what was begun of them
        assert space_of(store)["reserved_bytes"] == 0
        assert (await dump(store, 200, 4)).all()
        await check_usage(store, tmp_path)


async def test_shards_that_wait_for_room_together_get_it_once(tmp_path: Path) -> None:
    """Each of two tasks has waited for the room of the same new block, and one room is all that it takes."""
    async with ucm.open_store("Posix", **keys(tmp_path, capacity=10, space_high=1.0)) as store:
        assert (await dump(store, 100, 10)).all()
        ids = ucm.block_ids([0])
        data = content(ids).reshape(1, 4, -1)
        both = [store.dump(ids, [shard], data[:, shard].copy()) for shard in (0, 1)]
        for task in both:
            assert (await task).ok.all()
        assert space_of(store)["reserved_bytes"] == FILE
        assert (await store.dump(ids.repeat(2, axis=0), [2, 3], data[0, 2:].copy())).ok.all()
        assert space_of(store)["reserved_bytes"] == 0
        await settled(store)
        await check_usage(store, tmp_path)


async def test_usage_after_everything_that_changes_it(tmp_path: Path) -> None:
    """Dumps, repeated and in shards; deletes; damage; a second store with the same blocks."""
    one = await ucm.open_store("Posix", **keys(tmp_path))
    two = await ucm.open_store("Posix", **keys(tmp_path))
    await asyncio.gather(dump(one, 0, 60), dump(two, 0, 60), dump(one, 20, 30), dump(two, 40, 80))
    assert await check_usage(one, tmp_path) == await check_usage(two, tmp_path) == 120 * FILE
    await asyncio.gather(one.delete(ucm.block_ids(range(50))), two.delete(ucm.block_ids(range(30, 80))))
    assert await check_usage(one, tmp_path) == 40 * FILE
    for number, path in enumerate(sorted(block_files(tmp_path))[:6]):
        with path.open("r+b") as file:
            file.seek(5000 + number)
            file.write(b"x" if file.read(1) != b"x" else b"y")
    assert (await lookup_and_load(one, 80, 40)).sum() >= 34
    assert await check_usage(one, tmp_path) == 40 * FILE  # what is set aside is on the disk
    assert (await dump(one, 80, 40)).all()
    assert await check_usage(two, tmp_path) == 46 * FILE
    await one.aclose()
    assert await check_usage(two, tmp_path) == 46 * FILE
    await two.aclose()


async def lookup_and_load(store: ucm.Store, first: int, count: int) -> np.ndarray[Any, Any]:
    ids = ucm.block_ids(range(first, first + count))
    await store.lookup(ids)
    out = np.zeros((count, BLOCK), dtype=np.uint8)
    result = await store.load(ids, None, out)
    assert (out[result.ok] == content(ids)[result.ok]).all()
    return result.ok


async def test_what_is_set_aside_goes_first(tmp_path: Path) -> None:
    async with ucm.open_store("Posix", **keys(tmp_path, capacity=50)) as store:
        assert (await dump(store, 0, 20)).all()
        for path in block_files(tmp_path)[:10]:
            path.write_bytes(bytes(FILE))
        assert (await lookup_and_load(store, 0, 20)).sum() == 10
        assert await usage(store) == 20 * FILE
        assert (await dump(store, 100, 28)).all()
        await settled(store)
        assert list(tmp_path.glob("*/quarantine/*")) == []
        assert space_of(store)["collected"]["purged_bytes"] == 10 * FILE
        assert (await check(store, 100, 28)).all()
        assert (await check(store, 0, 20)).sum() == 10
        await check_usage(store, tmp_path)


async def usage(store: ucm.Store) -> int:
    return int(space_of(store)["used_bytes"])


# ---- more than one


async def test_a_quota_of_a_namespace(tmp_path: Path) -> None:
    small = await ucm.open_store("Posix", **keys(tmp_path, capacity=200, quota=40, namespace="small"))
    large = await ucm.open_store("Posix", **keys(tmp_path, capacity=200, namespace="large"))
    for first in range(0, 120, 10):
        await dump(small, first, 10)
        assert (await dump(large, first, 10)).all()
    await settled(small)
    assert 30 * FILE <= await usage(small) <= 38 * FILE
    assert await usage(large) == 120 * FILE
    assert space_of(large)["all_namespaces_bytes"] == disk_usage(tmp_path)
    await small.aclose()
    # What the other one left counts for the cap of this one, open or not.
    for first in range(200, 300, 10):
        await dump(large, first, 10)
        assert disk_usage(tmp_path) <= 200 * FILE
    await settled(large)
    assert (await check(large, 290, 10)).all()
    await large.aclose()


async def test_over_two_backends(tmp_path: Path) -> None:
    both = [str(tmp_path / "a"), str(tmp_path / "b")]
    async with ucm.open_store("Posix", **keys("", storage_backends=both, capacity=60)) as store:
        for first in range(0, 150, 10):
            await dump(store, first, 10)
            assert disk_usage(tmp_path / "a") + disk_usage(tmp_path / "b") <= 60 * FILE
        await settled(store)
        assert await usage(store) == disk_usage(tmp_path / "a") + disk_usage(tmp_path / "b") <= 57 * FILE
        assert (await check(store, 130, 20)).all()


async def test_a_store_with_a_lower_cap_collects_what_is_too_much(tmp_path: Path) -> None:
    async with ucm.open_store("Posix", **keys(tmp_path)) as store:
        assert (await dump(store, 0, 100)).all()
    async with ucm.open_store("Posix", **keys(tmp_path, capacity=50)) as store:
        await settled(store)
        assert await check_usage(store, tmp_path) <= 45 * FILE
        assert (await check(store, 0, 100)).sum() == await usage(store) // FILE


async def test_a_restart_keeps_the_order(tmp_path: Path) -> None:
    async with ucm.open_store("Posix", **keys(tmp_path, capacity=100)) as store:
        assert (await dump(store, 0, 90)).all()
        assert (await check(store, 0, 30)).all()
    for _ in range(2):
        async with ucm.open_store("Posix", **keys(tmp_path, capacity=100)):
            pass
    assert len(list(tmp_path.glob("*/hotness/*"))) <= 2
    async with ucm.open_store("Posix", **keys(tmp_path, capacity=60)) as store:
        await settled(store)
        assert (await check(store, 0, 30)).all()
        assert (await check(store, 30, 60)).sum() <= 24


async def test_blocks_that_nobody_remembers_are_found_on_the_disk(tmp_path: Path) -> None:
    """The hotness is lost: what was written first goes first."""
    async with ucm.open_store("Posix", **keys(tmp_path)) as store:
        assert (await dump(store, 0, 60)).all()
    for path in block_files(tmp_path):
        number = _numbers(60)[bytes.fromhex(path.name)]
        os.utime(path, (1_600_000_000 + 3600 * number,) * 2)
    for path in tmp_path.glob("*/hotness/*"):
        path.unlink()
    async with ucm.open_store("Posix", **keys(tmp_path, capacity=40)) as store:
        assert (await dump(store, 100, 1)).all()
        await settled(store)
        assert not (await check(store, 0, 20)).any()
        assert (await check(store, 30, 30)).all()
        assert (await check(store, 100, 1)).all()


def _numbers(count: int) -> dict[bytes, int]:
    return {one.tobytes(): number for number, one in enumerate(ucm.block_ids(range(count)))}


# ---- after a stop that was none


@pytest.mark.parametrize("recover", ["quiet", "strict"])
async def test_files_that_are_no_blocks(tmp_path: Path, recover: str) -> None:
    async with ucm.open_store("Posix", **keys(tmp_path)) as store:
        assert (await dump(store, 0, 20)).all()
    damaged = block_files(tmp_path)[:3]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:4096])
    (tmp_path / "space.json").unlink()  # as after a new start of the machine: everything is counted
    opening = ucm.open_store("Posix", **keys(tmp_path, recover=recover))
    if recover == "strict":
        with pytest.raises(ConfigError, match="3 files are no blocks"):
            await opening
        for path in damaged:
            path.unlink()
        (tmp_path / "space.json").unlink()
    async with ucm.open_store("Posix", **keys(tmp_path, recover=recover)) as store:
        assert (await check(store, 0, 20)).sum() == 17
        await stage_of(store)._space.manager.counted()
        assert await usage(store) == disk_usage(tmp_path)


async def test_a_bound_needs_memory_that_can_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharedmemory, "MEMORY_DIRECTORY", tmp_path / "none")
    with pytest.raises(ConfigError, match="no memory can be shared"):
        await ucm.open_store("Posix", **keys(tmp_path, capacity=10))
    async with ucm.open_store("Posix", **keys(tmp_path)) as store:
        assert (await dump(store, 0, 10)).all()
        assert not space_of(store)["shared"]
        await check_usage(store, tmp_path)


# ---- a file system that is full


async def test_the_cap_is_never_exceeded_for_an_instant(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", 8 << 20) as place:
        async with ucm.open_store("Posix", **keys(place, capacity=150)) as store:
            with Watch(place) as watch:
                await asyncio.gather(*(_much(store, first) for first in (0, 10_000, 20_000)))
            await settled(store)
            await check_usage(store, place)
        assert watch.looks > 100
        assert 140 * FILE < watch.peak <= 150 * FILE + SMALL_FILES


async def _much(store: ucm.Store, first: int) -> None:
    for start in range(first, first + 400, 40):
        await dump(store, start, 40)


async def test_a_full_file_system_is_collected_and_dumps_resume(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", 4 << 20) as place:
        async with ucm.open_store("Posix", **keys(place)) as store:
            refused = resumed = 0
            for first in range(0, 800, 20):
                taken = await dump(store, first, 20)
                refused += int((~taken).sum())
                resumed += int(taken.sum()) if refused else 0
                assert (await check(store, first, 20)).sum() <= taken.sum()  # loads go on
                await asyncio.sleep(0.01)
            assert refused > 0
            assert resumed > 100
            assert space_of(store)["collected"]["blocks"] > 100
            await settled(store)
            await check_usage(store, place)


async def test_the_watermark(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", 8 << 20) as place:
        mark = 2 << 20
        async with ucm.open_store("Posix", **keys(place, space_watermark_gb=mark / (1 << 30))) as store:
            for first in range(0, 600, 20):
                await dump(store, first, 20)
                assert _free(place) >= mark - SMALL_FILES - STEP_BLOCKS * FILE
            (place / "of another").write_bytes(bytes(3 << 19))  # another program takes room: ours shrinks
            while _free(place) < mark:
                await asyncio.sleep(0.05)
            await settled(store)
            assert await check_usage(store, place) > 1 << 20


def _free(place: Path) -> int:
    about = os.statvfs(place)
    return about.f_bavail * about.f_frsize


async def test_a_file_that_cannot_be_seen_is_not_counted_as_nothing(tmp_path: Path) -> None:
    """After a crash, one size of many could not be read: then nothing is exact, and it is counted again."""
    async with ucm.open_store("Posix", **keys(tmp_path)) as store:
        assert (await dump(store, 0, 20)).all()
        space = stage_of(store)._space
        whole = space.files.stat_paths
        asked = 0

        async def once(*them: Any) -> Any:
            nonlocal asked
            asked += 1
            sizes = await whole(*them)
            if asked == 1:
                sizes[0] = -errno.EIO
            return sizes

        space.files.stat_paths = once  # type: ignore[method-assign]
        ledger = space.manager._ledgers[0]
        ledger._words[ledger._account, EXACT] = 0
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await space.manager.counted()
        while not ledger.exact:
            await asyncio.sleep(0.01)
        await check_usage(store, tmp_path)
