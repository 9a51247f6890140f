"""Several backends, one of them dead: it costs its own blocks, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

import ucm_async as ucm
from ucm_async import Status
from ucm_async.stages.posix.layout import backend_seeds, choose_backend

from .conftest import Opener
from .support import ENGINES, Array, assert_rows, content, poisoned, quiet, stage_of, statuses

IDS = ucm.block_ids(range(60))
DEAD = 1


@pytest.fixture
def backends(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "disks" / name for name in ("a", "b", "c")]
    paths[0].parent.mkdir()
    return paths


@pytest_asyncio.fixture(params=ENGINES)
async def store(open_store: Opener, backends: list[Path], request: pytest.FixtureRequest) -> ucm.Store:
    return await open_store(storage_backends=[str(one) for one in backends], io_engine=request.param)


def on_dead(backends: list[Path]) -> Array:
    """Which of `IDS` lie on the dead one."""
    found = choose_backend(IDS, backend_seeds(tuple(map(str, backends)))) == DEAD
    assert 5 < found.sum() < len(IDS) - 5
    return found


async def expect_costs(store: ucm.Store, dead: Array, *, loads: tuple[Status, ...]) -> None:
    """Blocks of the dead backend fail as values; all the others work."""
    result = await store.dump(IDS, None, content(IDS))
    assert (result.status[~dead] == Status.OK).all(), result.failures
    assert (result.status[dead] == Status.IO_ERROR).all()
    assert all(isinstance(error, ucm.BackendIOError) for error in result.failures.values())
    assert (await store.lookup(IDS)).tolist() == (~dead).tolist()
    assert await store.lookup_on_prefix(IDS) == int(dead.argmax()) - 1
    out = poisoned(len(IDS))
    loaded = await store.load(IDS, None, out)
    assert_rows(loaded, out, content(IDS))
    assert loaded.ok[~dead].all()
    assert {statuses(loaded)[row] for row in np.flatnonzero(dead)} <= set(loads)
    await store.delete(IDS)
    assert not (await store.lookup(IDS)).any()


async def test_missing_at_open(open_store: Opener, backends: list[Path]) -> None:
    """The parent is not there: a disk that is not mounted."""
    backends[DEAD] = backends[DEAD].parent / "not mounted" / "b"
    store = await open_store(storage_backends=[str(one) for one in backends])
    states = store.statistics().pipeline["Posix"]["stage"]["backends"]
    assert [bool(one["error"]) for one in states] == [False, True, False]
    assert "not mounted" in states[DEAD]["error"]
    await expect_costs(store, on_dead(backends), loads=(Status.IO_ERROR,))


async def test_a_file_at_open(open_store: Opener, backends: list[Path]) -> None:
    backends[DEAD].write_text("this is no directory")
    store = await open_store(storage_backends=[str(one) for one in backends])
    await expect_costs(store, on_dead(backends), loads=(Status.IO_ERROR,))
    assert backends[DEAD].read_text() == "this is no directory"


async def test_all_of_them_missing(open_store: Opener, backends: list[Path]) -> None:
    with pytest.raises(ucm.ConfigError, match="storage_backends"):
        await open_store(storage_backends=[str(one / "not" / "there") for one in backends])


async def test_removed_while_open(store: ucm.Store, backends: list[Path]) -> None:
    dead = on_dead(backends)
    assert (await store.dump(IDS, None, content(IDS))).ok.all()
    shutil.rmtree(backends[DEAD])
    out = poisoned(len(IDS))
    loaded = await store.load(IDS, None, out)
    assert_rows(loaded, out, content(IDS))
    assert loaded.ok.tolist() == (~dead).tolist()
    await store.delete(IDS)
    await expect_costs(store, dead, loads=(Status.IO_ERROR, Status.MISS))


async def test_replaced_by_a_file_while_open(store: ucm.Store, backends: list[Path]) -> None:
    dead = on_dead(backends)
    shutil.rmtree(backends[DEAD])
    backends[DEAD].write_text("something else")
    await expect_costs(store, dead, loads=(Status.IO_ERROR, Status.MISS))
    await store.aclose()
    assert backends[DEAD].read_text() == "something else"


async def test_the_writers_directory_is_removed_while_open(store: ucm.Store, backends: list[Path]) -> None:
    """By somebody who tidies up too eagerly: what is stored stays readable, dumps there fail as values."""
    dead = on_dead(backends)
    assert (await store.dump(IDS, None, content(IDS))).ok.all()
    shutil.rmtree(stage_of(store)._backends[DEAD].root / "writers")
    more = ucm.block_ids(range(1000, 1060))
    lies_there = choose_backend(more, backend_seeds(tuple(map(str, backends)))) == DEAD
    result = await store.dump(more, None, content(more))
    assert result.ok.tolist() == (~lies_there).tolist()
    out = poisoned(len(IDS))
    assert (await store.load(IDS, None, out)).ok.all()
    assert np.array_equal(out, content(IDS))
    del dead


async def test_back_again_at_the_next_open(open_store: Opener, backends: list[Path]) -> None:
    """What a disk has is found again when it is there again, whatever was stored meanwhile."""
    paths = [str(one) for one in backends]
    first = await open_store(storage_backends=paths)
    assert (await first.dump(IDS, None, content(IDS))).ok.all()
    await first.aclose()
    aside = backends[DEAD].with_name("aside")
    backends[DEAD].rename(aside)
    backends[DEAD].write_text("in the way")
    second = await open_store(storage_backends=paths)
    assert (await second.lookup(IDS)).tolist() == (~on_dead(backends)).tolist()
    await second.aclose()
    backends[DEAD].unlink()
    aside.rename(backends[DEAD])
    third = await open_store(storage_backends=paths[::-1])  # in whatever order they are named
    assert (await third.lookup(IDS)).all()
    await quiet(third)
