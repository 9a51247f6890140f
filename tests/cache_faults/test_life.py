"""Making, joining and leaving a segment: many at a time, and processes that die or stand still in the middle of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from tests.faults.support import check_blocks, content
from ucm_async.native import PROCESSES_MAX

from .conftest import Opener, Starter
from .hosts import Host
from .processes import Child
from .stages import CONTROLLED, Controlled, stage_of
from .support import SLOTS_GB, cache_keys, inode, inspect, rounds, until

SLOTS = 16
IDS = ucm.block_ids(range(8))
NUMBERS = list(range(8))
CROWD = 8


def puppets(start: Starter, keys: dict[str, Any], count: int) -> list[Child]:
    """Processes that open stores, all at the same time."""
    return [start("puppet", pipeline=CONTROLLED, keys=keys, loop=("asyncio", "uvloop")[n % 2]) for n in range(count)]


async def test_closing_gives_the_memory_back() -> None:
    """At once, whatever threads of the loop's executor still hold that helped to close."""
    for _ in range(rounds(50)):
        keys = cache_keys(slots=SLOTS)
        async with ucm.open_store(CONTROLLED, **keys):
            assert keys["unique_id"] in Path("/proc/self/maps").read_text()
        assert keys["unique_id"] not in Path("/proc/self/maps").read_text()


# ---- many at a time


@pytest.mark.parametrize("seed", range(2))
def test_many_make_one(start: Starter, seed: int) -> None:
    """One of them makes it, all live in it, one reads what all want, and the last one out removes it."""
    generator = np.random.default_rng(seed)
    keys = cache_keys(slots=SLOTS)
    children = puppets(start, keys, CROWD)
    for child in children:
        child.expect("ready")
    with inspect(keys["unique_id"]) as table:
        assert table.pids() == {child.pid for child in children}
        for child in children:
            child.tell("load", (NUMBERS, None))
        assert [child.expect("load")[0] for child in children] == [["OK"] * len(NUMBERS)] * CROWD
        assert sum(child.ask("counts").get("blocks_read", 0) for child in children) == len(NUMBERS)
        for left, at in enumerate(generator.permutation(CROWD).tolist()):
            assert len(table.pids()) == CROWD - left
            assert inode(keys["unique_id"])
            assert children[at].ask("load", NUMBERS) == ["OK"] * len(NUMBERS)
            children[at].leave()
        assert not inode(keys["unique_id"])
        table.check_at_rest()


def test_many_that_do_not_agree(start: Starter) -> None:
    """Those who agree with the first one share it with him, the others are told."""
    keys = cache_keys(slots=SLOTS)
    other = keys | {"cache_buffer_capacity_gb": 2 * SLOTS * SLOTS_GB}
    children = puppets(start, keys, CROWD // 2) + puppets(start, other, CROWD // 2)
    said = [child.expect("ready", "refused") for child in children]
    refused = [bool(message) for message in said]
    assert refused in ([False] * (CROWD // 2) + [True] * (CROWD // 2), [True] * (CROWD // 2) + [False] * (CROWD // 2))
    for message in said:
        assert (
            not message
            or f"has slots (cache_buffer_capacity_gb) {SLOTS}" in message[0]
            or f" not {SLOTS};" in message[0]
        )
    for child, was_refused in zip(children, refused, strict=True):
        child.end() if was_refused else child.leave()
    (late,) = puppets(start, other if refused[-1] else keys, 1)
    late.expect("ready")
    late.leave()


@pytest.mark.timeout(60 + rounds(10))
def test_coming_and_going(start: Starter) -> None:
    """The last one out, and the next one in, at the same moment, again and again."""
    keys = cache_keys(slots=SLOTS)
    children = [
        start("visitor", pipeline=CONTROLLED, keys=keys, visits=rounds(10), loop=("asyncio", "uvloop")[n % 2])
        for n in range(6)
    ]
    for child in children:
        child.expect("closed")
        child.end()
    assert not inode(keys["unique_id"])


def test_leaving_while_others_work(start: Starter, tmp_path: Path) -> None:
    keys = cache_keys(tmp_path, slots=SLOTS)
    host = Host(start, "Cache|Posix", keys, 3)
    for child in host.workers:
        child.expect("ready")
    with inspect(keys["unique_id"]) as table:
        for seed in range(rounds(3)):
            visitor = start("worker", pipeline="Cache|Posix", keys=keys, seed=1000 + seed)
            visitor.expect("ready")
            visitor.leave("end")
            for child in host.workers:
                host.listen(child)
        for child in host.workers:
            host.pause(child)
        assert len(table.pids()) == 3
        table.check_at_rest()
    host.leave()
    host.survey()


async def test_as_many_as_there_can_be(open_store: Opener) -> None:
    """Of one process, too: each store is a member of its own."""
    keys = cache_keys(slots=SLOTS)
    stores = [await open_store("Cache|Fake", **keys) for _ in range(PROCESSES_MAX)]
    with pytest.raises(ucm.ConfigError, match=f"{PROCESSES_MAX} stores use shared memory .*, no more can"):
        await ucm.open_store("Cache|Fake", **keys)
    assert (await stores[0].dump(IDS, None, content(IDS), durability="cached")).ok.all()
    await check_blocks(stores[-1], IDS)
    await stores.pop().aclose()
    stores.append(await open_store("Cache|Fake", **keys))
    await check_blocks(stores[-1], IDS)
    await asyncio.gather(*(store.aclose() for store in stores))
    assert not inode(keys["unique_id"])


@pytest.mark.parametrize("share", [True, False])
async def test_closing_while_loads_are_under_way(open_store: Opener, share: bool) -> None:
    """What it was asked for comes; who waits for it in another store gets it, too."""
    keys = cache_keys(slots=SLOTS, share_buffer_enable=share)
    first, second = [await open_store(CONTROLLED, **keys) for _ in range(2)]
    below = stage_of(first, Controlled)
    below.loads.clear()
    outs = [np.zeros((len(IDS), first.config.block_size), np.uint8) for _ in range(2)]
    loads = [store.load(IDS, None, out) for store, out in zip((first, second), outs, strict=True)]
    while not below.loaded:
        await asyncio.sleep(0.001)
    closing = asyncio.ensure_future(first.aclose())
    await asyncio.sleep(0.02)
    assert not closing.done()
    below.loads.set()
    for load, out in zip(loads, outs, strict=True):
        assert (await load).ok.all()
        assert np.array_equal(out, content(IDS))
    await closing
    await check_blocks(second, IDS)


# ---- in the middle of it

MAKING = ["_check_room", "_prefault", "BlockTable", "Segment"]
JOINING = ["_prefault", "reap_dead", "Segment"]
LEAVING = ["somebody_lives", "NamedMemory.unlink"]


@pytest.mark.parametrize("point", MAKING)
def test_who_makes_it_dies(start: Starter, point: str) -> None:
    """Those who wait for it make another one, all of them the same."""
    keys = cache_keys(slots=SLOTS)
    maker = start("halting", pipeline=CONTROLLED, keys=keys, when="opening", point=point)
    maker.expect("here")
    others = puppets(start, keys, 3)
    maker.kill()
    for child in others:
        child.expect("ready")
    with inspect(keys["unique_id"]) as table:
        assert table.pids() == {child.pid for child in others}
    for child in others:
        assert child.ask("load", NUMBERS) == ["OK"] * len(NUMBERS)
    for child in others:
        child.leave()


@pytest.mark.parametrize("point", MAKING)
def test_who_makes_it_stands_still(start: Starter, point: str) -> None:
    """The others wait; it is made once."""
    keys = cache_keys(slots=SLOTS)
    maker = start("halting", pipeline=CONTROLLED, keys=keys, when="opening", point=point)
    maker.expect("here")
    made = inode(keys["unique_id"])
    others = puppets(start, keys, 3)
    for child in others:
        assert not child.hears(0.05)
    maker.tell("go on")
    maker.expect("ready")
    for child in others:
        child.expect("ready")
    assert inode(keys["unique_id"]) == made
    for child in others:
        child.leave()
    maker.leave()


@pytest.mark.parametrize("point", JOINING)
def test_who_joins_dies(start: Starter, point: str) -> None:
    keys = cache_keys(slots=SLOTS)
    (first,) = puppets(start, keys, 1)
    first.expect("ready")
    assert first.ask("load", NUMBERS) == ["OK"] * len(NUMBERS)
    dying = start("halting", pipeline=CONTROLLED, keys=keys, when="opening", point=point)
    dying.expect("here")
    assert first.ask("load", NUMBERS) == ["OK"] * len(NUMBERS)
    dying.kill()
    (third,) = puppets(start, keys, 1)
    third.expect("ready")
    assert third.ask("load", NUMBERS) == ["OK"] * len(NUMBERS)
    assert third.ask("counts")["short_way"] == 1
    with inspect(keys["unique_id"]) as table:
        assert table.pids() == {first.pid, third.pid}
        first.leave()
        third.leave()
        table.check_at_rest()


@pytest.mark.parametrize("point", LEAVING)
def test_who_leaves_dies(start: Starter, point: str) -> None:
    """The last one, before it has removed the segment: the next one adopts it."""
    keys = cache_keys(slots=SLOTS)
    last = start("halting", pipeline=CONTROLLED, keys=keys, when="closing", point=point)
    last.expect("ready")
    assert last.ask("load", NUMBERS) == ["OK"] * len(NUMBERS)
    last.tell("close")
    last.expect("here")
    others = puppets(start, keys, 2)
    last.kill()
    for child in others:
        child.expect("ready")
        assert child.ask("load", NUMBERS) == ["OK"] * len(NUMBERS)
        assert child.ask("counts")["short_way"] == 1
    for child in others:
        child.leave()


# ---- fork


@pytest.mark.parametrize("share", [True, False])
def test_fork(start: Starter, share: bool) -> None:
    """The child is told; what the parent holds is the parent's, however the child ends."""
    keys = cache_keys(slots=SLOTS, share_buffer_enable=share)
    child = start("forking", pipeline=CONTROLLED, keys=keys)
    child.expect("ready")
    assert child.ask("lease", NUMBERS) == [True] * len(NUMBERS)
    for end in ("at once", "with finalizers"):
        told = child.ask("fork", end)
        assert set(told) == {"WrongLoopError"}, told
        assert child.ask("views_are_right")
        assert child.ask("load", NUMBERS) == ["OK"] * len(NUMBERS)
        if share:
            with inspect(keys["unique_id"]) as table:
                assert len(table.in_use()) == len(NUMBERS)
                assert table.pids() == {child.pid}
    child.ask("release")
    assert child.ask("at_rest") == {}
    child.leave()


def test_a_forked_child_that_outlives_its_parent(start: Starter) -> None:
    """It has the parent's descriptors, locks included. That keeps nobody from adopting what the parent left."""
    keys = cache_keys(slots=SLOTS)
    parent = start("forking", pipeline=CONTROLLED, keys=keys)
    parent.expect("ready")
    assert parent.ask("load", NUMBERS) == ["OK"] * len(NUMBERS)
    orphan = parent.ask("fork_and_wait")
    parent.kill()
    try:
        (child,) = puppets(start, keys, 1)
        child.expect("ready")
        assert child.ask("load", NUMBERS) == ["OK"] * len(NUMBERS)
        assert child.ask("counts")["short_way"] == 1
        with inspect(keys["unique_id"]) as table:
            assert table.pids() == {child.pid}
    finally:
        os.kill(orphan, 9)
        until(lambda: not os.path.exists(f"/proc/{orphan}"))
    child.leave()
    assert not inode(keys["unique_id"])


def test_memory_of_one_process_alone_goes_with_it(start: Starter) -> None:
    keys = cache_keys(slots=SLOTS, share_buffer_enable=False)
    first, second = puppets(start, keys, 2)
    for child in (first, second):
        child.expect("ready")
        assert child.ask("load", NUMBERS) == ["OK"] * len(NUMBERS)
        assert child.ask("counts")["blocks_read"] == len(NUMBERS)
    assert not inode(keys["unique_id"])
    first.kill()
    assert second.ask("load", NUMBERS) == ["OK"] * len(NUMBERS)
    second.leave()
