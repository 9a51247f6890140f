"""BlockTable: what is leased stays, and what cannot stay is not leased."""

from __future__ import annotations

import mmap

import pytest

from .tables import FILLING, HIT, MINE, NONE, POLICIES, SLOTS, Table, check, name, names, new_memory


def test_leases_are_counted_by_process(table: Table, other: Table) -> None:
    (slot,) = table.fill([name(1)])
    table.lease([name(1)] * 3)
    other.lease([name(1)])
    assert table.entries()["holders"][slot] == 0b11
    table.release([slot, slot])
    assert table.entries()["holders"][slot] == 0b11
    table.release([slot])
    assert table.entries()["holders"][slot] == 0b10
    other.release([slot])
    check(table)


def test_what_is_not_ours_is_refused(table: Table, other: Table) -> None:
    slots = table.fill(names(range(3)))
    other.lease([name(0)])
    for call in (table.release, table.publish, table.clean, lambda slots: table.fail(slots, 1)):
        for wrong in (slots[0], -2, SLOTS, 2**40):
            with pytest.raises(ValueError, match=rf"slots\[1\]: {wrong}, must be a slot that this process holds"):
                call([-1, wrong])
    table.lease(names(range(2)))
    with pytest.raises(ValueError, match=r"slots\[2\]"):
        table.release([slots[0], slots[1], slots[2]])
    assert table.raw.statistics()["leases"] == 0
    other.release([slots[0]])
    check(table)


def test_minus_one_is_skipped(table: Table) -> None:
    claim = table.claim_one(name(1))
    table.publish([-1, claim.slot, -1], keep_lease=True)
    table.clean([-1])
    table.fail([-1], 1)
    table.release([-1, claim.slot])
    check(table)


def test_what_is_leased_filling_or_dirty_is_not_evicted(memory: mmap.mmap) -> None:
    for policy in POLICIES:
        table = Table(memory, SLOTS, policy, create=True)
        leased, filling, dirty, rest = (
            names(range(10)),
            names(range(10, 20)),
            names(range(20, 30)),
            names(range(30, 100)),
        )
        table.fill(leased)
        table.lease(leased)
        claims = table.claim(filling)
        table.fill(dirty, dirty=True)
        table.fill(rest)
        for i in range(1000, 1200):
            table.fill([name(i)])
        assert table.probe(leased) == table.probe(dirty) == [True] * 10
        assert table.watch(claims) == [FILLING] * 10
        assert table.probe(rest) == [False] * 70
        table.raw.leave()
        del table


@pytest.mark.parametrize("policy", POLICIES)
def test_when_nothing_can_go_the_answer_is_none(memory: mmap.mmap, policy: str) -> None:
    table = Table(memory, SLOTS, policy, create=True)
    table.fill(names(range(SLOTS)))
    slots = table.lease(names(range(SLOTS)))
    for _ in range(5):
        assert [one.state for one in table.claim(names(range(500, 600)))] == [NONE] * 100
    table.release(slots[:3])
    states = [one.state for one in table.claim(names(range(500, 600)))]
    assert states.count(MINE) == 3 and states.count(NONE) == 97
    assert all(table.claim_one(name(i)).state == HIT for i in range(3, SLOTS))


def test_a_search_is_bounded_and_goes_on_where_it_stopped() -> None:
    """One slot of many thousands can go: it is found by claims that each look at a part."""
    slots = 20_000
    table = Table(new_memory(slots), slots, "fifo", create=True)
    table.fill(names(range(slots)))
    held = table.lease(names(range(slots)))
    table.release([held[15_000]])
    states = [table.claim_one(name(10**6)).state for _ in range(10)]
    assert states[0] == NONE and MINE in states
