"""BlockTable: who fills a slot, and what may happen to the block on its way to the stage below."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from .tables import (
    BUSY,
    DIRTY,
    FAILED,
    FILLING,
    GONE,
    HIT,
    MINE,
    NONE,
    READY,
    SLOTS,
    THEIRS,
    Table,
    check,
    name,
    names,
    pack,
)

# ---- single flight ----


def test_one_fills_the_others_wait(table: Table, other: Table) -> None:
    mine = table.claim_one(name(1))
    assert mine.state == MINE
    theirs = other.claim_one(name(1))
    assert (theirs.state, theirs.slot, theirs.generation) == (THEIRS, mine.slot, mine.generation)
    assert other.watch_one(theirs) == FILLING
    assert other.probe([name(1)]) == [False]
    assert other.lease([name(1)]) == [-1]
    table.publish([mine.slot])
    assert other.watch_one(theirs) == READY
    hit = other.claim_one(name(1))
    assert (hit.state, hit.slot, hit.generation) == (HIT, mine.slot, mine.generation)
    other.release([hit.slot])
    check(table)


def test_equal_ids_in_one_claim(table: Table) -> None:
    first, second = table.claim([name(1), name(1)])
    assert (first.state, second.state) == (MINE, THEIRS)
    table.publish([first.slot])
    both = table.claim([name(1), name(1)])
    assert [one.state for one in both] == [HIT, HIT]
    assert table.raw.statistics()["leases"] == 2
    table.release([both[0].slot])
    assert table.counts()["held"] == 1
    table.release([both[0].slot])
    check(table)


def test_a_failure_reaches_all_who_wait(table: Table, other: Table) -> None:
    mine = table.claim_one(name(1))
    theirs = other.claim_one(name(1))
    table.fail([mine.slot], 5)
    assert other.watch_one(theirs) == FAILED + 5
    again = other.claim_one(name(1))
    assert again.state == MINE and again.slot != mine.slot
    assert table.watch_one(theirs) == FAILED + 5
    other.publish([again.slot])
    check(table)


def test_failed_slots_are_used_again_the_oldest_first(memory: mmap.mmap) -> None:
    table = Table(memory, SLOTS, create=True)
    failed = []
    for i in range(SLOTS):
        claim = table.claim_one(name(i))
        table.fail([claim.slot], i)
        failed.append(claim)
    assert table.watch(failed) == [FAILED + i for i in range(SLOTS)]
    for i in range(20):
        claim = table.claim_one(name(1000 + i))
        assert claim.slot == failed[i].slot
        assert claim.generation == (failed[i].generation + 1) % 4096
        table.publish([claim.slot])
    assert table.watch(failed) == [GONE] * 20 + [FAILED + i for i in range(20, SLOTS)]
    check(table)


def test_some_failures_are_remembered_while_others_can_go(memory: mmap.mmap) -> None:
    """One in eight, so that who waits can ask for the reason although the table is full."""
    table = Table(memory, SLOTS, create=True)
    table.fill(names(range(SLOTS - 10)))
    failed = table.claim(names(range(200, 210)))
    table.fail([one.slot for one in failed], 3)
    table.fill(names(range(300, 330)))
    assert table.watch(failed) == [FAILED + 3] * 10


def test_another_takes_over_from_the_dead(table: Table, other: Table, memory: mmap.mmap) -> None:
    """A slot that is FILLING by nobody, as between the death and the next look."""
    mine = other.claim_one(name(1))
    word = 8192 + 64 * (SLOTS // 4 + 8) + 64 * mine.slot
    memory[word + 2 : word + 8] = bytes(6)  # the holders
    assert table.watch_one(mine) == GONE
    over = table.claim_one(name(1))
    assert (over.state, over.slot) == (MINE, mine.slot)
    assert over.generation == mine.generation + 1
    assert table.raw.statistics()["takeovers"] == 1
    table.publish([over.slot])
    check(table)


def test_with_one_process_nothing_is_busy(table: Table) -> None:
    states = {one.state for i in range(0, 5000, 100) for one in table.claim(names(range(i, i + 100)))}
    assert BUSY not in states
    assert table.raw.statistics()["busy"] == 0


# ---- dirty blocks ----


def test_dirty_until_clean(table: Table, other: Table) -> None:
    mine = table.claim_one(name(1))
    table.publish([mine.slot], dirty=True, keep_lease=True)
    hit = other.claim_one(name(1))
    assert hit.state == HIT
    assert other.watch_one(hit) == DIRTY
    table.clean([mine.slot])
    assert other.watch_one(hit) == READY
    table.release([mine.slot])
    other.release([hit.slot])
    check(table)


# ---- rename ----


def rename(table: Table, slots: list[int], ids: list[bytes]) -> list[int]:
    states = np.full(len(slots), 99, np.uint8)
    table.raw.rename(np.array(slots, np.int64), pack(ids), states)
    return [int(one) for one in states]


def test_what_was_filled_under_another_name(table: Table, other: Table) -> None:
    ready, filling, private = name(1), name(2), names(range(100, 104))
    table.fill([ready])
    theirs = other.claim_one(filling)
    mine = [one.slot for one in table.claim(private)]
    assert rename(table, mine, [ready, filling, name(3), name(3)]) == [HIT, THEIRS, MINE, THEIRS]
    assert table.raw.statistics()["leases"] == 4
    assert other.claim_one(name(3)).slot == mine[2]
    assert [one.state for one in other.claim([private[0], private[2]])] == [THEIRS, MINE]
    check(table, quiet=False)
    table.publish(mine)
    assert table.probe([name(3), *private]) == [True, True, True, False, True]
    assert other.watch_one(theirs) == FILLING
    check(table, quiet=False)


def test_a_name_whose_filler_failed_or_was_dropped_is_free(table: Table, other: Table) -> None:
    failed = other.claim_one(name(1))
    other.fail([failed.slot], 3)
    other.claim_one(name(2))
    other.drop([name(2)])
    mine = table.claim(names([100, 101, 102]))
    table.drop([name(102)])
    assert rename(table, [one.slot for one in mine], names([1, 2, 3])) == [MINE, MINE, NONE]
    assert table.watch(mine) == [FILLING, FILLING, GONE]
    assert other.watch_one(failed) == FAILED + 3
    check(table, quiet=False)
    (ready,) = table.fill([name(50)])
    with pytest.raises(ValueError, match=r"slots\[1\]"):
        rename(table, [mine[0].slot, ready], names([7, 8]))


# ---- drop ----


def test_drop(table: Table) -> None:
    table.fill(names(range(10)))
    assert table.drop(names([3, 4, 50, 3])) == 2
    assert table.probe(names(range(10))) == [i not in (3, 4) for i in range(10)]
    assert table.counts() == {"empty": 92, "ready": 8}
    check(table)


def test_a_dropped_block_lives_while_it_is_leased(table: Table, other: Table) -> None:
    (slot,) = table.fill([name(1)])
    table.lease([name(1)])
    assert other.drop([name(1)]) == 1
    assert table.probe([name(1)]) == [False]
    again = other.claim_one(name(1))
    assert again.state == MINE and again.slot != slot
    other.publish([again.slot])
    table.fill(names(range(100, 198)))
    assert table.claim_one(name(500)).slot != slot
    table.release([slot])
    fill = [table.claim_one(name(600 + i)) for i in range(1)]
    assert fill[0].slot == slot


def test_what_is_dropped_while_it_fills_is_never_seen(table: Table, other: Table) -> None:
    mine = table.claim_one(name(1))
    failing = table.claim_one(name(2))
    theirs = other.claim_one(name(1))
    assert other.drop(names([1, 2])) == 2
    assert other.watch_one(theirs) == GONE
    table.publish([mine.slot], keep_lease=True)
    assert other.probe([name(1)]) == [False]
    table.fail([failing.slot], 1)
    assert table.counts() == {"orphan": 1, "empty": SLOTS - 1, "held": 1}
    table.release([mine.slot])
    check(table)
