"""A tmpfs of 64 MiB, filled to the last byte under traffic."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status

from .support import BLOCK, FILE, check_usage, content, keys, mounted, space_of, stage_of

DISK_BYTES = 64 << 20
OTHERS_BYTES = 44 << 20
"""Of another program, so that the rest is soon full."""

CLIENTS = 4
BLOCKS_AT_ONCE = 24


class Traffic:
    """Dumps and loads of several clients, until it is stopped; every byte that comes is compared."""

    def __init__(self, store: ucm.Store) -> None:
        self.store = store
        self.stop = False
        self.dumped = self.refused = self.loaded = 0

    async def client(self, number: int) -> None:
        first = number << 20
        while not self.stop:
            ids = ucm.block_ids(range(first, first + BLOCKS_AT_ONCE))
            result = await self.store.dump(ids, None, content(ids))
            assert set(result.status.tolist()) <= {Status.OK, Status.NO_SPACE}, result.failures
            self.dumped += int(result.ok.sum())
            self.refused += int((~result.ok).sum())
            back = max(number << 20, first - 3 * BLOCKS_AT_ONCE)
            await self.load(ucm.block_ids(range(back, first + BLOCKS_AT_ONCE)))
            first += BLOCKS_AT_ONCE

    async def load(self, ids: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> None:
        out = np.zeros((len(ids), BLOCK), np.uint8)
        result = await self.store.load(ids, None, out)
        assert set(result.status.tolist()) <= {Status.OK, Status.MISS}, result.failures
        assert (out[result.ok] == content(ids)[result.ok]).all()
        self.loaded += int(result.ok.sum())

    async def until(self, more_dumped: int, more_refused: int) -> None:
        dumped, refused = self.dumped + more_dumped, self.refused + more_refused
        while self.dumped < dumped or self.refused < refused:
            await asyncio.sleep(0.01)


def fill_to_the_last_byte(place: Path) -> None:
    """Take what is left, as another program may."""
    with (place / "of another").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


@pytest.mark.timeout(120)
async def test_filled_to_the_last_byte_under_traffic(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", DISK_BYTES) as place:
        async with ucm.open_store("Posix", **keys(place)) as store:
            await asyncio.to_thread((place / "of another").write_bytes, bytes(OTHERS_BYTES))
            traffic = Traffic(store)
            clients = [asyncio.create_task(traffic.client(n)) for n in range(CLIENTS)]
            await traffic.until((DISK_BYTES - OTHERS_BYTES) // FILE, 1)  # full by itself, and dumps have been refused
            await asyncio.to_thread(fill_to_the_last_byte, place)
            await traffic.until(100, 0)  # they resume by themselves, on what is left
            await asyncio.to_thread((place / "of another").unlink)
            await traffic.until(100, 0)
            traffic.stop = True
            await asyncio.gather(*clients)
            assert traffic.loaded > 0
            assert space_of(store)["collected"]["blocks"] > 0
            manager = stage_of(store)._space.manager
            while manager._collecting or manager.shortage():
                await asyncio.sleep(0.01)
            used = await check_usage(store, place)  # as du, and as the sum of the headers
        async with ucm.open_store("Posix", **keys(place)) as store:
            assert await check_usage(store, place) == used


def test_there_is_no_last_byte_left(tmp_path: Path) -> None:
    """What fills the disk does fill it."""
    with mounted(tmp_path / "small", 1 << 20) as place:
        fill_to_the_last_byte(place)
        assert os.statvfs(place).f_bfree == 0
        with (place / "one more").open("wb", buffering=0) as file, pytest.raises(OSError) as raised:
            file.write(b"x")
        assert raised.value.errno == errno.ENOSPC
