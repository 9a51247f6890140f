"""SlotTable: slots and their index in memory that processes share."""

from __future__ import annotations

import mmap
import os
import signal
import time
import traceback
import warnings
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ucm_async.native import NATIVE, SlotTable
from ucm_async.types import block_ids

if not NATIVE:
    pytest.skip("needs the extension", allow_module_level=True)

FREE, TAKEN, STORED, BAD = 1, 2, 3, 4
PUBLISHED, ELSEWHERE, NO_ROOM = 0, 1, 2

Array = npt.NDArray[np.generic]


def make(slots: int, *, joined: int = 1, there: int | None = None, segment_slots: int = 0) -> SlotTable:
    memory = mmap.mmap(-1, SlotTable.bytes_needed(slots, segment_slots))
    table = SlotTable(memory, slots, create=True, segment_slots=segment_slots)
    table.join(joined)
    table.add(0, slots if there is None else there)
    return table


def take(table: SlotTable, count: int, kind: int = 0) -> npt.NDArray[np.int64]:
    slots = np.full(count, -7, dtype=np.int64)
    return slots[: table.take(slots, kind)]


def publish(table: SlotTable, slots: Array, ids: Array, stamp: int = 0) -> list[int]:
    out = np.full(len(slots), 9, dtype=np.uint8)
    table.publish(slots, ids, out, stamp)
    return out.tolist()


def find(table: SlotTable, ids: Array, stamp: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    slots, words = np.empty(len(ids), dtype=np.int64), np.empty(len(ids), dtype=np.uint64)
    assert table.find(ids, slots, words, stamp) == int((slots >= 0).sum())
    assert ((slots < 0) == (words == 0)).all()
    return slots, words


def withdraw(table: SlotTable, slots: Array, words: Array) -> list[int]:
    out = np.full(len(slots), 9, dtype=np.uint8)
    assert table.withdraw(slots, words, out) == int(out.sum())
    return out.tolist()


def scan(table: SlotTable, first: int = 0, count: int | None = None) -> tuple[Array, Array, Array]:
    count = table.slots - first if count is None else count
    states, ids = np.empty(count, dtype=np.uint8), np.empty((count, 16), dtype=np.uint8)
    stamps = np.empty(count, dtype=np.uint32)
    table.scan(first, states, ids, stamps)
    return states, ids, stamps


# ---- one process


def test_the_life_of_a_slot() -> None:
    table, ids = make(100, there=40), block_ids(range(3))
    assert table.counts() == {"absent": 60, "free": 40, "taken": 0, "stored": 0, "bad": 0}
    slots = take(table, 3)
    assert slots.tolist() == [0, 1, 2]
    assert find(table, ids)[0].tolist() == [-1] * 3
    assert publish(table, slots, ids) == [PUBLISHED] * 3
    found, words = find(table, ids)
    assert found.tolist() == slots.tolist()
    assert withdraw(table, found[:1], words[:1]) == [1]
    assert find(table, ids)[0].tolist() == [-1, 1, 2]
    table.give(found[:1])
    table.spoil(take(table, 1))
    assert table.counts() == {"absent": 60, "free": 37, "taken": 0, "stored": 2, "bad": 1}
    assert take(table, 100).tolist() == list(range(3, 40))
    assert take(table, 1).tolist() == []


def test_a_word_changes_when_the_block_does() -> None:
    table, ids = make(8), block_ids(range(2))
    slots = take(table, 1)
    publish(table, slots, ids[:1])
    _, first = find(table, ids[:1])
    now = np.empty(1, dtype=np.uint64)
    table.words(slots, now)
    assert now == first
    assert withdraw(table, slots, first) == [1]
    table.words(slots, now)
    assert now != first
    publish(table, slots, ids[:1])  # the same block in the same slot
    table.words(slots, now)
    assert now != first
    assert withdraw(table, slots, first) == [0]
    assert find(table, ids[:1])[0] == slots


def test_a_block_is_published_once() -> None:
    table, ids = make(8), block_ids([5])
    first, second = take(table, 1), take(table, 1)
    assert publish(table, first, ids) == [PUBLISHED]
    assert publish(table, second, ids) == [ELSEWHERE]
    table.give(second)  # it is ours still
    assert find(table, ids)[0] == first


def test_stamps() -> None:
    table, ids = make(8), block_ids(range(2))
    publish(table, take(table, 2), ids, 77)
    find(table, ids[1:], 99)
    find(table, ids)
    assert scan(table)[2].tolist()[:2] == [77, 99]


def test_prefix() -> None:
    table, ids = make(200), block_ids(range(100))
    publish(table, take(table, 70), ids[:70])
    assert table.prefix(ids) == 70
    assert table.prefix(np.ascontiguousarray(ids[::-1])) == 0
    assert table.prefix(ids[:30]) == 30
    assert table.prefix(ids[:0]) == 0


def test_sequence() -> None:
    table = make(8)
    assert [table.next_sequence(n) for n in (1, 10, 0, 1)] == [1, 2, 12, 12]


@pytest.mark.parametrize("slots", [1, 7, 64, 65, 1000])
def test_a_full_table_is_found_whole(slots: int) -> None:
    """Every slot can be used, whatever its number of buckets; twice, so that entries have come and gone."""
    table = make(slots)
    for seed in range(3):
        ids = block_ids(range(seed << 32, (seed << 32) + slots))
        mine = take(table, slots + 5)
        assert len(mine) == slots
        assert publish(table, mine, ids) == [PUBLISHED] * slots
        found, words = find(table, ids)
        assert found.tolist() == mine.tolist()
        assert sum(withdraw(table, found, words)) == slots
        assert (find(table, ids)[0] < 0).all()
        table.give(found)


def test_the_lowest_free_slots_come_first() -> None:
    """What was written before is used again before what never was."""
    table = make(1000)
    mine = take(table, 600)
    table.give(mine[100:200])
    assert take(table, 150).tolist() == [*range(100, 200), *range(600, 650)]


def test_whole_ranges() -> None:
    table, ids = make(100, there=50), block_ids(range(20))
    publish(table, take(table, 20), ids)
    table.spoil(take(table, 1))
    assert table.seize(0, 50) == 0
    assert (find(table, ids)[0] < 0).all()
    assert table.counts() == {"absent": 50, "free": 0, "taken": 50, "stored": 0, "bad": 0}
    table.clear(0, 50)
    assert table.counts()["absent"] == 100
    table.add(30, 40)
    assert take(table, 100).tolist() == list(range(30, 70))


def test_slots_of_several_kinds() -> None:
    """Who asks for a kind gets no other one, however many are free; a segment may come back as another kind."""
    table = make(700, there=0, segment_slots=70)
    for segment, kind in ((0, 3), (1, 5), (2, 3)):
        table.add(70 * segment, 70, kind)
    assert not len(take(table, 10))
    assert take(table, 80, 5).tolist() == list(range(70, 140))
    mine = take(table, 500, 3)
    assert mine.tolist() == [*range(70), *range(140, 210)]
    table.give(mine[5:8])
    assert not len(take(table, 1, 5))
    assert take(table, 2, 3).tolist() == [5, 6]
    table.clear(70, 70)
    table.add(70, 70, 3)
    assert take(table, 100, 3).tolist() == [7, *range(70, 140)]


def test_free_slots_of_a_kind_are_found_after_a_repair() -> None:
    table = make(100, there=0, segment_slots=10)
    table.add(50, 10, 31)
    take(table, 10, 31)
    assert table.repair(None) == 10
    assert take(table, 20, 31).tolist() == list(range(50, 60))


def distrusted(table: SlotTable, slots: Array) -> list[int]:
    out = np.full(len(slots), 9, dtype=np.uint8)
    table.distrusted(slots, out)
    return out.tolist()


def test_what_a_failed_sync_may_have_lost() -> None:
    """It is told of what was in the slots then, and of nothing that comes after that."""
    table, ids = make(20), block_ids(range(4))
    mine = take(table, 6)
    publish(table, mine[:4], ids)
    table.distrust(0, 20)
    assert distrusted(table, np.arange(-1, 21)) == [0, *(1,) * 6, *(0,) * 14, 0]
    slots, words = find(table, ids[:2])
    withdraw(table, slots, words)
    table.give(slots[:1])
    table.give(mine[4:5])
    assert distrusted(table, mine) == [0, 0, 1, 1, 1, 1]
    assert take(table, 2).tolist() == [0, 4]
    assert distrusted(table, mine) == [0, 0, 1, 1, 0, 1]
    publish(table, mine[5:], block_ids([9]))
    assert distrusted(table, mine[5:]) == [1], "it was on its way"
    spoilt = take(table, 1)
    table.distrust(0, 20)
    table.spoil(spoilt)
    assert distrusted(table, spoilt) == [1]
    table.seize(int(spoilt[0]), 1)
    assert distrusted(table, spoilt) == [0], "what comes is another thing"


# ---- several


def test_a_second_view_of_the_memory() -> None:
    memory = mmap.mmap(-1, SlotTable.bytes_needed(50))
    with pytest.raises(BlockingIOError):
        SlotTable(memory, 50)
    one = SlotTable(memory, 50, create=True)
    one.add(0, 50)
    other = SlotTable(memory, 50)
    one.join(1)
    other.join(2)
    ids = block_ids(range(4))
    mine, theirs = take(one, 2), take(other, 2)
    assert set(mine.tolist()).isdisjoint(theirs.tolist())
    publish(one, mine, ids[:2])
    assert find(other, ids)[0].tolist() == [*mine.tolist(), -1, -1]
    with pytest.raises(ValueError, match="was not taken by us"):
        other.give(take(one, 1))
    assert one.seize(0, 50) == 2
    assert other.repair(1) == 48
    assert one.counts()["free"] == 48
    assert other.repair(2) == 2


def test_repair_of_everything() -> None:
    table = make(300)
    publish(table, take(table, 10), block_ids(range(10)))
    take(table, 20)
    before = find(table, block_ids(range(10)))[0].tolist()
    assert table.repair(None) == 20
    assert table.counts() == {"absent": 0, "free": 290, "taken": 0, "stored": 10, "bad": 0}
    assert find(table, block_ids(range(10)))[0].tolist() == before
    assert len(take(table, 300)) == 290


class Hammer:
    """A process that stores and removes blocks for ever, and looks whether what it stored is there."""

    def __init__(self, memory: mmap.mmap, slots: int, number: int, ids: Array) -> None:
        self.number = number
        self.ids = np.ascontiguousarray(ids[number::8])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the child uses no thread of its parent
            self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(50)
            try:
                self.run(SlotTable(memory, slots))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)

    def run(self, table: SlotTable) -> None:
        table.join(self.number)
        while True:
            mine = take(table, len(self.ids))
            ids = self.ids[: len(mine)]
            assert publish(table, mine, ids) == [PUBLISHED] * len(mine)
            found, words = find(table, ids)
            assert (found == mine).all(), "a block that was published is not found"
            assert all(withdraw(table, found, words))
            assert (find(table, ids)[0] < 0).all()
            table.give(found)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFSIGNALED(status), "it saw something that cannot be, and ended"


@pytest.mark.timeout(60)
def test_processes_that_are_killed() -> None:
    """Four at a time at one small table, killed at any instruction: the others never notice, and no slot is lost."""
    slots = 150
    memory = mmap.mmap(-1, SlotTable.bytes_needed(slots))
    table = SlotTable(memory, slots, create=True)
    table.add(0, slots)
    table.join(200)
    ids = block_ids(range(8 * 60))
    generator = np.random.default_rng(3)
    living = [Hammer(memory, slots, number, ids) for number in range(1, 5)]
    left = 0
    for _ in range(40):
        time.sleep(float(generator.uniform(0.0005, 0.02)))
        dead = living.pop(0)
        dead.kill()
        table.repair(dead.number)
        found, words = find(table, dead.ids)  # what it had stored stays, and is anybody's to remove
        there = found >= 0
        left += int(there.sum())
        assert all(withdraw(table, found[there], words[there]))
        table.give(found[there])
        living.append(Hammer(memory, slots, dead.number, ids))
    for one in living:
        one.kill()
    assert left, "nobody was killed in the middle of anything"
    table.repair(None)
    states, stored, _ = scan(table)
    assert set(states.tolist()) <= {FREE, STORED}
    kept = np.ascontiguousarray(stored[states == STORED])
    assert (find(table, kept)[0] == np.flatnonzero(states == STORED)).all()
    assert len(take(table, slots)) == int((states == FREE).sum())


# ---- against a model


class Model(RuleBasedStateMachine):
    """Any sequence of calls on a small table with few ids, against a dict; most buckets have several entries."""

    ids = block_ids(range(40))

    @initialize(slots=st.integers(1, 24), segment_slots=st.integers(1, 24), kinds=st.integers(1, 3))
    def begin(self, slots: int, segment_slots: int, kinds: int) -> None:
        self.segment_slots, self.kinds = min(slots, segment_slots), kinds
        self.table = make(slots, there=0, segment_slots=self.segment_slots)
        for first in range(0, slots, self.segment_slots):
            self.table.add(first, min(self.segment_slots, slots - first), self.kind(first))
        self.stored: dict[int, int] = {}
        self.taken: set[int] = set()
        self.bad: set[int] = set()

    def kind(self, slot: int) -> int:
        return slot // self.segment_slots % self.kinds

    @rule(count=st.integers(0, 10), kind=st.integers(0, 3))
    def take(self, count: int, kind: int) -> None:
        used = {*self.taken, *self.bad, *self.stored.values()}
        free = [at for at in range(self.table.slots) if at not in used and self.kind(at) == kind]
        mine = take(self.table, count, kind).tolist()
        assert len(mine) == min(count, len(free)) and set(mine) <= set(free)
        self.taken |= set(mine)

    @rule(which=st.lists(st.integers(0, 39), unique=True, max_size=8))
    def publish(self, which: list[int]) -> None:
        mine = sorted(self.taken)[: len(which)]
        which = which[: len(mine)]
        outcomes = publish(self.table, np.array(mine, dtype=np.int64), self.ids[which])
        for one, slot, outcome in zip(which, mine, outcomes, strict=True):
            assert outcome == (ELSEWHERE if one in self.stored else PUBLISHED)
            if outcome == PUBLISHED:
                self.stored[one] = slot
                self.taken.discard(slot)

    @rule(which=st.lists(st.integers(0, 39), unique=True, max_size=8))
    def withdraw(self, which: list[int]) -> None:
        slots, words = find(self.table, self.ids[which])
        assert slots.tolist() == [self.stored.get(one, -1) for one in which]
        assert withdraw(self.table, slots, words) == [int(one in self.stored) for one in which]
        self.taken |= {self.stored.pop(one) for one in which if one in self.stored}

    @rule(count=st.integers(0, 5), spoil=st.booleans())
    def let_go(self, count: int, spoil: bool) -> None:
        mine = sorted(self.taken)[:count]
        (self.table.spoil if spoil else self.table.give)(np.array(mine, dtype=np.int64))
        self.taken -= set(mine)
        self.bad |= set(mine) if spoil else set()

    @rule()
    def reattach(self) -> None:
        assert self.table.repair(None) == len(self.taken)
        self.taken = set()

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "table"):
            return
        counts = self.table.counts()
        assert (counts["stored"], counts["taken"], counts["bad"]) == (len(self.stored), len(self.taken), len(self.bad))
        assert sum(counts.values()) == self.table.slots
        states, ids, _ = scan(self.table)
        for one, slot in self.stored.items():
            assert states[slot] == STORED and (ids[slot] == self.ids[one]).all()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30)


# ---- arguments


def test_the_memory_must_be_right() -> None:
    with pytest.raises(ValueError, match="aligned to 8"):
        SlotTable(bytearray(10), 100, create=True)
    with pytest.raises(BufferError):
        SlotTable(bytes(SlotTable.bytes_needed(4)), 4, create=True)
    for wrong in (0, -1, 2**28 + 1):
        with pytest.raises(ValueError, match="slots"):
            SlotTable(bytearray(100), wrong)
    memory = bytearray(SlotTable.bytes_needed(100, 25))
    SlotTable(memory, 100, create=True)
    with pytest.raises(ValueError, match="a table of 100 slots in segments of 100, must be 90 and 90"):
        SlotTable(memory, 90)
    with pytest.raises(ValueError, match="in segments of 100, must be 100 and 25"):
        SlotTable(memory, 100, segment_slots=25)
    for wrong in (-1, 101):
        with pytest.raises(ValueError, match="segment_slots"):
            SlotTable(memory, 100, segment_slots=wrong)
    memory[8] = 9
    with pytest.raises(ValueError, match="a table of version 9, must be 2"):
        SlotTable(memory, 100)
    memory[0] ^= 1
    with pytest.raises(ValueError, match="no table"):
        SlotTable(memory, 100)
    with pytest.raises(BufferError):
        table = SlotTable(memory := bytearray(SlotTable.bytes_needed(1)), 1, create=True)
        memory.clear()
    del table


def test_arguments_are_checked() -> None:
    table, ids = make(10), block_ids(range(2))
    slots, words = np.empty(2, dtype=np.int64), np.empty(2, dtype=np.uint64)
    with pytest.raises(ValueError, match="words: 8 bytes"):
        table.find(ids, slots, words[:1])
    with pytest.raises(ValueError, match="stamp"):
        table.find(ids, slots, words, 1 << 32)
    with pytest.raises(OverflowError):
        table.find(ids, slots, words, -1)
    with pytest.raises(TypeError, match="arguments"):
        table.find(ids)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="ids: 31 bytes"):
        table.prefix(bytes(31))
    for first, count in ((0, 11), (11, 0), (9, 2), (1, 2**64 - 1)):
        for verb in (table.add, table.seize, table.clear, table.distrust):
            with pytest.raises(ValueError, match="there are 10 slots"):
                verb(first, count)
    for call in (lambda: table.add(0, 1, 32), lambda: take(table, 1, 32)):
        with pytest.raises(ValueError, match="kind: 32"):
            call()
    with pytest.raises(ValueError, match="there are 10 slots"):
        scan(table, 5, 6)
    for wrong in (0, 256, -2):
        with pytest.raises(ValueError, match="number"):
            table.join(wrong)
        with pytest.raises(ValueError, match="owner"):
            table.repair(wrong)
    mine = take(table, 2)
    for verb in (table.give, table.spoil):
        with pytest.raises(ValueError, match=r"slots\[1\]: 5 was not taken by us"):
            verb(np.array([mine[0], 5], dtype=np.int64))
        with pytest.raises(ValueError, match="was not taken"):
            verb(np.array([-1], dtype=np.int64))
        with pytest.raises(ValueError, match="was not taken"):
            verb(np.array([10], dtype=np.int64))
    assert table.counts()["taken"] == 2, "a refused call changes nothing"
    assert withdraw(table, np.array([-1, 10, 0], dtype=np.int64), np.full(3, 3, dtype=np.uint64)) == [0, 0, 0]


def test_without_a_number_nothing_is_taken() -> None:
    table = SlotTable(mmap.mmap(-1, SlotTable.bytes_needed(4)), 4, create=True)
    table.add(0, 4)
    for call in (lambda: take(table, 1), lambda: table.seize(0, 4)):
        with pytest.raises(RuntimeError, match="not joined"):
            call()


@pytest.fixture
def damaged() -> Iterator[tuple[SlotTable, npt.NDArray[np.uint8]]]:
    """A table in use, and its memory."""
    memory = np.zeros(SlotTable.bytes_needed(64), dtype=np.uint8)
    table = SlotTable(memory, 64, create=True)
    table.join(1)
    table.add(0, 64)
    publish(table, take(table, 40), block_ids(range(40)))
    yield table, memory


@pytest.mark.parametrize("seed", range(20))
def test_memory_that_holds_anything(damaged: tuple[SlotTable, npt.NDArray[np.uint8]], seed: int) -> None:
    """Whatever another process writes there, calls come back, and stay within the memory."""
    table, memory = damaged
    generator = np.random.default_rng(seed)
    places = generator.integers(128, len(memory), 400)
    memory[places] = generator.integers(0, 256, len(places))
    for _ in range(3):
        slots, words = find(table, block_ids(range(40)))
        assert ((slots >= -1) & (slots < 64)).all()
        withdraw(table, slots, words)
        mine = take(table, 20)
        assert ((mine >= 0) & (mine < 64)).all()
        publish(table, mine, block_ids(range(100, 100 + len(mine))))
        table.seize(10, 20)
        table.repair(1)
        scan(table)
        table.counts()
