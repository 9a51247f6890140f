"""Several writers of one block: tasks, stores, processes. And what a reader of another process sees, and when."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm

from .child import BLOCKS_A_DUMP
from .conftest import Opener
from .processes import child, expect, finish
from .support import (
    ENGINES,
    by_shard,
    check_blocks,
    content,
    files_below,
    home,
    keys,
    quiet,
    temporary,
    writers,
)

IDS = ucm.block_ids(range(24))
VISIBLE_TRIES = 1000


@pytest.mark.parametrize("engine", ENGINES)
async def test_two_tasks(open_store: Opener, engine: str) -> None:
    store = await open_store(io_engine=engine)
    tasks = [store.dump(IDS, None, content(IDS)) for _ in range(2)]
    tasks += [store.dump(IDS[::-1].copy(), None, content(IDS)[::-1].copy())]
    for task in tasks:
        assert (await task).ok.all(), (await task).failures
    await check_blocks(store, IDS)
    await quiet(store)
    assert len(files_below(home(store))) == len(IDS)


@pytest.mark.parametrize("seed", range(4))
async def test_tasks_with_overlapping_shards(store: ucm.Store, seed: int) -> None:
    """Three writers bring overlapping halves of the same blocks, in their own orders."""
    generator = np.random.default_rng(seed)
    rows, shards, data = by_shard(IDS)
    tasks = []
    for _ in range(3):
        part = generator.permutation(len(rows))[: len(rows) * 2 // 3]
        tasks.append(store.dump(np.ascontiguousarray(rows[part]), shards[part], data[part]))
    tasks.append(store.dump(rows, shards, data))
    for task in tasks:
        assert (await task).ok.all(), (await task).failures
    await check_blocks(store, IDS)
    await quiet(store)


@pytest.mark.parametrize("engine", ENGINES)
async def test_two_stores(open_store: Opener, engine: str) -> None:
    """Each finishes a copy of its own, and the first one to commit wins."""
    stores = [await open_store(io_engine=engine) for _ in range(3)]
    results = await asyncio.gather(*(one.dump(IDS, None, content(IDS)) for one in stores))
    for result in results:
        assert result.ok.all(), result.failures
    for one in stores:
        assert (await one.lookup(IDS)).all()
        await check_blocks(one, IDS)
        await quiet(one)
    assert len(files_below(home(stores[0]))) == len(IDS)
    assert temporary(home(stores[0])) == []


@pytest.mark.parametrize("durability", ["stored", "synced"])
async def test_two_stores_with_shards(open_store: Opener, durability: ucm.types.Durability) -> None:
    stores = [await open_store() for _ in range(2)]
    generator = np.random.default_rng(5)
    rows, shards, data = by_shard(IDS)
    tasks = []
    for one in stores:
        for part in np.array_split(generator.permutation(len(rows)), 3):
            tasks.append(one.dump(np.ascontiguousarray(rows[part]), shards[part], data[part], durability=durability))
    for task in tasks:
        assert (await task).ok.all(), (await task).failures
    for one in stores:
        await check_blocks(one, IDS)
        await quiet(one)
    assert len(files_below(home(stores[0]))) == len(IDS)


def test_two_processes(tmp_path: Path) -> None:
    """The same blocks at the same time; then nothing but the blocks is left."""
    count = 40 * BLOCKS_A_DUMP
    about = {"directory": str(tmp_path), "first": 0, "count": count, "tasks": 3}
    with child("writer", **about) as first, child("writer", **about, loop="uvloop") as second:
        for process in (first, second):
            lines = finish(process)
            assert lines[0] == "ready" and lines[-1] == "done"
            assert sorted(int(word) for line in lines[1:-1] for word in line.split()) == list(range(count))
    asyncio.run(check_directory(tmp_path, count))


async def check_directory(directory: Path, count: int) -> None:
    async with ucm.open_store("Posix", **keys(directory)) as store:
        await check_blocks(store, ucm.block_ids(range(count)))
        root = home(store)
        assert len(files_below(root)) == count
        assert len(writers(root)) == 1


async def test_visible_as_soon_as_the_dump_is_awaited(open_store: Opener, tmp_path: Path) -> None:
    """To a reader in another process, every time. It asks about the next block right away."""
    store = await open_store()
    loop = asyncio.get_running_loop()
    with child("reader", directory=str(tmp_path / "kv")) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        await loop.run_in_executor(None, expect, reader, "ready")
        missed = 0
        for n in range(0, VISIBLE_TRIES, 4):
            ids = ucm.block_ids(range(n, n + 4))
            assert (await store.dump(ids, None, content(ids))).ok.all()
            reader.stdin.write(" ".join(row.tobytes().hex() for row in ids) + "\n")
            reader.stdin.flush()
            answer = await loop.run_in_executor(None, reader.stdout.readline)
            missed += answer.strip() != "1111"
        assert missed == 0
    await quiet(store)


async def test_a_block_deleted_elsewhere_is_a_miss(open_store: Opener) -> None:
    """A store may believe it is there; a load finds out, and from then on it knows."""
    first, second = await open_store(), await open_store()
    assert (await first.dump(IDS, None, content(IDS))).ok.all()
    assert (await second.lookup(IDS)).all()
    await first.delete(IDS)
    assert not (await first.lookup(IDS)).any()
    counts = await check_blocks(second, IDS, allowed=(ucm.Status.MISS,))
    assert counts[ucm.Status.MISS] == len(IDS)
    assert not (await second.lookup(IDS)).any()
    assert (await second.dump(IDS, None, content(IDS))).ok.all()
    await check_blocks(first, IDS)


async def test_deletes_dumps_and_loads_at_once(store: ucm.Store) -> None:
    """Whatever the order, bytes are right or missing; and in the end the store is whole."""
    generator = np.random.default_rng(11)
    allowed = (ucm.Status.OK, ucm.Status.MISS)

    async def change() -> None:
        for _ in range(30):
            some = np.ascontiguousarray(IDS[generator.random(len(IDS)) < 0.5])
            if generator.random() < 0.5:
                await store.delete(some)
            else:
                rows, shards, data = by_shard(some)
                assert (await store.dump(rows, shards, data)).ok.all()

    async def look() -> None:
        for _ in range(30):
            await check_blocks(store, IDS, allowed)

    await asyncio.gather(change(), change(), look(), look())
    await store.delete(IDS)
    assert not (await store.lookup(IDS)).any()
    rows, shards, data = by_shard(IDS)
    assert (await store.dump(rows, shards, data)).ok.all()
    await check_blocks(store, IDS)
    await quiet(store)
