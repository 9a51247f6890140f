"""Watcher: every change that somebody waits for is told, whoever made it, and nobody else is woken."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .tables import FILLING, GONE, READY, SLOTS, Table, name, names
from .test_fork import in_child, refused
from .tools import WAIT_S, native, open_descriptors


@pytest.fixture
def watcher(table: Table) -> Iterator[Any]:
    made = native.Watcher(table.raw)
    yield made
    made.close()


def told(watcher: Any, timeout_s: float = WAIT_S) -> bool:
    return bool(select.select([watcher.fileno()], [], [], timeout_s)[0])


def not_told(watcher: Any) -> bool:
    return not told(watcher, 0.03)


def test_each_kind_of_change(table: Table, other: Table, watcher: Any) -> None:
    claims = other.claim(names(range(5)))
    slots = [one.slot for one in claims]
    other.publish(slots[3:], dirty=True, keep_lease=True)
    heir = Table(table.memory, SLOTS, process=3)
    heir.claim(names([9]))
    for change in (
        lambda: other.publish(slots[:1]),
        lambda: other.fail(slots[1:2], 1),
        lambda: other.drop(names([2])),
        lambda: other.clean(slots[3:4]),
        lambda: other.raw.reap(heir.number),
        lambda: other.raw.repair(),
        lambda: other.raw.leave(),
    ):
        watcher.arm()
        assert not_told(watcher)
        change()
        assert told(watcher)
        watcher.clear()
        assert not_told(watcher)


def test_it_tells_once(table: Table, watcher: Any) -> None:
    watcher.arm()
    table.fill(names([1]))
    assert told(watcher)
    watcher.clear()
    table.fill(names([2]))
    assert not_told(watcher)
    watcher.arm()
    table.fill(names([3]))
    assert told(watcher)


def test_what_was_before_is_not_told(table: Table, watcher: Any) -> None:
    table.fill(names([1]))
    watcher.arm()
    assert not_told(watcher)


def test_disarmed(table: Table, watcher: Any) -> None:
    for i in range(20):
        watcher.arm()
        watcher.disarm()
        table.fill([name(i)])
    assert not_told(watcher)
    watcher.arm()
    table.fill([name(30)])
    assert told(watcher)


def test_arming_twice_is_arming_once(table: Table, watcher: Any) -> None:
    watcher.arm()
    watcher.arm()
    table.fill([name(1)])
    assert told(watcher)
    watcher.clear()
    assert not_told(watcher)


def test_nobody_is_woken_who_does_not_wait(table: Table, memory: mmap.mmap, watcher: Any) -> None:
    """The bits of those who wait: that of this process is there while it is armed."""

    def bits() -> int:
        return int.from_bytes(memory[72:80], "little")

    assert bits() == 0
    watcher.arm()
    assert bits() == 1 << table.number
    watcher.disarm()
    assert bits() == 0
    watcher.arm()
    table.fill([name(1)])
    assert told(watcher)
    assert bits() == 0


def test_a_dead_watcher_is_forgotten(table: Table, other: Table, memory: mmap.mmap) -> None:
    memory[72:80] = (1 << other.number).to_bytes(8, "little")
    table.raw.reap(other.number)
    assert memory[72:80] == bytes(8)


def test_nothing_is_missed(table: Table, other: Table, watcher: Any) -> None:
    """Arm, look, wait, in a race with who publishes: a change between any two of these is told."""
    rounds = 1500
    claims: dict[int, Any] = {}
    ready = threading.Event()
    rng = random.Random(1)

    def publish() -> None:
        for i in range(rounds):
            while i not in claims:
                ready.wait(WAIT_S)
                ready.clear()
            for _ in range(rng.randrange(200)):
                pass
            other.publish([claims[i].slot])

    thread = threading.Thread(target=publish)
    thread.start()
    for i in range(rounds):
        claim = other.claim_one(name(i))
        claims[i] = claim
        ready.set()
        watcher.arm()
        while (seen := table.watch_one(claim)) == FILLING:
            assert told(watcher), f"round {i}: published, and nobody told"
            watcher.clear()
            watcher.arm()
        assert seen == READY
    thread.join()


def test_between_processes(memory: mmap.mmap, table: Table, watcher: Any) -> None:
    """A child publishes what it claimed; its parent sleeps until then."""
    reading, writing = os.pipe()

    def work() -> None:
        child = Table(memory, SLOTS, process=7)
        claim = child.claim_one(name(1))
        os.write(writing, b"x")
        time.sleep(0.02)
        child.publish([claim.slot])
        child.raw.leave()

    thread = threading.Thread(target=in_child, args=(work,))
    thread.start()
    assert os.read(reading, 1) == b"x"
    watcher.arm()
    assert told(watcher)
    claim = table.claim_one(name(1))
    assert table.watch_one(claim) in (READY, FILLING)
    thread.join()
    os.close(reading)
    os.close(writing)


def watching_threads() -> int:
    names: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended just now
            names.append((task / "comm").read_text())
    return names.count("ucm-watch-0\n")


def test_close(table: Table) -> None:
    before = open_descriptors()
    for armed in (False, True):
        watcher = native.Watcher(table.raw)
        assert watching_threads() >= 1
        if armed:
            watcher.arm()
        watcher.close()
        watcher.close()
        for call in (watcher.arm, watcher.disarm, watcher.clear, watcher.fileno):
            with pytest.raises(ValueError, match="closed"):
                call()
    dropped = native.Watcher(table.raw)
    dropped.arm()
    del dropped
    assert open_descriptors() == before
    end = time.monotonic() + WAIT_S
    while watching_threads() and time.monotonic() < end:  # a joined thread may be listed for a moment
        time.sleep(0.001)
    assert watching_threads() == 0


def test_closing_never_hangs(table: Table, other: Table) -> None:
    """Whatever the thread is about to do just then."""
    for i in range(300):
        watcher = native.Watcher(table.raw)
        watcher.arm()
        if i % 3 == 0:
            other.drop([])
        if i % 5 == 0:
            watcher.disarm()
        watcher.close()


def test_it_keeps_its_table_until_it_is_closed(memory: mmap.mmap) -> None:
    raw = native.BlockTable(memory, SLOTS, create=True)
    raw.join(1, 1)
    watcher = native.Watcher(raw)
    del raw
    watcher.arm()
    with pytest.raises(BufferError):
        memory.close()
    watcher.close()
    memory.close()  # though somebody may still have the watcher
    with pytest.raises(ValueError, match="closed"):
        watcher.arm()


def test_one_for_a_table(table: Table, watcher: Any) -> None:
    with pytest.raises(RuntimeError, match="already"):
        native.Watcher(table.raw)
    watcher.close()
    native.Watcher(table.raw).close()


def test_wrong_arguments(table: Table) -> None:
    with pytest.raises(TypeError, match="must be a BlockTable"):
        native.Watcher(5)
    with pytest.raises(TypeError):
        native.Watcher()
    table.raw.leave()
    with pytest.raises(RuntimeError, match="join"):
        native.Watcher(table.raw)


def test_refused_after_fork(table: Table) -> None:
    watchers = [native.Watcher(table.raw)]
    watchers[0].arm()

    def work() -> None:
        for call in (watchers[0].arm, watchers[0].disarm, watchers[0].clear, watchers[0].fileno, watchers[0].close):
            refused(call)
        del call
        before = open_descriptors()
        watchers.clear()
        assert open_descriptors() == before - 1

    in_child(work)
    claim = table.claim_one(name(1))
    assert table.watch_one(claim) != GONE
    table.publish([claim.slot])
    assert told(watchers[0])
    watchers[0].close()
