"""Processes for the tests of BlockTable: a nursery that forks them on command, and what they do.

Run as ``python -m tests.native.table_child FD SLOTS POLICY``. Commands come one a line, each is answered by a line:
``spawn MODE SEED`` -> pid; ``kill PID SIGNAL`` -> its exit status (or 0 where the signal does not end it).
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from .tables import DIRTY, FILLING, GONE, HIT, MINE, READY, THEIRS, Claim, Table, name, names, pack
from .tools import address_of, native

STAMP_BYTES = 512
"""Of each slot's bytes: its id's number, again and again."""

ENDED_BADLY = 3


def memory_bytes(slots: int) -> int:
    """Of the table, and behind it the bytes of the slots."""
    return int(native.BlockTable.bytes_needed(slots)) + slots * STAMP_BYTES


def open_table(memory: mmap.mmap, slots: int, policy: str, *, create: bool = False) -> tuple[Table, Any]:
    """Return the table, and the stamps as uint64, shape (slots, STAMP_BYTES / 8)."""
    table = Table(memory, slots, policy, create=create, process=time.monotonic_ns())
    arena = memoryview(memory)[native.BlockTable.bytes_needed(slots) :]
    table.raw.set_arena(arena, STAMP_BYTES)
    return table, np.frombuffer(arena, np.uint64).reshape(slots, -1)


class Worker:
    """Uses the table as a stage would, at random, and looks whether every byte is what it should be."""

    def __init__(self, table: Table, stamps: Any, seed: int) -> None:
        self.table, self.stamps, self.random = table, stamps, random.Random(seed)
        self.held: list[tuple[int, int]] = []  # slot, key
        self.filling: list[tuple[int, int]] = []
        self.waiting: list[Claim] = []
        self.target = np.zeros(STAMP_BYTES // 8, np.uint64)

    def some_keys(self, most: int) -> list[int]:
        keys = range(3 * self.table.slots)
        return self.random.sample(keys, min(self.random.randint(1, most), len(keys)))

    def check_stamp(self, slot: int, key: int) -> None:
        found = self.stamps[slot]
        assert (found == key).all(), f"slot {slot} should be of {key}, is {found}"

    def claim(self) -> None:
        keys = self.some_keys(16)
        for key, claim in zip(keys, self.table.claim(names(keys)), strict=True):
            if claim.state == HIT:
                self.check_stamp(claim.slot, key)
                self.held.append((claim.slot, key))
            elif claim.state == MINE:
                self.stamps[claim.slot, ::2] = key
                self.filling.append((claim.slot, key))
            elif claim.state == THEIRS:
                self.waiting.append(claim)

    def finish(self) -> None:
        """Publish or fail what is being filled."""
        for slot, key in self.filling:
            self.stamps[slot, 1::2] = key
            self.check_stamp(slot, key)
            dice = self.random.random()
            if dice < 0.1:
                self.table.fail([slot], key % 128)
            elif dice < 0.2:
                self.table.publish([slot], dirty=True, keep_lease=True)
                self.check_stamp(slot, key)
                self.table.clean([slot])
                self.table.release([slot])
            else:
                self.table.publish([slot])
        self.filling.clear()

    def lease(self) -> None:
        keys = self.some_keys(16)
        for key, slot in zip(keys, self.table.lease(names(keys)), strict=True):
            if slot >= 0:
                self.check_stamp(slot, key)
                self.held.append((slot, key))

    def release(self) -> None:
        self.random.shuffle(self.held)
        for slot, key in self.held[5:]:
            self.check_stamp(slot, key)  # it did not change while it was leased
            self.table.release([slot])
        del self.held[5:]

    def look(self) -> None:
        keys = self.some_keys(64)
        self.table.probe(names(keys))
        for seen in self.table.watch(self.waiting):
            assert seen in (GONE, FILLING, READY, DIRTY) or seen >= native.WATCH_FAILED
        self.waiting.clear()

    def copy(self) -> None:
        key = self.some_keys(1)[0]
        if self.table.raw.copy_out(name(key), 0, address_of(self.target), STAMP_BYTES):
            assert (self.target == key).all(), f"copy of {key} is {self.target}"

    def drop(self) -> None:
        self.table.drop(names(self.some_keys(4)))

    def step(self) -> None:
        verbs = (self.claim, self.finish, self.lease, self.release, self.look, self.copy, self.drop)
        self.random.choices(verbs, (6, 5, 2, 4, 1, 3, 1))[0]()

    def leave(self) -> None:
        self.finish()
        self.table.release([slot for slot, _ in self.held])
        self.table.raw.leave()


# ---- modes ----


def hammer(table: Table, stamps: Any, seed: int, going: Callable[[], bool]) -> None:
    """Until told to end."""
    worker = Worker(table, stamps, seed)
    while going():
        worker.step()
    worker.leave()


def evict(table: Table, stamps: Any, seed: int, going: Callable[[], bool]) -> None:
    """Claim new ids all the time: nearly always under the mutex. What it fills it publishes, so all can be evicted."""
    count = 64
    slots, states, generations = np.zeros(count, np.int64), np.zeros(count, np.uint8), np.zeros(count, np.uint32)
    batches = [pack(names(range((seed * 1000 + i) * count, (seed * 1000 + i + 1) * count))) for i in range(50)]
    while going():
        for batch in batches:
            table.raw.claim(batch, slots, states, generations)
            table.raw.publish(slots)


def hold(table: Table, stamps: Any, seed: int, going: Callable[[], bool]) -> None:
    """Have something of everything: leases, slots to fill, debts below; then wait."""
    base = seed * 1000
    table.fill(names(range(base, base + 5)))
    table.lease(names(range(base, base + 3)))
    table.fill(names(range(base + 5, base + 7)), dirty=True)
    table.claim(names(range(base + 10, base + 14)))
    while going():
        time.sleep(0.01)


MODES = {"hammer": hammer, "evict": evict, "hold": hold}


# ---- the nursery ----


def child(mode: str, seed: int, memory: mmap.mmap, slots: int, policy: str) -> None:
    """The life of a forked process."""
    going = True

    def end(*_: object) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, end)
    status = 0
    try:
        MODES[mode](*open_table(memory, slots, policy), seed, lambda: going)
    except BaseException:
        traceback.print_exc()
        status = ENDED_BADLY
    os._exit(status)


def kill(pid: int, number: int) -> int:
    """Send a signal, and wait for what it does."""
    os.kill(pid, number)
    if number == signal.SIGCONT:
        return 0
    _, status = os.waitpid(pid, os.WUNTRACED)
    return 0 if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


def main(fd: int, slots: int, policy: str) -> None:
    memory = mmap.mmap(fd, memory_bytes(slots))
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "spawn":
            pid = os.fork()
            if pid == 0:
                child(rest[0], int(rest[1]), memory, slots, policy)
            print(pid, flush=True)
        else:
            print(kill(int(rest[0]), int(rest[1])), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
