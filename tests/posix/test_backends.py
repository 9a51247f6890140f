"""Several storage backends: blocks are spread, found again, and moved as little as can be."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async import ConfigError, Store, open_store
from ucm_async.engines.system import System
from ucm_async.testing.stores import BLOCK_BYTES, all_ok, make_blocks

KEYS = {"block_size": BLOCK_BYTES, "io_engine": "psync", "staging_buffer_gb": 0.002}
COUNT = 48


async def found(backends: list[Any]) -> int:
    ids, _ = make_blocks(COUNT)
    async with open_store("Posix", **KEYS, storage_backends=backends) as store:
        return int((await store.lookup(ids)).sum())


async def fill(backends: list[Any]) -> None:
    ids, data = make_blocks(COUNT)
    async with open_store("Posix", **KEYS, storage_backends=backends) as store:
        assert all_ok(await store.dump(ids, None, data))


@pytest.mark.parametrize("pipeline", ["Posix", "Slab"])
async def test_a_disk_without_room_for_a_directory(
    pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(self: System, path: str | Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(System, "mkdir", mkdir)
    with pytest.raises(ConfigError, match=r"No space left on device; a store needs some 100 KiB .* gc makes room"):
        await open_store(pipeline, block_size=BLOCK_BYTES, storage_backends=[tmp_path])


def blocks_in(path: Path) -> int:
    return len(list(path.glob("*/??/????????????????????????????????")))


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    return [tmp_path / name for name in "abc"]


async def test_blocks_are_spread(disks: list[Path]) -> None:
    await fill(disks)
    counts = [blocks_in(disk) for disk in disks]
    assert sum(counts) == COUNT
    assert min(counts) > 4


async def test_their_order_does_not_matter(disks: list[Path]) -> None:
    await fill(disks)
    assert await found(disks[::-1]) == COUNT


async def test_the_spelling_of_a_path_does_not_matter(disks: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(disks)
    monkeypatch.chdir(disks[0].parent)
    assert await found(["a", "./b/", f"{os.getcwd()}/a/../c"]) == COUNT


async def test_a_new_backend_costs_only_its_share(disks: list[Path]) -> None:
    await fill(disks[:2])
    stayed = await found(disks)
    assert COUNT / 3 < stayed < COUNT


async def test_a_backend_that_was_lost_costs_only_its_blocks(disks: list[Path]) -> None:
    await fill(disks)
    lost = blocks_in(disks[1])
    shutil.rmtree(disks[1])
    assert await found([disks[0], disks[2]]) == COUNT - lost
    ids, data = make_blocks(COUNT)
    async with open_store("Posix", **KEYS, storage_backends=disks) as store:
        result = await store.load(ids, None, np.zeros_like(data))
        assert result.ok.sum() == COUNT - lost
        assert all_ok(await store.dump(ids, None, data))
        assert (await store.lookup(ids)).all()


async def test_one_task_loads_from_all_of_them(disks: list[Path]) -> None:
    await fill(disks)
    ids, data = make_blocks(COUNT)
    order = np.random.default_rng(0).permutation(COUNT)
    back = np.zeros_like(data)
    async with open_store("Posix", **KEYS, storage_backends=disks) as store:
        assert all_ok(await store.load(ids[order], None, back))
        assert await store.lookup_on_prefix(ids) == COUNT - 1
        await store.delete(ids)
    assert (back == data[order]).all()
    assert sum(blocks_in(disk) for disk in disks) == 0


async def test_statistics_tell_of_each(disks: list[Path]) -> None:
    async with open_store("Posix", **KEYS, storage_backends=disks) as store:
        assert isinstance(store, Store)
        told = store.statistics().pipeline["Posix"]["stage"]["backends"]
    assert [one["path"] for one in told] == [str(disk) for disk in disks]
    assert all(one["error"] == "" for one in told)
