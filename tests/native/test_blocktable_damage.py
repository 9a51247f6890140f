"""Memory that holds anything: attaching to it and using it must not crash, hang, or touch what lies around it.

In a process of its own, whose crash is a failure and not the end of the run. ``Mapping`` has inaccessible memory on
both sides. ``UCM_ASYNC_TABLE_ROUNDS`` says how many damaged tables each test makes, times ten.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .table_child import Worker
from .tables import HEADER_END, INDEX_OFFSET, LISTS_OFFSET, MUTEX_BYTES, MUTEX_OFFSET, POLICIES, Table, check, names
from .tools import native

ROUNDS = 10 * int(os.environ.get("UCM_ASYNC_TABLE_ROUNDS", "30"))
ROOT = Path(__file__).parents[2]


class Careless(Worker):
    """Does not look at what is in the slots."""

    def check_stamp(self, slot: int, key: int) -> None:
        pass


def damage(memory: np.ndarray, slots: int, rng: random.Random) -> str:
    """Spoil a part of the table, and return what."""
    index_end = INDEX_OFFSET + 64 * (slots // 4 + 8)
    parts = {
        "lists": (LISTS_OFFSET, HEADER_END),
        "processes": (4096, 4096 + 16 * native.PROCESSES_MAX),
        "index": (INDEX_OFFSET, index_end),
        "slots": (index_end, index_end + 64 * slots),
        "ghosts": (index_end + 64 * slots, len(memory)),
    }
    what = rng.choice([*parts, "all"])
    noise = np.random.default_rng(rng.getrandbits(32))
    for name, (start, end) in parts.items():
        if what not in (name, "all"):
            continue
        size = end - start
        places = start + noise.integers(0, size, rng.choice([1, 10, size]))
        # Small numbers look like slots and lists, others like nothing.
        memory[places] = noise.integers(0, rng.choice([2, 8, 256]), len(places))
    return what


def use(table: Table, seed: int) -> None:
    worker = Careless(table, np.zeros((table.slots, 64), np.uint64), seed)
    for _ in range(60):
        try:
            worker.step()
        except (ValueError, AssertionError):  # it does not hold what it thought, or got another's bytes
            worker.held.clear()
            worker.filling.clear()
    table.raw.entries()
    table.raw.count_states()
    table.raw.statistics()
    for number, _, _ in table.raw.processes():
        if number != table.number:
            table.raw.reap(number)


def one_round(seed: int, policy: str) -> None:
    rng = random.Random(seed)
    slots = rng.choice([1, 5, 40, 300])
    area = native.Mapping(native.BlockTable.bytes_needed(slots), huge=False)
    memory = np.frombuffer(area, np.uint8)
    arena = bytes(slots * 512)
    first = Table(area, slots, policy, create=True)
    first.raw.set_arena(arena, 512)
    use(first, seed)
    what = damage(memory, slots, rng)
    try:
        second = Table(area, slots, policy, process=2)
    except OSError:
        return  # the process table is full of processes that are none
    second.raw.set_arena(arena, 512)
    use(first, seed + 1)
    use(second, seed + 2)
    second.raw.repair()
    try:
        check(second, quiet=False)
    except AssertionError as error:
        raise AssertionError(f"round {seed}, damaged: {what}") from error
    use(second, seed + 3)


def main(policy: str, rounds: int) -> None:
    for seed in range(rounds):
        one_round(seed, policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_damaged_anywhere(policy: str) -> None:
    code = f"from tests.native.test_blocktable_damage import main; main({policy!r}, {ROUNDS // len(POLICIES)})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=100, check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]


def test_a_damaged_mutex_is_no_mutex() -> None:
    """Of another kind it is never taken, and the answer is BUSY; with any other damage libc copes."""
    slots = 10
    for offset in range(MUTEX_OFFSET, MUTEX_OFFSET + MUTEX_BYTES, 4):
        for value in (1, 0x7FFFFFFF, 0xFFFFFFFF, 0x40000001):
            memory = bytearray(native.BlockTable.bytes_needed(slots) + 64)
            start = -np.frombuffer(memory, np.uint8).ctypes.data % 64
            view = memoryview(memory)[start:]
            table = Table(view, slots, create=True)
            table.fill(names(range(5)))
            view[offset : offset + 4] = value.to_bytes(4, "little")
            states = {one.state for one in table.claim(names(range(20, 23)))}
            assert len(states) == 1
            assert table.probe(names(range(5))) == [True] * 5
            view[MUTEX_OFFSET : MUTEX_OFFSET + MUTEX_BYTES] = bytes(MUTEX_BYTES)  # else its end waits for the mutex
