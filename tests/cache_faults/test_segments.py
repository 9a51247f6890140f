"""Whatever lies there under the name of a segment: it is adopted, replaced, or refused with a reason; never trusted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

import ucm_async as ucm
from tests.faults.support import BLOCK, check_blocks, content
from tests.native.test_blocktable_damage import damage

from .conftest import Opener, Starter
from .stages import CONTROLLED
from .support import SEED, SLOTS_GB, cache_keys, inode, inspect, rounds, segment_path

SLOTS = 8
THERE = [0, 1, 2, 3]
IDS = ucm.block_ids(THERE)
NOBODY = 65534

Spoil: TypeAlias = Callable[[Path], None]
VERSION_OFFSET, READY_OFFSET = 8, 12


def left_behind(start: Starter, **changes: Any) -> dict[str, Any]:
    """Keys of a segment with a few blocks whose processes all died."""
    keys = cache_keys(slots=SLOTS, **changes)
    child = start("puppet", pipeline=CONTROLLED, keys=keys)
    child.expect("ready")
    assert child.ask("load", THERE) == ["OK"] * len(THERE)
    child.kill()
    return keys


def poke(offset: int, number: int) -> Spoil:
    def spoil(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(struct.pack("<I", number))

    return spoil


def cut(size: int) -> Spoil:
    """Truncate; a negative size is counted from the end."""
    return lambda path: os.truncate(path, size if size >= 0 else path.stat().st_size + size)


def noise(size: int | None = None) -> Spoil:
    def spoil(path: Path) -> None:
        path.write_bytes(os.urandom(size or path.stat().st_size))

    return spoil


SPOILT = {
    "another version": poke(VERSION_OFFSET, 99),
    "no magic": poke(0, 0),
    "never ready": poke(READY_OFFSET, 0),
    "empty": cut(0),
    "one byte": cut(1),
    "half a header": cut(4095),
    "a header": cut(4096),
    "a table": cut(64 << 10),
    "a page short": cut(-4096),
    "a byte short": cut(-1),
    "garbage": noise(),
    "little garbage": noise(5000),
}
OTHERS: dict[str, dict[str, Any]] = {
    "slots": {"cache_buffer_capacity_gb": 2 * SLOTS * SLOTS_GB},
    "fewer slots": {"cache_buffer_capacity_gb": SLOTS / 2 * SLOTS_GB},
    "block_size": {"block_size": BLOCK // 2, "cache_buffer_capacity_gb": SLOTS / 2 * SLOTS_GB},
    "shard_size": {"shard_size": BLOCK},
    "namespace": {"namespace": "another"},
    "policy": {"cache_policy": "lru"},
}


@contextlib.contextmanager
def living(unique_id: str) -> Iterator[None]:
    """Live in a segment, as a process does that need not understand it: with a shared lock on its second byte."""
    fd = os.open(segment_path(unique_id), os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 1, 1, 0))
        yield
    finally:
        os.close(fd)


async def use(store: ucm.Store) -> None:
    """It works, with room for as many blocks as it should have."""
    size = store.config.block_size
    ids = ucm.block_ids(range(50, 54))
    assert (await store.dump(ids, None, content(ids, size))).ok.all()
    out = np.zeros((len(ids), size), dtype=np.uint8)
    assert (await store.load(ids, None, out)).ok.all()
    assert np.array_equal(out, content(ids, size))


# ---- nobody lives in it


async def test_a_good_one_is_adopted(start: Starter, open_store: Opener) -> None:
    keys = left_behind(start)
    before = inode(keys["unique_id"])
    store = await open_store("Cache|Fake", **keys)
    assert inode(keys["unique_id"]) == before
    await check_blocks(store, IDS)
    await use(store)


@pytest.mark.parametrize("what", SPOILT)
async def test_a_spoilt_one_is_replaced(start: Starter, open_store: Opener, what: str) -> None:
    keys = left_behind(start)
    SPOILT[what](segment_path(keys["unique_id"]))
    before = inode(keys["unique_id"])
    store = await open_store("Cache|Fake", **keys)
    assert what == "empty" or inode(keys["unique_id"]) != before
    assert not (await store.lookup(IDS)).any()
    await use(store)


@pytest.mark.parametrize("what", OTHERS)
async def test_another_one_is_replaced(start: Starter, open_store: Opener, what: str) -> None:
    keys = left_behind(start)
    before = inode(keys["unique_id"])
    store = await open_store("Cache|Fake", **keys | OTHERS[what])
    assert inode(keys["unique_id"]) != before
    assert not (await store.lookup(IDS)).any()
    await use(store)


@pytest.mark.timeout(60 + rounds(10))
def test_a_damaged_one_is_repaired(start: Starter) -> None:
    """Its header is right, and behind that anything: new blocks come right, and nothing crashes."""
    for seed in range(rounds(10)):
        keys = left_behind(start)
        with inspect(keys["unique_id"]) as table:
            damage(
                np.frombuffer(table.memory, np.uint8)[: table.arena_offset], SLOTS, random.Random((SEED << 20) + seed)
            )
        child = start("puppet", pipeline=CONTROLLED, keys=keys)
        child.expect("ready")
        new = list(range(100, 140))
        assert child.ask("load", new) == ["OK"] * len(new), seed
        assert child.ask("dump", new[:20], "cached") == ["OK"] * 20, seed
        assert child.ask("flush") == [], seed
        assert child.ask("lease", new[:2]) == [True] * 2, seed
        assert child.ask("views_are_right"), seed
        child.leave()


# ---- somebody lives in it


@pytest.mark.parametrize("what", OTHERS)
async def test_one_that_others_use_in_another_way(start: Starter, what: str) -> None:
    """The newcomer is told what it has and what he wants; the others notice nothing."""
    keys = cache_keys(slots=SLOTS)
    child = start("puppet", pipeline=CONTROLLED, keys=keys)
    child.expect("ready")
    assert child.ask("load", THERE) == ["OK"] * len(THERE)
    before = inode(keys["unique_id"])
    with pytest.raises(ucm.ConfigError, match=r"unique_id: shared memory .*, which others use, has .* not "):
        await ucm.open_store("Cache|Fake", **keys | OTHERS[what])
    assert inode(keys["unique_id"]) == before
    assert child.ask("load", THERE) == ["OK"] * len(THERE)
    assert child.ask("counts")["short_way"] == 1
    child.leave()


@pytest.mark.parametrize("what", sorted(set(SPOILT) - {"empty"}))
async def test_a_spoilt_one_that_somebody_lives_in(start: Starter, what: str) -> None:
    """It is not ours to remove."""
    keys = left_behind(start)
    path = segment_path(keys["unique_id"])
    SPOILT[what](path)
    before = path.read_bytes()
    with living(keys["unique_id"]), pytest.raises(ucm.ConfigError, match="which others use") as caught:
        await ucm.open_store("Cache|Fake", **keys)
    assert what != "another version" or "has version 99, not" in str(caught.value)
    assert path.read_bytes() == before
    path.unlink()


async def test_an_empty_one_is_nobodys(start: Starter, open_store: Opener) -> None:
    """Who makes a segment has it locked from the first moment on. So nothing can be wrong with one without a byte."""
    keys = left_behind(start)
    cut(0)(segment_path(keys["unique_id"]))
    await use(await open_store("Cache|Fake", **keys))


# ---- it is somebody else's, or no segment


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")


@pytest.mark.parametrize("dead", [False, True])
async def test_one_of_another_user(start: Starter, dead: bool) -> None:
    needs_root()
    keys = cache_keys(slots=SLOTS)
    child = start("puppet", pipeline=CONTROLLED, keys=keys, uid=NOBODY)
    child.expect("ready")
    assert segment_path(keys["unique_id"]).stat().st_uid == NOBODY
    assert segment_path(keys["unique_id"]).stat().st_mode & 0o777 == 0o600
    if dead:
        child.kill()
    before = inode(keys["unique_id"])
    with pytest.raises(ucm.ConfigError, match="belongs to another user"):
        await ucm.open_store("Cache|Fake", **keys)
    assert inode(keys["unique_id"]) == before
    if dead:
        segment_path(keys["unique_id"]).unlink()
    else:
        assert child.ask("load", THERE) == ["OK"] * len(THERE)
        child.leave()


async def test_ours_is_not_for_another_user(start: Starter, open_store: Opener) -> None:
    needs_root()
    keys = cache_keys(slots=SLOTS)
    store = await open_store("Cache|Fake", **keys)
    child = start("puppet", pipeline=CONTROLLED, keys=keys, uid=NOBODY)
    (why,) = child.expect("refused")
    assert "belongs to another user" in why
    child.end()
    await use(store)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/null")])
async def test_no_segment_at_all(make: Callable[[Path], None]) -> None:
    keys = cache_keys(slots=SLOTS)
    path = segment_path(keys["unique_id"])
    make(path)
    with pytest.raises(ucm.ConfigError, match="unique_id: shared memory"):
        await ucm.open_store("Cache|Fake", **keys)
    assert os.path.lexists(path)
    (os.rmdir if path.is_dir() else os.unlink)(path)
