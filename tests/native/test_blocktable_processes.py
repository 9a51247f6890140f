"""BlockTable between real processes, which are killed and stopped at random moments.

``UCM_ASYNC_TABLE_ROUNDS`` says how many kills each test makes (30 unless it is set).
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from .table_child import memory_bytes, open_table
from .tables import BUSY, GONE, HIT, MINE, NONE, POLICIES, THEIRS, Table, check, name, names

ROUNDS = int(os.environ.get("UCM_ASYNC_TABLE_ROUNDS", "30"))
ROOT = Path(__file__).parents[2]
SANITIZED = "UCM_ASYNC_SANITIZED" in os.environ
DEADLINE_S = 60.0


class Host:
    """Processes over one table, of which the test is one."""

    def __init__(self, slots: int, policy: str = "s3fifo") -> None:
        fd = os.memfd_create("table")
        os.ftruncate(fd, memory_bytes(slots))
        self.memory = mmap.mmap(fd, memory_bytes(slots))
        self.table, self.stamps = open_table(self.memory, slots, policy, create=True)
        command = [sys.executable, "-m", "tests.native.table_child", str(fd), str(slots), policy]
        self.nursery = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=(fd,)
        )
        os.close(fd)
        self.seeds = iter(range(1, 10**6))
        self.pids: list[int] = []

    def ask(self, *words: object) -> int:
        assert self.nursery.stdin and self.nursery.stdout
        print(*words, file=self.nursery.stdin, flush=True)
        return int(self.nursery.stdout.readline())

    def numbers(self) -> dict[int, int]:
        """Number in the process table of each pid."""
        return {pid: number for number, pid, _ in self.table.raw.processes()}

    def spawn(self, mode: str) -> int:
        """Start a process, and wait until it is in the table and at work."""
        pid = self.ask("spawn", mode, next(self.seeds))
        until(lambda: pid in self.numbers())
        self.pids.append(pid)
        return pid

    def signal(self, pid: int, number: int) -> int:
        return self.ask("kill", pid, number)

    def kill(self, pid: int) -> None:
        assert self.signal(pid, signal.SIGKILL) == -signal.SIGKILL, "it had ended before, see its traceback"
        self.pids.remove(pid)

    def end(self, pid: int) -> None:
        """Let it leave in order; it must not have met anything wrong."""
        assert self.signal(pid, signal.SIGTERM) == 0
        self.pids.remove(pid)

    def reap(self) -> None:
        """Take back what the dead held."""
        for pid, number in self.numbers().items():
            if pid != os.getpid() and pid not in self.pids:
                until(lambda number=number: self.table.raw.reap(number) >= 0)

    def close(self) -> None:
        for pid in list(self.pids):
            self.kill(pid)
        assert self.nursery.stdin and self.nursery.stdout
        self.nursery.stdin.close()
        assert self.nursery.wait(30) == 0
        self.nursery.stdout.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0005)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    made: list[Host] = []
    yield made
    for host in made:
        host.close()


def check_stamps(host: Host) -> None:
    """Every block that is there has its own bytes."""
    entries = host.table.entries()
    for slot in np.flatnonzero(entries["state"] == 2).tolist():
        assert (host.stamps[slot] == int.from_bytes(entries["id"][slot].tobytes(), "little")).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_killed_at_any_moment(hosts: list[Host], policy: str) -> None:
    """Four workers, one after another killed: the rest sees no wrong byte, and nothing stays behind."""
    host = Host(200, policy)
    hosts.append(host)
    rng = random.Random(1)
    for _ in range(4):
        host.spawn("hammer")
    for _ in range(-(-ROUNDS // len(POLICIES))):
        time.sleep(rng.random() * 0.05)
        host.kill(rng.choice(host.pids))
        host.reap()
        host.spawn("hammer")
    for pid in list(host.pids):
        host.end(pid)
    host.reap()
    assert [pid for _, pid, _ in host.table.raw.processes()] == [os.getpid()]
    there = host.table.probe(names(range(600)))
    check(host.table, lazy=True)
    check_stamps(host)
    host.table.raw.repair()
    check(host.table)
    assert host.table.probe(names(range(600))) == there


def test_all_killed_at_once(hosts: list[Host]) -> None:
    """And those who come after find the blocks valid."""
    host = Host(200)
    hosts.append(host)
    for _ in range(3):
        for _ in range(4):
            host.spawn("hammer")
        time.sleep(0.05)
        for pid in list(host.pids):
            host.signal(pid, signal.SIGSTOP)
        for pid in list(host.pids):
            host.kill(pid)
        host.reap()
        host.table.raw.repair()
        check(host.table)
        check_stamps(host)
        assert host.table.counts().get("ready", 0) > 0


def claim_new(table: Table, start: int, count: int = 64) -> set[int]:
    """Claim ids that nobody had before, and publish what we got; the states."""
    claims = table.claim(names(range(start, start + count)))
    table.publish([one.slot if one.state == MINE else -1 for one in claims])
    return {one.state for one in claims}


@pytest.mark.parametrize("policy", POLICIES)
def test_killed_under_the_mutex(hosts: list[Host], policy: str) -> None:
    """The next one who takes the mutex repairs, whatever the dead one was in the middle of."""
    host = Host(500, policy)
    hosts.append(host)
    repairs = 0
    for i in range(ROUNDS * 10):
        pid = host.spawn("evict")
        time.sleep(random.Random(i).random() * 0.004)
        host.kill(pid)
        assert BUSY not in claim_new(host.table, 10**9 + 1000 * i)
        host.reap()
        check(host.table, lazy=True)
        repairs = host.table.raw.statistics()["repairs"]
        if repairs >= ROUNDS / 5:
            break
    assert repairs > 0


def test_stopped_under_the_mutex(hosts: list[Host]) -> None:
    """Who needs the mutex is told BUSY after a bounded wait; and that ends with the process."""
    host = Host(500)
    hosts.append(host)
    table = host.table
    for i in range(500):
        pid = host.spawn("evict")
        time.sleep(random.Random(i).random() * 0.004)
        host.signal(pid, signal.SIGSTOP)
        mine = table.claim_one(name(10**9))
        if mine.state == BUSY:
            break
        table.drop([name(10**9)])
        if mine.state == MINE:
            table.publish([mine.slot])
        host.kill(pid)
        host.reap()
    else:
        pytest.fail("it was never stopped under the mutex")
    assert {one.state for one in table.claim(names(range(10**9, 10**9 + 200)))} == {BUSY}
    assert table.raw.statistics()["busy"] > 1
    assert table.raw.reap(host.numbers()[pid]) == -1
    with pytest.raises(TimeoutError, match="locked"):
        table.raw.repair()
    host.kill(pid)
    assert BUSY not in claim_new(table, 2 * 10**9)
    host.reap()
    check(table, lazy=True)


def test_what_goes_on_while_the_mutex_is_stopped(hosts: list[Host]) -> None:
    host = Host(500)
    hosts.append(host)
    table = host.table
    ready, filling = names(range(5)), names(range(5, 10))
    for i in range(500):
        table.drop([*ready, *filling])
        table.fill(ready)
        slots = table.lease(ready)
        claims = table.claim(filling)
        pid = host.spawn("evict")
        time.sleep(random.Random(i).random() * 0.004)
        host.signal(pid, signal.SIGSTOP)
        if table.claim_one(name(10**9)).state == BUSY:
            break
        table.release(slots)
        table.fail([one.slot for one in claims], 0)
        table.drop([name(10**9)])
        host.kill(pid)
        host.reap()
    else:
        pytest.fail("it was never stopped under the mutex")
    assert {one.state for one in table.claim(ready)} == {HIT}
    table.release(slots + slots)
    table.publish([one.slot for one in claims[:3]])
    table.fail([one.slot for one in claims[3:]], 7)
    assert table.probe(filling) == [True] * 3 + [False] * 2
    assert table.drop([*ready[:2], *filling]) == 5
    assert table.probe(ready + filling) == [False] * 2 + [True] * 3 + [False] * 5
    host.kill(pid)
    host.reap()
    assert [one.state for one in table.claim(ready + filling)] == [MINE] * 2 + [HIT] * 3 + [MINE] * 5
    check(table, quiet=False, lazy=True)


def test_what_the_dead_held_is_taken_back(hosts: list[Host]) -> None:
    host = Host(200)
    hosts.append(host)
    pid = host.spawn("hold")
    until(lambda: host.table.counts().get("filling", 0) == 4)
    theirs = host.table.claim_one(name(1010))
    assert theirs.state == THEIRS
    host.kill(pid)
    host.reap()
    assert host.table.watch_one(theirs) == GONE
    assert host.table.claim_one(name(1010)).state == MINE
    assert host.table.probe(names(range(1000, 1007))) == [True] * 5 + [False] * 2
    host.table.fail([host.table.claim_one(name(1)).slot], 0)
    assert host.table.counts()["held"] == 1


def test_a_stopped_process_is_waited_for_and_not_robbed(hosts: list[Host]) -> None:
    """Nothing of what it holds is evicted, however many others come."""
    host = Host(200)
    hosts.append(host)
    pid = host.spawn("hold")
    until(lambda: host.table.counts().get("filling", 0) == 4)
    host.signal(pid, signal.SIGSTOP)
    for i in range(20):
        assert claim_new(host.table, 10**6 + 100 * i, 100) <= {MINE, NONE}
    assert host.table.probe(names([1000, 1001, 1002, 1005, 1006])) == [True] * 5
    assert host.table.counts()["filling"] == 4
    host.signal(pid, signal.SIGCONT)
    host.end(pid)
    host.reap()
    host.table.raw.repair()
    check(host.table)
