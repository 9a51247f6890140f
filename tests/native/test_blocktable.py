"""BlockTable as a whole: making and attaching, who takes part, statistics, wrong arguments, extreme sizes."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from .tables import GONE, POLICIES, SLOTS, Table, check, name, names, new_memory
from .test_fork import in_child, refused
from .tools import native, noise

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
