"""The account that processes keep together: exact, never above the bound, and right after any death."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async.engines.sharedmemory import MEMORY_DIRECTORY
from ucm_async.engines.system import System
from ucm_async.errors import ConfigError
from ucm_async.space.ledger import ACCOUNTS_NAME, BUSY, LOCK_NAME, ROWS, Ledger

SPAWN = mp.get_context("spawn")
A, B = b"a" * 16, b"b" * 16


def root_of(directory: Path, fingerprint: bytes = A) -> Path:
    root = directory / f"name-{fingerprint.hex()}"
    root.mkdir(exist_ok=True)
    return root


def joined(directory: Path, owner: str, fingerprint: bytes = A) -> Ledger:
    ledger = Ledger(System(), directory)
    ledger.join(fingerprint, owner, root_of(directory, fingerprint))
    return ledger


@contextmanager
def counted(directory: Path, owner: str, fingerprint: bytes = A) -> Iterator[Ledger]:
    """A ledger whose account was found exact."""
    ledger = joined(directory, owner, fingerprint)
    if not ledger.exact:
        count(ledger, 0)
    try:
        yield ledger
    finally:
        ledger.leave()


def count(ledger: Ledger, nbytes: int, unfinished: int = 0) -> None:
    assert ledger.begin_count()
    while not ledger.all_paused():
        time.sleep(0.001)
    ledger.end_count(nbytes, unfinished)


def objects() -> set[str]:
    return {one.name for one in MEMORY_DIRECTORY.glob("ucm-space-*")}


def test_the_life_of_a_reservation(tmp_path: Path) -> None:
    with counted(tmp_path, "one") as ledger:
        ledger.charge(100)
        assert (ledger.charged(), ledger.charged_here(), ledger.used_here()) == (100, 100, 0)
        ledger.commit(60)
        ledger.release(40)
        assert (ledger.charged(), ledger.used_here()) == (60, 60)
        ledger.removed(10)
        assert (ledger.charged(), ledger.used_here()) == (50, 50)
        with counted(tmp_path, "two") as other, counted(tmp_path, "three", B) as foreign:
            other.charge(5)
            foreign.charge(7)
            assert ledger.owners() == {"one", "two"}
            assert (ledger.charged(), ledger.charged_here()) == (62, 55)
            foreign.commit(7)
        assert ledger.owners() == {"one"}
        assert (ledger.charged(), ledger.charged_here(), ledger.used_here()) == (57, 50, 50)  # the 5 had no file


def test_over_a_restart(tmp_path: Path) -> None:
    before = objects()
    with counted(tmp_path, "one") as ledger:
        ledger.charge(100)
        ledger.commit(100)
    assert objects() == before
    about = json.loads((tmp_path / ACCOUNTS_NAME).read_text())
    assert about["accounts"] == {A.hex(): {"used": 100, "exact": True}}
    again = joined(tmp_path, "two")
    assert not (tmp_path / ACCOUNTS_NAME).exists()
    assert again.exact
    assert again.used_here() == 100
    again.leave()
    again.leave()


@pytest.mark.parametrize("change", ["boot", "damage", "lost"])
def test_accounts_that_cannot_be_trusted(tmp_path: Path, change: str) -> None:
    """After a new start of the machine, or if the file is damaged or gone, what is there is charged, and counted."""
    with counted(tmp_path, "one") as ledger:
        ledger.charge(100)
        ledger.commit(100)
    path = tmp_path / ACCOUNTS_NAME
    if change == "boot":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "another"}))
    elif change == "damage":
        path.write_text(path.read_text()[:20])
    else:
        path.unlink()
    (root_of(tmp_path) / "file").write_bytes(bytes(70))
    (root_of(tmp_path, B) / "file").write_bytes(bytes(30))
    again = joined(tmp_path, "two")
    assert not again.exact
    assert (again.charged(), again.charged_here()) == (100, 70)
    count(again, 64)
    assert again.exact
    assert again.used_here() == 64
    again.leave()


def test_namespaces_that_are_gone_are_charged_no_more(tmp_path: Path) -> None:
    with counted(tmp_path, "one", B) as ledger:
        ledger.charge(100)
        ledger.commit(100)
    root_of(tmp_path, B).rmdir()
    with counted(tmp_path, "two") as ledger:
        assert ledger.charged() == 0


def test_there_are_only_so_many(tmp_path: Path) -> None:
    for number in range(ROWS - 3):
        root_of(tmp_path, number.to_bytes(16, "little"))
    with counted(tmp_path, "one"), counted(tmp_path, "two"), pytest.raises(ConfigError, match=f"{ROWS} namespaces"):
        joined(tmp_path, "three")


def test_memory_of_another_version_is_left_if_nobody_lives(tmp_path: Path) -> None:
    ledger = joined(tmp_path, "one")
    head = np.frombuffer(ledger._memory().memory, dtype=np.int64, count=2)
    head[1] += 1
    with pytest.raises(ConfigError, match="another version"):
        joined(tmp_path, "two")
    del head
    _die(ledger)
    with counted(tmp_path, "two") as other:
        assert other.charged() == 0


def test_memory_that_cannot_be_seen(tmp_path: Path) -> None:
    """As of a container with a /dev/shm of its own: two accounts of one directory would keep no bound."""
    with counted(tmp_path, "one"):
        name = (tmp_path / LOCK_NAME).read_bytes().rstrip(b"\0").decode()
        hidden = MEMORY_DIRECTORY / f"{name}-hidden"
        (MEMORY_DIRECTORY / name).rename(hidden)
        with pytest.raises(OSError, match="not ours"):
            joined(tmp_path, "two")
        hidden.rename(MEMORY_DIRECTORY / name)


def test_private(tmp_path: Path) -> None:
    ledger = Ledger(System(), tmp_path, private=True)
    ledger.join(A, "one", root_of(tmp_path))
    count(ledger, 0)
    ledger.charge(10)
    assert ledger.charged() == 10
    assert not ledger.forget_dead()
    assert ledger.take_lease()
    ledger.leave()
    assert [one.name for one in tmp_path.iterdir()] == [root_of(tmp_path).name]


def test_the_lease_is_one_s(tmp_path: Path) -> None:
    with counted(tmp_path, "one") as one, counted(tmp_path, "two") as two, counted(tmp_path, "three", B) as other:
        assert one.take_lease()
        assert not two.take_lease()
        assert other.take_lease()  # another namespace collects for itself
        one.give_lease()
        assert two.take_lease()
        two.give_lease()
        assert one.take_lease()
        _die(one)  # the holder's death gives it back
        assert two.take_lease()


def test_counting_waits_for_changes_and_holds_new_ones(tmp_path: Path) -> None:
    with counted(tmp_path, "one") as one, counted(tmp_path, "two") as two:
        assert two.begin_change()
        assert one.begin_count()
        assert not two.begin_count()
        assert not one.begin_change()
        assert not one.all_paused()
        two.charge(10)
        two.commit(10)
        two.end_change()
        assert one.all_paused()
        assert not two.begin_change()
        one.end_count(10)
        assert two.begin_change()
        two.end_change()
        assert one.used_here() == 10


def test_a_count_that_fails_changes_nothing(tmp_path: Path) -> None:
    with counted(tmp_path, "one") as one:
        one.charge(10)
        one.commit(10)
        assert one.begin_count()
        one.end_count(None)
        assert (one.exact, one.used_here()) == (True, 10)


# ---- deaths


def _die(ledger: Ledger) -> None:
    """End as a process that is killed: the locks go, the words stay."""
    ledger._close()


def test_dead_while_nothing_was_under_way(tmp_path: Path) -> None:
    with counted(tmp_path, "one") as one:
        two = joined(tmp_path, "two")
        two.charge(30)
        two.commit(30)
        _die(two)
        assert one.owners() == {"one", "two"}
        assert one.forget_dead()
        assert not one.forget_dead()
        assert one.owners() == {"one"}
        assert (one.exact, one.used_here(), one.charged()) == (True, 30, 30)


@pytest.mark.parametrize("busy", [False, True])
def test_dead_with_something_under_way(tmp_path: Path, busy: bool) -> None:
    """What it reserved may be on the disk: it is charged until somebody has counted."""
    with counted(tmp_path, "one") as one:
        two = joined(tmp_path, "two")
        if busy:
            assert two.begin_change()
        two.charge(50)
        two.commit(30)
        _die(two)
        assert one.charged() == 50
        assert one.forget_dead()
        assert (one.exact, one.used_here(), one.charged()) == (False, 30, 50)
        count(one, 35, unfinished=5)
        assert (one.exact, one.used_here(), one.charged()) == (False, 35, 40)
        count(one, 35)
        assert (one.exact, one.used_here(), one.charged()) == (True, 35, 35)


def test_dead_while_it_counted(tmp_path: Path) -> None:
    with counted(tmp_path, "one") as one:
        two = joined(tmp_path, "two")
        assert two.begin_count()
        _die(two)
        assert not one.begin_change()
        assert one.forget_dead()
        assert one.begin_change()
        one.end_change()
        assert not one.exact


def test_dead_while_it_left(tmp_path: Path) -> None:
    """Counted twice, its bytes are too many for a while, never too few; and it is known that they are."""
    with counted(tmp_path, "one") as one:
        two = joined(tmp_path, "two")
        two.charge(30)
        two.commit(30)
        two._own[BUSY] = 1
        account = two._words[two._account]
        account[1] += 30  # half of a fold
        account[2] += 30
        del account
        _die(two)
        assert one.forget_dead()
        assert not one.exact
        assert one.charged() >= 30


def test_the_last_to_live_counts_again_what_the_dead_left(tmp_path: Path) -> None:
    one = joined(tmp_path, "one")
    count(one, 0)
    one.begin_change()
    one.charge(50)
    _die(one)
    assert not (tmp_path / ACCOUNTS_NAME).exists()
    two = joined(tmp_path, "two")
    assert (two.exact, two.charged()) == (False, 50)
    two.leave()
    assert json.loads((tmp_path / ACCOUNTS_NAME).read_text())["accounts"][A.hex()] == {"used": 50, "exact": False}


# ---- several processes


def _reserve_for_ever(directory: str, owner: str, bound: int, pipe: Connection) -> None:
    """Reserve, commit and remove at random; what is charged is never above the bound when somebody has been granted."""
    ledger = joined(Path(directory), owner)
    generator = np.random.default_rng(int.from_bytes(owner.encode(), "little"))
    mine, granted, refused = 0, 0, 0
    pipe.send("ready")
    while not pipe.poll():
        size = int(generator.integers(1, bound // 3))
        ledger.charge(size)
        if ledger.charged() > bound:
            ledger.release(size)
            refused += 1
        else:
            ledger.commit(size)
            mine += size
            granted += 1
        if generator.random() < 0.6 and mine:
            gone = int(generator.integers(1, mine + 1))
            ledger.removed(gone)
            mine -= gone
    pipe.recv()
    pipe.send((mine, granted, refused))
    if pipe.recv() == "leave":
        ledger.leave()
    pipe.send("gone")
    time.sleep(60)


@contextmanager
def processes(target: Callable[..., None], directory: Path, count: int, *more: Any) -> Iterator[list[Any]]:
    started = []
    for number in range(count):
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=target, args=(str(directory), f"p{number}", *more, theirs), daemon=True)
        process.start()
        started.append((process, ours))
    try:
        for _, pipe in started:
            assert pipe.poll(60) and pipe.recv() == "ready"
        yield started
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def test_processes_never_exceed_the_bound_together(tmp_path: Path) -> None:
    """Used bytes are seen from outside all the time: their sum must never be above the bound."""
    bound = 1000
    with counted(tmp_path, "watch") as watch, processes(_reserve_for_ever, tmp_path, 3, bound) as started:
        end = time.monotonic() + 2
        seen = 0
        while time.monotonic() < end:
            # Rows are read one after another: what moved from one to the other meanwhile would be counted twice.
            first, second = watch._words[:, 2].copy(), watch._words[:, 2].copy()
            if (first == second).all():
                seen += 1
                assert int(first.sum()) <= bound
        assert seen > 100
        results = []
        for _, pipe in started:
            pipe.send("stop")
            results.append(pipe.recv())
        total = sum(mine for mine, _, _ in results)
        assert all(granted > 50 and refused > 0 for _, granted, refused in results), results
        assert watch.used_here() == watch.charged() == total
        for (process, pipe), what in zip(started, ("leave", "stay", "leave"), strict=True):
            pipe.send(what)
            assert pipe.recv() == "gone"
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert watch.forget_dead()
        assert (watch.exact, watch.used_here(), watch.charged()) == (True, total, total)
