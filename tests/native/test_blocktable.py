"""BlockTable: what each call does, for one process and for several views of one memory."""

from __future__ import annotations

import mmap
import os
from typing import Any

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
    POLICIES,
    READY,
    THEIRS,
    Table,
    check,
    name,
    names,
    new_memory,
    pack,
)
from .test_fork import in_child, refused
from .tools import address_of, native, noise

SLOTS = 100


@pytest.fixture
def memory() -> mmap.mmap:
    return new_memory(SLOTS)


@pytest.fixture
def table(memory: mmap.mmap) -> Table:
    return Table(memory, SLOTS, create=True)


@pytest.fixture
def other(table: Table) -> Table:
    """Another process, as far as the table can tell."""
    return Table(table.memory, SLOTS, process=2)


# ---- making and attaching ----


def test_bytes_needed() -> None:
    needed = native.BlockTable.bytes_needed
    assert needed(1) % 4096 == 0
    assert needed(1) < needed(1000) < needed(1_000_000) < 100 * 1_000_000
    for wrong in (0, -1, 2**28 + 1):
        with pytest.raises(ValueError, match="slots"):
            needed(wrong)
    with pytest.raises(TypeError):
        needed("x")


def test_a_new_table_is_empty(table: Table) -> None:
    assert table.counts() == {"empty": SLOTS}
    assert table.raw.slots == SLOTS
    assert table.raw.policy == "s3fifo"
    assert table.probe(names(range(50))) == [False] * 50
    check(table)


def test_attaching_finds_what_is_there(table: Table, other: Table) -> None:
    table.fill(names(range(10)))
    assert other.probe(names(range(20))) == [True] * 10 + [False] * 10
    assert (table.number, other.number) == (0, 1)


def test_nothing_to_attach_to(memory: mmap.mmap) -> None:
    with pytest.raises(BlockingIOError, match="no table was made"):
        native.BlockTable(memory, SLOTS)


@pytest.mark.parametrize("offset", [8, 12, 16, 20, 24])
def test_a_header_that_is_not_ours(table: Table, memory: mmap.mmap, offset: int) -> None:
    """Version, ready, slots, policy, mutex: each is looked at, and none leads to a crash."""
    for value in (b"\0\0\0\0", b"\x09\0\0\0", b"\xff\xff\xff\xff"):
        before = memory[offset : offset + 4]
        if value == before:
            continue
        memory[offset : offset + 4] = value
        try:
            native.BlockTable(memory, SLOTS)
        except (ValueError, BlockingIOError):
            pass
        else:
            assert offset == 12  # any number but 0 says that it is ready
        memory[offset : offset + 4] = before
    native.BlockTable(memory, SLOTS)


def test_a_mismatch_names_both(table: Table, memory: mmap.mmap) -> None:
    with pytest.raises(ValueError, match=r"slots: 90, .* has 100"):
        native.BlockTable(memory, 90)
    with pytest.raises(ValueError, match=r"policy: 'lru', .* has 's3fifo'"):
        native.BlockTable(memory, SLOTS, "lru")
    memory[8:12] = b"\x07\0\0\0"
    with pytest.raises(ValueError, match=rf"version 7 .* must be {native.TABLE_VERSION}"):
        native.BlockTable(memory, SLOTS)
    memory[0:8] = b"anything"
    with pytest.raises(ValueError, match="no table of blocks"):
        native.BlockTable(memory, SLOTS)
    assert native.BlockTable.describe(memory)["magic"] is False


def test_describe(table: Table, memory: mmap.mmap) -> None:
    assert native.BlockTable.describe(memory) == {
        "magic": True,
        "ready": True,
        "version": native.TABLE_VERSION,
        "slots": SLOTS,
        "policy": "s3fifo",
    }
    memory[20:24] = b"\xff\xff\xff\xff"
    assert native.BlockTable.describe(memory)["policy"] == ""
    assert not native.BlockTable.describe(bytes(4096))["ready"]
    with pytest.raises(ValueError, match="at least 4096"):
        native.BlockTable.describe(bytes(4095))


def test_the_user_s_part_of_the_header_is_left_alone(memory: mmap.mmap) -> None:
    start, size = native.TABLE_USER_OFFSET, native.TABLE_USER_BYTES
    assert start + size == 4096
    mine = noise(size).tobytes()
    memory[start : start + size] = mine
    table = Table(memory, SLOTS, create=True)
    table.fill(names(range(SLOTS)))
    table.raw.repair()
    assert memory[start : start + size] == mine


def test_wrong_memory(memory: mmap.mmap) -> None:
    make = native.BlockTable
    with pytest.raises(ValueError, match="at least"):
        make(bytearray(4096), SLOTS, create=True)
    with pytest.raises(ValueError, match="aligned to 64"):
        make(memoryview(mmap.mmap(-1, make.bytes_needed(SLOTS) + 64))[8:], SLOTS, create=True)
    with pytest.raises((BufferError, TypeError)):
        make(bytes(make.bytes_needed(SLOTS)), SLOTS, create=True)
    with pytest.raises(ValueError, match="policy: 'mru'"):
        make(memory, SLOTS, "mru", True)
    with pytest.raises(ValueError, match="slots"):
        make(memory, 0, create=True)
    with pytest.raises(TypeError):
        make(memory)


def test_memory_stays_exported(memory: mmap.mmap) -> None:
    table = native.BlockTable(memory, SLOTS, create=True)
    with pytest.raises(BufferError):
        memory.close()
    del table
    memory.close()


# ---- the process table ----


def test_join_and_leave(table: Table, other: Table) -> None:
    me = os.getpid()
    assert table.raw.processes() == [(0, me, 1), (1, me, 2)]
    assert other.raw.leave() == 1
    assert other.raw.number == -1
    assert other.raw.leave() == 1
    assert table.raw.processes() == [(0, me, 1)]
    assert table.raw.leave() == 0
    assert other.raw.join(5, 2**63) == 0
    assert other.raw.processes() == [(0, 5, 2**63)]


def test_the_process_table_is_bounded(memory: mmap.mmap) -> None:
    tables = [Table(memory, SLOTS, create=i == 0, process=i) for i in range(native.PROCESSES_MAX)]
    with pytest.raises(OSError, match="full"):
        Table(memory, SLOTS)
    tables[20].raw.leave()
    assert Table(memory, SLOTS).number == 20


def test_a_view_that_goes_leaves(table: Table, memory: mmap.mmap) -> None:
    other = Table(memory, SLOTS, process=2)
    claim = other.claim_one(name(1))
    del other
    assert len(table.raw.processes()) == 1
    assert table.watch_one(claim) == GONE
    check(table)


def test_what_needs_a_process(memory: mmap.mmap) -> None:
    raw = native.BlockTable(memory, SLOTS, create=True)
    slots, states, generations = np.zeros(1, np.int64), np.zeros(1, np.uint8), np.zeros(1, np.uint32)
    raw.set_arena(bytes(SLOTS), 1)
    for call in (
        lambda: raw.claim(name(1), slots, states, generations),
        lambda: raw.lease(name(1), slots),
        lambda: raw.release(slots),
        lambda: raw.publish(slots),
        lambda: raw.fail(slots, 0),
        lambda: raw.clean(slots),
        lambda: raw.copy_out(name(1), 0, 0, 0),
        lambda: raw.gather(name(1), b""),
        lambda: native.Watcher(raw),
    ):
        with pytest.raises(RuntimeError, match="join"):
            call()
    assert raw.probe(name(1), states) == raw.prefix(name(1)) == raw.drop(name(1)) == 0
    raw.join(1, 1)
    with pytest.raises(RuntimeError, match="joined already"):
        raw.join(1, 1)


def test_reaping_takes_everything_back(table: Table, other: Table) -> None:
    """Leases, what it was filling, and blocks that it had still to store below."""
    table.fill(names(range(10)))
    assert len(other.lease(names(range(5)))) == 5
    filling = other.claim(names(range(20, 25)))
    other.fill(names([30, 31]), dirty=True)
    kept = other.claim_one(name(32))
    other.publish([kept.slot], dirty=True, keep_lease=True)
    other.fill(names([33]))
    assert table.counts() == {"empty": 81, "filling": 5, "ready": 14, "held": 11, "dirty": 3}
    seen = table.lease([name(30)])
    assert table.raw.reap(other.number) == 5 + 5 + 3
    assert table.watch(filling) == [GONE] * 5
    assert table.probe(names([*range(10), 33])) == [True] * 11
    assert table.probe(names([30, 31, 32])) == [False] * 3
    assert table.counts() == {"empty": 88, "ready": 11, "orphan": 1, "held": 1}
    table.release(seen)
    assert table.raw.processes() == [(0, os.getpid(), 1)]
    assert table.raw.reap(other.number) == 0
    table.raw.repair()
    check(table)


def test_who_was_taken_for_dead_takes_nothing_from_who_has_its_number(table: Table, other: Table) -> None:
    table.raw.reap(other.number)
    heir = Table(table.memory, SLOTS, process=3)
    assert heir.number == other.number
    heir.fill([name(1)])
    heir.lease([name(1)])
    assert other.raw.leave() == 2
    assert [start for _, _, start in table.raw.processes()] == [1, 3]
    assert table.counts()["held"] == 1


def test_who_is_taken_for_one_that_had_its_number_keeps_what_it_has(table: Table, other: Table) -> None:
    """A look at who is dead takes time; another one may have reaped it, and a newcomer got the number."""
    dead = (other.number, os.getpid(), 2)
    assert dead in table.raw.processes()
    table.raw.reap(*dead)
    heir = Table(table.memory, SLOTS, process=3)
    assert heir.number == other.number
    heir.fill([name(1)])
    heir.lease([name(1)])
    assert table.raw.reap(*dead) == 0
    assert table.raw.reap(other.number, 1, 3) == 0
    assert table.counts()["held"] == 1
    assert [start for _, _, start in table.raw.processes()] == [1, 3]
    assert table.raw.reap(heir.number, os.getpid(), 3) == 1


def test_only_others_are_reaped(table: Table) -> None:
    for wrong in (-1, 0, native.PROCESSES_MAX):
        with pytest.raises(ValueError, match="number"):
            table.raw.reap(wrong)


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


# ---- leases ----


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


# ---- copies ----


SLOT_BYTES = 4096 * 40


@pytest.fixture
def arena(table: Table) -> Any:
    made = noise(SLOTS * SLOT_BYTES).reshape(SLOTS, SLOT_BYTES)
    table.raw.set_arena(made, SLOT_BYTES)
    return made


@pytest.mark.parametrize("length", [0, 1, 4096, 70_000, SLOT_BYTES])
def test_copy_out(table: Table, arena: Any, length: int) -> None:
    target = np.zeros(SLOT_BYTES + 1, np.uint8)
    offset = (SLOT_BYTES - length) // 2
    assert not table.raw.copy_out(name(1), offset, address_of(target), length)
    assert not target.any()
    (slot,) = table.fill([name(1)])
    gate = native.Gate()
    assert table.raw.copy_out(name(1), offset, address_of(target), length, gate.address)
    assert np.array_equal(target[:length], arena[slot][offset : offset + length])
    assert not target[length:].any()
    assert table.raw.statistics()["leases"] == 0
    target[:] = 0
    gate.close()
    assert table.raw.copy_out(name(1), offset, address_of(target), length, gate.address) == (length == 0)
    assert not target.any()
    check(table)


def test_gather_is_all_or_nothing(table: Table, arena: Any) -> None:
    ids = names(range(10))
    slots = table.fill(ids)
    target = np.zeros((5, 1000), np.uint8)
    extents = np.array([[i, 100 * i, address_of(target[j]), 1000] for j, i in enumerate((9, 0, 3, 3, 7))], np.uint64)
    assert table.raw.gather(pack(ids), extents)
    for j, i in enumerate((9, 0, 3, 3, 7)):
        assert np.array_equal(target[j], arena[slots[i]][100 * i : 100 * i + 1000])
    target[:] = 0
    table.drop([ids[5]])
    assert not table.raw.gather(pack(ids), extents)
    assert not target.any()
    assert table.raw.gather(b"", b"")
    assert table.raw.statistics()["leases"] == 0
    check(table)


def test_copies_stay_within_the_slot(table: Table, arena: Any) -> None:
    table.fill([name(1)])
    big = 2**64 - 1
    for offset, length in ((0, SLOT_BYTES + 1), (SLOT_BYTES, 1), (big, 1), (1, big), (big, big)):
        with pytest.raises(ValueError, match="within a slot"):
            table.raw.copy_out(name(1), offset, 0, length)
        with pytest.raises(ValueError, match=r"extents\[1\]"):
            table.raw.gather(name(1), np.array([[0, 0, 0, 0], [0, offset, 0, length]], np.uint64))
    with pytest.raises(ValueError, match=r"extents\[0\]: must name one of 1 ids"):
        table.raw.gather(name(1), np.array([[1, 0, 0, 0]], np.uint64))
    for wrong in (-1, 2**64, "x"):
        with pytest.raises((OverflowError, TypeError)):
            table.raw.copy_out(name(1), wrong, 0, 0)
    with pytest.raises(ValueError, match="id: 32 bytes"):
        table.raw.copy_out(bytes(32), 0, 0, 0)
    with pytest.raises(ValueError, match="rows of 4 uint64"):
        table.raw.gather(name(1), bytes(31))


def test_the_arena_is_given_once(table: Table) -> None:
    with pytest.raises(RuntimeError, match="set_arena"):
        table.raw.copy_out(name(1), 0, 0, 0)
    with pytest.raises(RuntimeError, match="set_arena"):
        table.raw.gather(name(1), b"")
    for wrong in (0, -1, 11):
        with pytest.raises(ValueError, match="slot_bytes"):
            table.raw.set_arena(bytes(SLOTS * 10), wrong)
    arena = bytearray(SLOTS * 10)
    table.raw.set_arena(arena, 10)
    with pytest.raises(BufferError):
        arena.append(1)
    with pytest.raises(RuntimeError, match="already"):
        table.raw.set_arena(arena, 10)


# ---- repair ----


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


def test_with_one_process_nothing_is_busy(table: Table) -> None:
    """With one process alone nothing is ever busy."""
    states = {one.state for i in range(0, 5000, 100) for one in table.claim(names(range(i, i + 100)))}
    assert BUSY not in states
    assert table.raw.statistics()["busy"] == 0


# ---- the rest ----


def test_statistics(table: Table, other: Table) -> None:
    table.fill(names(range(90)))
    table.lease(names(range(4)))
    failed = other.claim_one(name(200))
    other.fail([failed.slot], 1)
    assert other.raw.statistics() == {
        "slots": SLOTS,
        "free": 9,
        "failed": 1,
        "used": 90,
        "leases": 0,
        "processes": 2,
        "hits": 4,
        "misses": 91,
        "evictions": 0,
        "takeovers": 0,
        "repairs": 0,
        "busy": 0,
    }
    other.fill(names(range(300, 320)))
    assert other.raw.statistics()["evictions"] == 11


def test_watching_what_there_is_not(table: Table) -> None:
    out = np.full(4, 9, np.uint8)
    table.raw.watch(np.array([-1, -5, SLOTS, 2**60], np.int64), np.zeros(4, np.uint32), out)
    assert out.tolist() == [GONE] * 4


def test_wrong_arguments(table: Table) -> None:
    raw = table.raw
    slots, states, generations = np.zeros(2, np.int64), np.zeros(2, np.uint8), np.zeros(2, np.uint32)
    with pytest.raises(ValueError, match="multiple of 16"):
        raw.probe(bytes(15), states)
    with pytest.raises(ValueError, match="out: 2 bytes, must be 1 aligned uint8"):
        raw.probe(bytes(16), states)
    with pytest.raises(ValueError, match="slots: 16 bytes, must be 1 aligned int64"):
        raw.lease(bytes(16), slots)
    with pytest.raises(ValueError, match="generations"):
        raw.claim(bytes(32), slots, states, generations[:1])
    with pytest.raises(ValueError, match="states"):
        raw.claim(bytes(32), slots, states[:1], generations)
    with pytest.raises(ValueError, match="slots: 9 bytes"):
        raw.release(bytes(9))
    with pytest.raises(ValueError, match="aligned"):
        raw.release(np.zeros(17, np.uint8)[1:])
    with pytest.raises((BufferError, ValueError)):
        raw.lease(bytes(32), bytes(16))
    with pytest.raises((BufferError, ValueError)):
        raw.release(np.zeros(4, np.int64)[::2])
    for wrong in (-1, 128):
        with pytest.raises(ValueError, match="reason"):
            raw.fail(slots, wrong)
    for call in (raw.probe, raw.prefix, raw.lease, raw.claim, raw.publish, raw.fail, raw.release, raw.watch, raw.clean):
        with pytest.raises(TypeError):
            call()
        with pytest.raises(TypeError):
            call(*[5] * 4)
    for call in (raw.drop, raw.copy_out, raw.gather, raw.join, raw.reap):
        with pytest.raises(TypeError):
            call()


def test_large_batches(table: Table) -> None:
    slots = 5000
    big = Table(new_memory(slots), slots, create=True)
    ids = names(range(slots))
    assert sorted(big.fill(ids)) == list(range(slots))
    assert big.prefix(ids) == slots
    assert big.prefix([*ids[:4000], name(10**6), *ids]) == 4000
    big.release(big.lease(ids))
    assert big.drop(ids) == slots
    check(big)


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 8, 9, 33])
def test_small_tables_use_every_slot(slots: int) -> None:
    for policy in POLICIES:
        table = Table(new_memory(slots), slots, policy, create=True)
        for start in range(0, 100, slots):
            table.fill(names(range(start, start + slots)))
            check(table)
        assert sum(table.probe(names(range(200)))) == slots


def test_generations_go_round(memory: mmap.mmap) -> None:
    table = Table(new_memory(1), 1, create=True)
    seen = []
    for i in range(4100):
        claim = table.claim_one(name(i % 2))
        seen.append(claim.generation)
        table.publish([claim.slot])
    assert seen == [(i + 1) % 4096 for i in range(4100)]
    check(table)


def test_refused_after_fork(table: Table) -> None:
    (slot,) = table.fill([name(1)])
    table.lease([name(1)])
    held = [table]

    def work() -> None:
        refused(lambda: table.probe([name(1)]))
        refused(lambda: table.release([slot]))
        refused(table.raw.leave)
        refused(lambda: table.claim_one(name(2)))
        refused(table.raw.statistics)
        refused(table.raw.repair)
        held.clear()

    in_child(work)
    assert table.counts()["held"] == 1
    table.release([slot])
    check(table)
