"""A host whose /dev/shm is small: ``python -m tests.cache_faults.small_shm SCENARIO``, where that is mounted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ucm_async as ucm
from tests.faults.support import check_blocks, content
from ucm_async.stages.cache import segment

from .stages import CONTROLLED
from .support import cache_keys, inode, segment_path

SHM_BYTES = 8 << 20
FITS = 40
"""Slots of 64 KiB that fit, beside the table and what is lost for the alignment of the arena."""

IDS = ucm.block_ids(range(FITS // 2))
FILLER = Path(segment.DIRECTORY) / "filler"


def fill_up() -> None:
    with FILLER.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert os.statvfs(segment.DIRECTORY).f_bavail == 0


@contextlib.contextmanager
def full() -> Iterator[None]:
    fill_up()
    yield
    FILLER.unlink()


async def refused(keys: dict[str, Any]) -> None:
    with pytest.raises(
        ucm.ConfigError, match=r"cache_buffer_capacity_gb: \d+ slots of 65536 bytes need \d+ bytes, but"
    ):
        await ucm.open_store(CONTROLLED, **keys)


async def use(store: ucm.Store) -> None:
    assert (await store.dump(IDS, None, content(IDS), durability="cached")).ok.all()
    assert not await store.flush()
    await check_blocks(store, IDS)
    await check_blocks(store, ucm.block_ids(range(100, 100 + 2 * FITS)))


async def too_large() -> None:
    """Seen before anything is touched."""
    await refused(cache_keys(slots=3 * FITS))
    assert os.listdir(segment.DIRECTORY) == []


async def filled_before() -> None:
    """As above, and when there is room again it goes."""
    keys = cache_keys(slots=FITS)
    with full():
        await refused(keys)
        assert os.listdir(segment.DIRECTORY) == [FILLER.name]
    async with ucm.open_store(CONTROLLED, **keys) as store:
        await use(store)


async def filled_meanwhile() -> None:
    """The look said that there was room. Whoever touched the missing pages would be killed."""
    keys = cache_keys(slots=FITS)
    look = segment._check_room

    def look_and_fill_up(geometry: segment.Geometry) -> None:
        look(geometry)
        fill_up()

    segment._check_room = look_and_fill_up
    await refused(keys)
    assert os.listdir(segment.DIRECTORY) == [FILLER.name]
    FILLER.unlink()
    segment._check_room = look
    async with ucm.open_store(CONTROLLED, **keys) as store:
        await use(store)


async def filled_afterwards() -> None:
    """Every page is there from the beginning: those who live in it, and those who join, notice nothing."""
    keys = cache_keys(slots=FITS)
    async with ucm.open_store(CONTROLLED, **keys) as store:
        with full():
            await use(store)
            async with ucm.open_store(CONTROLLED, **keys) as other:
                await use(other)
            await use(store)


async def left_with_holes() -> None:
    """A segment that nobody lives in, of which some pages never were."""
    keys = cache_keys(slots=FITS)
    path = segment_path(keys["unique_id"])
    async with ucm.open_store(CONTROLLED, **keys):
        table = path.read_bytes()[: segment.ARENA_ALIGN]
        size = path.stat().st_size
    path.write_bytes(table)
    path.chmod(0o600)
    os.truncate(path, size)
    with full():
        await refused(keys)
    async with ucm.open_store(CONTROLLED, **keys) as store:
        await use(store)
    assert not inode(keys["unique_id"])


SCENARIOS = {
    one.__name__: one for one in (too_large, filled_before, filled_meanwhile, filled_afterwards, left_with_holes)
}

if __name__ == "__main__":
    assert os.statvfs(segment.DIRECTORY).f_blocks * 4096 == SHM_BYTES, "this is the real /dev/shm"
    asyncio.run(SCENARIOS[sys.argv[1]]())
    assert os.listdir(segment.DIRECTORY) == []
