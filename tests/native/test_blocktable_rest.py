"""What a dead process was filling rests: the kernel may still have a read of its that ends there."""

from __future__ import annotations

import time

import numpy as np
import pytest

from .tables import MINE, NONE, Table, check, name, names, new_memory

LONG_S = 600


def two(slots: int) -> tuple[Table, Table]:
    memory = new_memory(slots)
    return Table(memory, slots, create=True), Table(memory, slots, process=2)


@pytest.mark.parametrize("repaired", [False, True])
def test_a_slot_that_was_being_filled_is_given_to_nobody(repaired: bool) -> None:
    mine, theirs = two(4)
    filled = theirs.claim_one(name(1)).slot
    assert mine.raw.reap(theirs.number, rest_s=LONG_S) == 1
    if repaired:
        mine.raw.repair()
    claims = mine.claim(names(range(10, 14)))
    assert sorted(one.state for one in claims) == sorted([MINE] * 3 + [NONE])
    assert filled not in [one.slot for one in claims]
    assert mine.claim_one(name(1)).state == NONE
    mine.publish([one.slot for one in claims])
    check(mine)


def test_without_a_rest_it_is_free_at_once() -> None:
    mine, theirs = two(1)
    theirs.claim_one(name(1))
    assert mine.raw.reap(theirs.number) == 1
    assert mine.claim_one(name(2)).state == MINE


def test_the_rest_ends() -> None:
    mine, theirs = two(1)
    theirs.claim_one(name(1))
    mine.raw.reap(theirs.number, rest_s=1)
    give_up = time.monotonic() + 30
    while (claim := mine.claim_one(name(2))).state == NONE and time.monotonic() < give_up:
        time.sleep(0.05)
    assert claim.state == MINE
    mine.publish([claim.slot])
    check(mine)


def test_what_was_dropped_while_it_was_filled_rests_too() -> None:
    mine, theirs = two(1)
    theirs.claim_one(name(1))
    assert mine.drop([name(1)]) == 1
    mine.raw.reap(theirs.number, rest_s=LONG_S)
    assert mine.claim_one(name(2)).state == NONE


def test_what_was_whole_does_not_rest() -> None:
    mine, theirs = two(1)
    (slot,) = theirs.fill([name(1)])
    assert theirs.lease([name(1)]) == [slot]
    mine.raw.reap(theirs.number, rest_s=LONG_S)
    assert mine.probe([name(1)]) == [True]
    assert mine.claim_one(name(2)).state == MINE


@pytest.mark.parametrize("rest_s", [-1, 3601, 1 << 40])
def test_rests_that_cannot_be(rest_s: int) -> None:
    mine, theirs = two(1)
    with pytest.raises(ValueError, match="rest_s"):
        mine.raw.reap(theirs.number, rest_s=rest_s)
    assert np.count_nonzero([pid for _, pid, _ in mine.raw.processes()]) == 2
