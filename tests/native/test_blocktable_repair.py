"""BlockTable: what repair makes of words that cannot be."""

from __future__ import annotations

import mmap

import numpy as np

from .tables import FAILED, FILLING, SLOTS, Table, check, name, names


def test_repair_changes_nothing_that_is_well(table: Table, other: Table) -> None:
    table.fill(names(range(50)))
    table.lease(names(range(5)))
    filling = other.claim(names(range(60, 65)))
    failed = other.claim(names([70]))
    other.fail([failed[0].slot], 9)
    before = table.entries().copy()
    table.raw.repair()
    assert np.array_equal(table.entries(), before)
    assert other.watch([*filling, *failed]) == [FILLING] * 5 + [FAILED + 9]
    other.publish([one.slot for one in filling])
    table.release(table.lease(names(range(60, 65))))
    check(table, quiet=False)


def test_repair_forgets_holders_that_are_nobody(table: Table, memory: mmap.mmap) -> None:
    (slot,) = table.fill([name(1)])
    word = 8192 + 64 * (SLOTS // 4 + 8) + 64 * slot
    memory[word + 7] = 0x80
    assert table.counts()["held"] == 1
    table.raw.repair()
    check(table)
    assert table.probe([name(1)]) == [True]


def test_ids_that_are_there_twice(table: Table, memory: mmap.mmap) -> None:
    """As it cannot be: a repair keeps one of them."""
    slots = table.fill(names(range(10)))
    base = 8192 + 64 * (SLOTS // 4 + 8)
    for slot in slots[5:]:
        memory[base + 64 * slot + 8 : base + 64 * slot + 24] = name(0)
    table.raw.repair()
    check(table, quiet=False)
    assert table.counts() == {"ready": 5, "orphan": 5, "empty": 90}
    table.fill(names(range(100, 195)))
    check(table)
