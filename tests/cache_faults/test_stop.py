"""SIGSTOP: a process that stands still for longer than any deadline keeps what it holds, and holds nobody else up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import Starter
from .hosts import STALL_S_MAX, Freezes, Host
from .processes import Child
from .stages import CONTROLLED
from .support import SEED, Inspected, cache_keys, inode, inspect, rounds, until

ROUNDS = rounds(8)
WORKERS = 4
SLOTS = 8
STOPPED_S = 0.7
OTHERS = list(range(100, 140))
"""More blocks than there are slots."""


def puppet(start: Starter, keys: dict[str, Any], load_delay_s: float = 0) -> Child:
    options = {"stage_options": {"Controlled": {"load_delay_s": load_delay_s}}}
    child = start("puppet", pipeline=CONTROLLED, keys=keys | options)
    child.expect("ready")
    return child


def at_rest(table: Inspected, *children: Child) -> None:
    for child in children:
        assert child.ask("at_rest") == {}
    table.check_at_rest()


def test_a_reader(start: Starter) -> None:
    """What it has leased is not evicted, whoever needs room, and has its bytes when it wakes up."""
    keys = cache_keys(slots=SLOTS)
    reader, other = puppet(start, keys), puppet(start, keys)
    with inspect(keys["unique_id"]) as table:
        assert reader.ask("lease", [0, 1, 2, 3]) == [True] * 4
        reader.stop()
        end = time.monotonic() + STOPPED_S
        while time.monotonic() < end:
            assert other.ask("load", OTHERS, 30.0) == ["OK"] * len(OTHERS)
            assert other.ask("load", [3, 2, 1, 0], 30.0) == ["OK"] * 4
        other.ask("delete", [1])  # who holds it may go on
        assert other.ask("load", [1]) == ["MISS"]
        assert set(table.in_use()) == set(np.flatnonzero(table.entries()["holders"]).tolist())
        assert len(table.in_use()) == 4
        reader.go_on()
        assert reader.ask("views_are_right")
        reader.ask("release")
        at_rest(table, reader, other)
        assert other.ask("load", OTHERS[:SLOTS]) == ["OK"] * SLOTS
    reader.leave()
    other.leave()


@pytest.mark.parametrize("share", [True, False])
def test_a_caller_past_its_deadline(start: Starter, share: bool) -> None:
    """Stopped while it waited: what came in time is right, the rest is TIMEOUT, and then it goes on as before."""
    keys = cache_keys(slots=SLOTS, share_buffer_enable=share)
    child = puppet(start, keys, load_delay_s=0.2)
    assert child.ask("load", [0]) == ["OK"]
    child.tell("load", ([0, 1, 2], 0.3))
    time.sleep(0.05)
    child.stop()
    time.sleep(STOPPED_S)
    child.go_on()
    assert set(child.expect("load")[0]) <= {"OK", "TIMEOUT"}
    assert child.ask("load", [0, 1, 2]) == ["OK"] * 3
    assert child.ask("at_rest") == {}
    child.leave()


def filling(table: Inspected) -> None:
    until(lambda: table.states()["filling"] > 0)


def test_who_fills_a_slot(start: Starter) -> None:
    """The others wait for it a while, each within its own deadline, then read the block past the cache."""
    keys = cache_keys(slots=SLOTS)
    filler, other = puppet(start, keys, load_delay_s=0.3), puppet(start, keys)
    with inspect(keys["unique_id"]) as table:
        filler.tell("load", ([7], None))
        filling(table)
        filler.stop()
        assert other.ask("load", [7], 0.05) == ["TIMEOUT"]
        assert other.ask("load", [5, 7, 6], 30.0) == ["OK"] * 3
        assert other.ask("load", [7], 30.0) == ["OK"]
        assert other.ask("counts")["waits_given_up"]
        assert other.ask("lease", [7]) == [True]
        assert other.ask("views_are_right")
        other.ask("release")
        for durability in ("stored", "synced", "cached"):
            assert other.ask("dump", [7], durability, 30.0) == ["OK"]
        assert table.states()["filling"] == 1
        other.ask("delete", [7])
        filler.go_on()
        assert filler.expect("load")[0] == ["OK"]
        at_rest(table, filler, other)
        assert len(table.ids_in("ready")) == 2, "what was deleted while it was read came back"
    filler.leave()
    other.leave()


def test_who_fills_a_slot_and_dies(start: Starter) -> None:
    """Another one of those who wait takes over, and the rest gets it from there."""
    keys = cache_keys(slots=SLOTS)
    filler, *others = (puppet(start, keys, delay_s) for delay_s in (30, 0, 0))
    with inspect(keys["unique_id"]) as table:
        filler.tell("load", ([7], None))
        filling(table)
        for other in others:
            other.tell("load", ([7], 30.0))
        filler.kill()
        for other in others:
            assert other.expect("load")[0] == ["OK"]
        assert sum(other.ask("counts").get("blocks_read", 0) for other in others) == 1
        assert not table.dead()
        at_rest(table, *others)
        assert len(table.ids_in("ready")) == 1
    for other in others:
        other.leave()


def test_who_has_the_mutex(start: Starter) -> None:
    """Only what needs it goes another way; nothing waits for it, and it is free again when its holder is dead."""
    keys = cache_keys(slots=SLOTS)
    child = puppet(start, keys)
    assert child.ask("load", [0, 1]) == ["OK"] * 2
    with inspect(keys["unique_id"]) as table:
        holder = start("mutex", unique_id=keys["unique_id"])
        holder.expect("locked")
        assert child.ask("load", [1, 0]) == ["OK"] * 2
        assert child.ask("load", [2, 0, 3]) == ["OK"] * 3
        assert child.ask("lease", [0, 4]) == [True] * 2
        assert child.ask("views_are_right")
        child.ask("release")
        for durability in ("cached", "stored", "synced"):
            assert child.ask("dump", [0, 5], durability) == ["OK"] * 2
        child.ask("delete", [1])
        assert child.ask("lookup", [0, 1, 2]) == [True, False, True]
        assert child.ask("load", [0, 1]) == ["OK", "MISS"]
        assert child.ask("flush") == []
        assert child.ask("at_rest") == {}
        assert child.ask("buffer")["busy"]
        holder.kill()
        assert child.ask("load", OTHERS) == ["OK"] * len(OTHERS)
        assert child.ask("buffer")["repairs"] == 1
        at_rest(table, child)
    child.leave()


def test_coming_and_going_while_somebody_has_the_mutex(start: Starter) -> None:
    """It cannot be done, but is said, and nobody hangs; when the mutex is free all is well."""
    keys = cache_keys(slots=SLOTS)
    child, leaver = puppet(start, keys), puppet(start, keys)
    assert child.ask("load", [0, 1]) == ["OK"] * 2
    holder = start("mutex", unique_id=keys["unique_id"])
    holder.expect("locked")
    newcomer = start("puppet", pipeline=CONTROLLED, keys=keys)
    (why,) = newcomer.expect("refused")
    assert "locked" in why
    newcomer.end()
    leaver.leave()
    holder.kill()
    newcomer = puppet(start, keys)
    assert newcomer.ask("load", [1, 0]) == ["OK"] * 2
    assert newcomer.ask("counts")["short_way"] == 1
    child.leave()
    newcomer.leave()
    assert not inode(keys["unique_id"])


@pytest.mark.timeout(60 + 4 * ROUNDS)
def test_anybody_at_random_moments(start: Starter, in_memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng([7, SEED])
    keys = cache_keys(in_memory)
    host = Host(start, "Cache|Posix", keys, WORKERS)
    for child in host.workers:
        child.expect("ready")
    with inspect(keys["unique_id"]) as table, Freezes() as freezes:
        for _ in range(ROUNDS):
            time.sleep(float(generator.uniform(0.01, 0.05)))
            host.stop(host.workers[int(generator.integers(WORKERS))], float(generator.uniform(0.1, STOPPED_S)))
        stall, name = host.come_to_rest(freezes)
        assert len(table.pids()) == WORKERS, "who is stopped is not dead"
        table.check_at_rest()
        host.leave()
    there = host.survey()
    with capsys.disabled():
        print(f"\nSIGSTOP of one in four, {ROUNDS} rounds: longest stall of others {stall:.3f} s ({name}), ")
        print(f"{len(host.stored)} keys promised, {there} there, {dict(host.counts)}")
    assert stall < STALL_S_MAX, name
    assert host.counts["rows"] > ROUNDS
