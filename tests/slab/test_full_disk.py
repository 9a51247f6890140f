"""A file system that is full: dumps make room for themselves or say NO_SPACE, loads go on, and it ends by itself."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import ucm_async as ucm
from tests.space.support import mounted

from .support import PAGE, check, disk_usage, dump, keys, slot_counts, stage_statistics


async def test_a_full_file_system(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 8 << 20) as directory:
        await fill_it(directory)


async def fill_it(directory: Path) -> None:
    async with ucm.open_store("Slab", **keys(directory, posix_capacity_gb=0)) as store:
        assert (await dump(store, 0, 40)).all()
        await asyncio.to_thread(occupy, directory)
        for first in range(1000, 1400, 20):
            taken = await dump(store, first, 20)
            assert taken.all(), "there are slots of colder blocks"
            assert (await check(store, first, 20)).all()
        assert stage_statistics(store)["evicted"] > 0
        before = await asyncio.to_thread(disk_usage, directory)
        assert stage_statistics(store)["space"]["used_bytes"] == before
        await asyncio.to_thread((directory / "foreign").unlink)
        until, first = time.monotonic() + 20, 2000
        while await asyncio.to_thread(disk_usage, directory) <= before:
            assert time.monotonic() < until, "it does not grow again"
            assert (await dump(store, first, 20)).all()
            first += 20
        assert slot_counts(store)["taken"] == 0
    async with ucm.open_store("Slab", **keys(directory, posix_capacity_gb=0)) as store:
        assert (await check(store, first - 20, 20)).all()


def occupy(directory: Path) -> None:
    """Fill the file system to the last page."""
    with (directory / "foreign").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError:
            pass


async def test_full_from_the_beginning(tmp_path: Path) -> None:
    """No segment can be made: NO_SPACE within the patience, and all is well once there is space."""
    with mounted(tmp_path / "disk", 4 << 20) as directory:
        async with ucm.open_store("Slab", **keys(directory, posix_capacity_gb=0)) as store:
            await asyncio.to_thread(occupy, directory)
            assert not (await dump(store, 0, 4)).any()
            assert (await store.lookup(ucm.block_ids(range(4)))).sum() == 0
            await asyncio.to_thread((directory / "foreign").unlink)
            until = time.monotonic() + 20
            while not (await dump(store, 0, 4)).all():
                assert time.monotonic() < until
            assert (await check(store, 0, 4)).all()
