"""What the stage below says of a failure is what the user hears, whichever way through the Cache it came."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import ucm_async as ucm
from tests.store.test_posix import find_block
from ucm_async import Status, Store, TaskResult
from ucm_async.abc import Batch
from ucm_async.errors import BackendIOError, CorruptError
from ucm_async.stages.fake import FakeStage
from ucm_async.testing.stores import (
    BLOCK_BYTES,
    SHARDS,
    all_ok,
    make_blocks,
    to_shards,
)
from ucm_async.types import U8

from .support import cache_keys
from .test_behaviour import until

PAGE = 4096


def told(result: TaskResult) -> dict[int, tuple[type, str, int | None]]:
    """Everything that a user can see of failures."""
    return {row: (type(one), str(one), getattr(one, "errno", None)) for row, one in result.failures.items()}


# ---- as Posix says it


def flip(path: Path) -> None:
    stored = bytearray(path.read_bytes())
    stored[len(stored) // 2] ^= 4
    path.write_bytes(stored)


def flip_header(path: Path) -> None:
    stored = bytearray(path.read_bytes())
    stored[9] ^= 4
    path.write_bytes(stored)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 3 * PAGE])


def hide(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [flip, flip_header, cut, hide, Path.unlink])
@pytest.mark.parametrize("way", ["slots", "round the cache"])
@pytest.mark.parametrize("below", ["Posix", "Compress|Posix"])
async def test_a_damaged_block_is_told_as_the_stage_below_tells_it(
    tmp_path: Path, damage: Callable[[Path], None], way: str, below: str
) -> None:
    alone, cached = (cache_keys(24, storage_backends=[str(tmp_path / name)]) for name in ("alone", "cached"))
    ids, data = make_blocks(6)
    async with ucm.open_store(below, **alone) as store:
        assert all_ok(await store.dump(ids, None, data))
    for block_id in ids[[1, 4]]:
        path = find_block(alone, block_id.tobytes())
        assert path is not None
        damage(path)
    shutil.copytree(tmp_path / "alone", tmp_path / "cached")

    async with ucm.open_store(below, **alone) as store:
        plain = told(await store.load(ids, None, np.empty_like(data)))
    async with ucm.open_store(f"Cache|{below}", **cached) as store:
        if way == "round the cache":
            more, others = make_blocks(24, seed=7)
            assert all_ok(await store.dump(more, None, others))
            async with store.lease(more):
                through = told(await store.load(ids, None, np.empty_like(data)))
        else:
            through = told(await store.load(ids, None, np.empty_like(data)))
    assert list(plain) == [1, 4]
    assert through == plain


# ---- in every direction


class Talkative(FakeStage):
    """Refuses every row, each with words of its own, once its gate is open."""

    name: ClassVar[str] = "Talkative"
    last: ClassVar[Talkative]

    async def open(self) -> None:
        type(self).last = self
        self.go = asyncio.Event()
        self.go.set()
        self.inside = 0
        self.refuses = True

    async def load(self, batch: Batch) -> None:
        await self._refuse(batch, Status.CORRUPT, CorruptError)

    async def dump(self, batch: Batch) -> None:
        if self.refuses:
            await self._refuse(batch, Status.IO_ERROR, BackendIOError)
        else:
            await super().dump(batch)

    async def _refuse(self, batch: Batch, status: Status, error: type) -> None:
        self.inside += 1
        await self.go.wait()
        self.inside -= 1
        for row in range(len(batch)):
            batch.report(np.array([row]), status, error(words_of(batch.ids[row])))


def words_of(block_id: U8) -> str:
    return f"no good: {block_id.tobytes().hex()}"


def expected(ids: U8) -> list[str]:
    return [words_of(one) for one in ids]


def reasons(result: TaskResult) -> list[str]:
    return [one.reason for one in result.failures.values()]


PIPELINE = f"Cache|{__name__}:Talkative"


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with ucm.open_store(PIPELINE, **cache_keys(24)) as store:
        yield store
        Talkative.last.go.set()


@pytest.fixture(params=[False, True], ids=["slots", "round the cache"])
async def crowded(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A store whose slots are free, or all leased."""
    async with ucm.open_store(PIPELINE, **cache_keys(24)) as store:
        if not request.param:
            yield store
            return
        Talkative.last.refuses = False
        ids, data = make_blocks(24, seed=3)
        assert all_ok(await store.dump(ids, None, data))
        Talkative.last.refuses = True
        async with store.lease(ids):
            yield store


@pytest.mark.parametrize("registered", [False, True])
async def test_a_load(crowded: Store, registered: bool) -> None:
    ids, _ = make_blocks(5)
    rows = ids[[0, 1, 2, 1, 3, 4]]
    into = np.empty((6, BLOCK_BYTES), dtype=np.uint8)
    if not registered:
        assert reasons(await crowded.load(rows, None, into)) == expected(rows)
        return
    with crowded.register(into):
        assert reasons(await crowded.load(rows, None, into)) == expected(rows)


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("cut", ["blocks", "all shards", "some shards"])
async def test_a_dump(crowded: Store, cut: str, registered: bool) -> None:
    ids, data = make_blocks(5)
    shards, source = None, data
    if cut != "blocks":
        ids, shards, source = to_shards(ids, data)
    if cut == "some shards":
        some = np.arange(1, len(ids), 2)
        ids, shards, source = ids[some], shards[some], source[some]
    if not registered:
        assert reasons(await crowded.dump(ids, shards, source)) == expected(ids)
        return
    with crowded.register(source):
        assert reasons(await crowded.dump(ids, shards, source)) == expected(ids)


@pytest.mark.parametrize("by", ["blocks", "shards"])
async def test_a_dump_of_what_is_cached(store: Store, by: str) -> None:
    ids, data = make_blocks(3)
    Talkative.last.refuses = False
    assert all_ok(await store.dump(ids, None, data))
    Talkative.last.refuses = True
    if by == "shards":
        ids, shards, source = to_shards(ids, data)
        some = np.arange(len(ids)) % SHARDS == 1
        ids, result = ids[some], await store.dump(ids[some], shards[some], source[some])
    else:
        result = await store.dump(ids, None, data)
    assert reasons(result) == expected(ids)


async def test_those_who_wait_for_anothers_read(store: Store) -> None:
    ids, data = make_blocks(4)
    backwards = ids[np.arange(3, -1, -1)]
    Talkative.last.go.clear()
    tasks = [store.load(ids, None, np.empty_like(data)), store.load(ids[2:], None, np.empty_like(data[2:]))]
    await until(lambda: Talkative.last.inside == 1)
    tasks.append(store.load(backwards, None, np.empty_like(data)))
    await until(lambda: counts(store)["waits"] == 6)
    Talkative.last.go.set()
    results = [await task for task in tasks]
    assert [reasons(one) for one in results] == [expected(ids), expected(ids[2:]), expected(backwards)]
    assert counts(store)["blocks_not_read"] == 4, "one read served them all"


async def test_those_who_wait_for_a_dump_look_for_themselves(store: Store) -> None:
    """No room to write a block is no reason not to read it."""
    ids, data = make_blocks(2)
    Talkative.last.go.clear()
    dumping = store.dump(ids, None, data)
    await until(lambda: Talkative.last.inside == 1)
    loading = store.load(ids, None, np.empty_like(data))
    await until(lambda: counts(store)["waits"] == 2)
    Talkative.last.go.set()
    result = await dumping
    assert result.status.tolist() == [Status.IO_ERROR] * 2
    assert reasons(result) == expected(ids)
    result = await loading
    assert result.status.tolist() == [Status.CORRUPT] * 2, "what its own read has met"
    assert reasons(result) == expected(ids)


async def test_other_processes_know_the_status_alone() -> None:
    """As two stores are: what stands in the shared memory is a number."""
    keys = cache_keys(24)
    ids, data = make_blocks(2)
    async with ucm.open_store(PIPELINE, **keys) as one, ucm.open_store("Cache|Empty", **keys) as other:
        Talkative.last.go.clear()
        reading = one.load(ids, None, np.empty_like(data))
        await until(lambda: Talkative.last.inside == 1)
        waiting = other.load(ids, None, np.empty_like(data))
        await until(lambda: counts(other)["waits"] == 2)
        Talkative.last.go.set()
        assert reasons(await reading) == expected(ids)
        result = await waiting
        assert result.status.tolist() == [Status.CORRUPT] * 2
        assert reasons(result) == [CorruptError.default_reason] * 2


async def test_what_is_kept_for_those_who_wait_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ucm_async.stages.cache.waiting.REASONS_MAX", 3)
    ids, data = make_blocks(8)
    assert reasons(await store.load(ids, None, np.empty_like(data))) == expected(ids)
    waiting = store._pipeline.first.stage._waiting  # type: ignore[union-attr, attr-defined]
    assert len(waiting._reasons) == 3


@pytest.mark.parametrize("by", ["blocks", "shards"])
async def test_a_flush(store: Store, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ucm_async.stages.cache.behind.BACKOFF_S", 0.001)
    ids, data = make_blocks(3)
    if by == "shards":
        names, shards, source = to_shards(ids, data)
        for some in (np.arange(0, len(names), 2), np.arange(1, len(names), 2)):
            assert all_ok(await store.dump(names[some], shards[some], source[some], durability="cached"))
    else:
        assert all_ok(await store.dump(ids, None, data, durability="cached"))
    failures = await store.flush()
    assert set(failures) == {one.tobytes() for one in ids}
    for one in ids:
        failure = failures[one.tobytes()]
        assert failure.reason.endswith(f"could not be written to the stage below: {words_of(one)}")
        assert isinstance(failure.__cause__, BackendIOError)


def counts(store: Store) -> Counter[str]:
    return Counter(store.statistics().pipeline["Cache"]["stage"]["counts"])
