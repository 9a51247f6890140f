"""Stores that were opened half, forgotten, or taken down together with their loop."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

import ucm_async as ucm
from ucm_async.blocks import transfer as posix_stage
from ucm_async.engines.arena import Arena

from .processes import child, finish
from .support import ENGINES, check_blocks, content, descriptors_below, home, keys, poisoned, quiet, temporary, writers

IDS = ucm.block_ids(range(12))
FORGETFUL_PAIRS = 4


def root_of(directory: Path) -> Path:
    (root,) = (one for one in directory.iterdir() if one.is_dir())
    return root


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("what", ["arena", "engine"])
async def test_an_open_that_fails_leaves_nothing(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ucm.open_store("Posix", **keys(tmp_path)):
        pass
    before = descriptors()

    async def no_memory(*_: object, **__: object) -> Arena:
        raise MemoryError("no memory")

    def no_engine(*_: object, **__: object) -> object:
        raise OSError(24, "too many open files")

    with monkeypatch.context() as broken:
        if what == "arena":
            broken.setattr(posix_stage.Arena, "create", no_memory)
        else:
            broken.setattr(posix_stage, "make_engine", no_engine)
        for _ in range(3):
            with pytest.raises((MemoryError, OSError, ucm.UcmError)):
                await ucm.open_store("Posix", **keys(tmp_path))
    assert descriptors() == before
    assert writers(root_of(tmp_path)) == []
    async with ucm.open_store("Posix", **keys(tmp_path)) as store:
        assert (await store.dump(IDS, None, content(IDS))).ok.all()


async def test_an_open_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with ucm.open_store("Posix", **keys(tmp_path)):
        pass
    before = descriptors()
    cancelled = 0
    for n in range(40):
        opening = asyncio.ensure_future(_open(tmp_path))
        await asyncio.sleep(n * 0.0004)
        opening.cancel()
        try:
            await (await opening).aclose()
        except asyncio.CancelledError:
            cancelled += 1
    assert cancelled > 5
    for _ in range(1000):  # threads that were in the middle of it finish by themselves
        if descriptors() == before and writers(root_of(tmp_path)) == []:
            break
        await asyncio.sleep(0.02)
    assert descriptors() == before
    assert writers(root_of(tmp_path)) == []


async def _open(directory: Path) -> ucm.Store:
    return await ucm.open_store("Posix", **keys(directory))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_forgotten_store_does_no_harm(tmp_path: Path, engine: str) -> None:
    """The loop, and then the process, ends with reads and copies under way: no crash, and the next store tidies up."""
    about = {"pairs": FORGETFUL_PAIRS, "keys": {"io_engine": engine, "block_size": 1 << 20}}
    with child("forgetful", directory=str(tmp_path), **about) as process:
        done = [int(line) for line in finish(process)]
    assert len(done) == 2 * FORGETFUL_PAIRS
    assert min(done) < 15  # otherwise nothing was under way
    asyncio.run(check_tidy(tmp_path))


async def check_tidy(directory: Path) -> None:
    async with ucm.open_store("Posix", **keys(directory, block_size=1 << 20)) as store:
        assert temporary(home(store)) == []
        assert len(writers(home(store))) == 1


@pytest.mark.parametrize("engine", ENGINES)
async def test_closing_gives_everything_back(tmp_path: Path, engine: str) -> None:
    async with ucm.open_store("Posix", **keys(tmp_path, io_engine=engine)) as store:
        assert (await store.dump(IDS, None, content(IDS))).ok.all()
    before = descriptors()
    for _ in range(5):
        async with ucm.open_store("Posix", **keys(tmp_path, io_engine=engine)) as store:
            await check_blocks(store, IDS)
            store.load(IDS, None, poisoned(len(IDS)))  # nobody awaits it
    assert descriptors() == before
    assert descriptors_below(tmp_path) == 0
    assert writers(root_of(tmp_path)) == []


async def test_everything_is_cancelled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A program that cancels every task of its loop, the store's own as well, ends; and soon."""
    caplog.set_level(logging.CRITICAL)
    store = await ucm.open_store("Posix", **keys(tmp_path))
    assert (await store.dump(IDS, None, content(IDS))).ok.all()
    tasks = [store.load(IDS, None, poisoned(len(IDS))) for _ in range(40)]
    await asyncio.sleep(0.001)
    for one in asyncio.all_tasks() - {asyncio.current_task()}:
        one.cancel()
    async with asyncio.timeout(10):
        for task in tasks:
            await task
        await store.aclose()


async def test_notes_for_people_are_written_whole(tmp_path: Path) -> None:
    """Many stores open a new namespace at once: one note, and nothing half-written beside it."""
    stores = await asyncio.gather(*(_open(tmp_path) for _ in range(8)))
    names = sorted(one.name for one in root_of(tmp_path).iterdir() if one.is_file())
    assert names == ["namespace.json"]
    for store in stores:
        await quiet(store)
        await store.aclose()
