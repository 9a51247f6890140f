"""A disk that is full for real: a tmpfs of 16 MiB, or, where nothing can be mounted, a limit on the size of files.

What is told here is what the writes themselves do, so nobody collects; `tests/space` has a full disk with collection.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status
from ucm_async.space import SpaceManager

from .conftest import Opener
from .support import (
    BLOCK,
    ENGINES,
    Array,
    by_shard,
    check_blocks,
    content,
    files_below,
    home,
    quiet,
    statuses,
    temporary,
)

DISK_BYTES = 16 << 20
BLOCK_FILE_BYTES = BLOCK + 4096
MANY = ucm.block_ids(range(DISK_BYTES // BLOCK_FILE_BYTES + 40))


@pytest.fixture(autouse=True)
def nobody_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpaceManager, "no_space", lambda self, place: None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def fill(store: ucm.Store) -> Array:
    """Dump more than there is room for; bool, shape of `MANY`: what was taken."""
    taken = np.zeros(len(MANY), dtype=np.bool_)
    for start in range(0, len(MANY), 24):
        part = slice(start, start + 24)
        result = await store.dump(MANY[part], None, content(MANY[part]))
        assert set(statuses(result)) <= {Status.OK, Status.NO_SPACE}, result.failures
        assert all(isinstance(error, ucm.NoSpaceError) for error in result.failures.values())
        taken[part] = result.ok
    return taken


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_full_disk(open_store: Opener, small_disk: Path, engine: str) -> None:
    store = await open_store(storage_backends=[str(small_disk)], io_engine=engine)
    taken = await fill(store)
    assert 100 < taken.sum() < len(MANY)
    assert (await store.lookup(MANY)).tolist() == taken.tolist()
    kept = np.ascontiguousarray(MANY[taken])
    await check_blocks(store, kept)
    await quiet(store)
    assert len(files_below(home(store))) == taken.sum()
    assert temporary(home(store)) == []
    # As soon as there is room again, dumps work.
    await store.delete(kept[:20])
    refused = np.ascontiguousarray(MANY[~taken][:10])
    assert (await store.dump(refused, None, content(refused))).ok.all()
    await check_blocks(store, refused)
    await quiet(store)


async def test_loads_go_on_while_the_disk_is_full(open_store: Opener, small_disk: Path) -> None:
    store = await open_store(storage_backends=[str(small_disk)])
    taken = await fill(store)
    kept = np.ascontiguousarray(MANY[taken])
    refused = 0

    async def dump() -> None:
        nonlocal refused
        for n in range(20):
            ids = ucm.block_ids(range(10_000 + 20 * n, 10_020 + 20 * n))
            result = await store.dump(ids, None, content(ids))
            refused += statuses(result).count(Status.NO_SPACE)

    async def load() -> None:
        for start in range(0, len(kept), 20):
            await check_blocks(store, kept[start : start + 20])

    await asyncio.gather(dump(), load(), load())
    assert refused > 100
    await quiet(store)


async def test_shards_on_a_full_disk(open_store: Opener, small_disk: Path) -> None:
    """A block has its room from its first shard on: what was begun before the disk was full can be ended."""
    store = await open_store(storage_backends=[str(small_disk)])
    ids = ucm.block_ids(range(100_000, 100_008))
    rows, shards, data = by_shard(ids)
    some = shards < 2
    assert (await store.dump(rows[some], shards[some], data[some])).ok.all()
    taken = await fill(store)
    late = ucm.block_ids(range(200_000, 200_008))
    late_rows, late_shards, late_data = by_shard(late)
    result = await store.dump(late_rows, late_shards, late_data)
    assert Status.NO_SPACE in statuses(result)
    assert set(statuses(result)) <= {Status.OK, Status.NO_SPACE}
    assert (await store.dump(rows[~some], shards[~some], data[~some])).ok.all()
    await store.delete(np.ascontiguousarray(MANY[taken][:40]))
    assert (await store.dump(late_rows, late_shards, late_data)).ok.all()
    assert (await store.lookup(ids)).all()
    await check_blocks(store, ids)
    await check_blocks(store, late)
    await quiet(store)


async def test_a_store_opens_on_a_full_disk(open_store: Opener, small_disk: Path) -> None:
    """What is there can be read; that needs no room."""
    store = await open_store(storage_backends=[str(small_disk)])
    taken = await fill(store)
    (small_disk / "filler").write_bytes(bytes(max(0, room(small_disk))))
    kept = np.ascontiguousarray(MANY[taken])
    other = await open_store(storage_backends=[str(small_disk)])
    assert (await other.lookup(kept)).all()
    await check_blocks(other, kept)
    result = await other.dump(MANY[~taken], None, content(MANY[~taken]))
    assert Status.NO_SPACE in statuses(result)


def room(place: Path) -> int:
    import os

    state = os.statvfs(place)
    return state.f_bavail * state.f_frsize


async def test_a_limit_on_file_sizes(open_store: Opener) -> None:
    """The kernel cuts a write short in the middle and refuses the rest: EFBIG. No block comes of it."""
    store = await open_store(io_engine="psync")
    ids = ucm.block_ids(range(12))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK // 2, hard))
        result = await store.dump(ids, None, content(ids))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert set(statuses(result)) <= {Status.IO_ERROR, Status.NO_SPACE}
    assert not (await store.lookup(ids)).any()
    await quiet(store)
    assert files_below(home(store)) == []
    assert (await store.dump(ids, None, content(ids))).ok.all()
    await check_blocks(store, ids)
