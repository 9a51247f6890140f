"""What the tests of BlockTable share: a table with Python's types at its border, and a look at the bytes below it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .tools import native

HIT, MINE, THEIRS, NONE, BUSY = (getattr(native, f"CLAIM_{name}") for name in ("HIT", "MINE", "THEIRS", "NONE", "BUSY"))
GONE, FILLING, READY, DIRTY, FAILED = (
    getattr(native, f"WATCH_{name}") for name in ("GONE", "FILLING", "READY", "DIRTY", "FAILED")
)
SLOTS = 100
"""Of the tables that the fixtures make."""

POLICIES = ("s3fifo", "sieve", "lru", "fifo")

ENTRY = np.dtype(
    [("holders", "<u8"), ("id", "V16"), ("generation", "<u4")]
    + [(name, "u1") for name in ("state", "flags", "visits", "list")]
)
"""A record of ``BlockTable.entries``."""

STATES = ("empty", "filling", "ready", "failed", "evicting", "orphan")
FREE_LIST, FAILED_LIST, ORPHANS_LIST, MAIN_LIST, SMALL_LIST = range(1, 6)
LISTS_OF = {
    "empty": {FREE_LIST},
    "filling": {MAIN_LIST, SMALL_LIST},
    "ready": {MAIN_LIST, SMALL_LIST},
    "failed": {FAILED_LIST},
    "orphan": {ORPHANS_LIST},
}

# The layout of ext/blocktable.h, as far as it is looked at from outside.
SLOT = np.dtype(
    {
        "names": ["word", "id", "next", "previous", "list"],
        "formats": ["<u8", "V16", "<u4", "<u4", "u1"],
        "offsets": [0, 8, 24, 28, 32],
        "itemsize": 64,
    }
)
MUTEX_OFFSET, MUTEX_BYTES = 192, 40
LISTS_OFFSET, HEADER_END = 256, 336
INDEX_OFFSET = 8192
NIL = 2**32 - 1


def new_memory(slots: int) -> mmap.mmap:
    """Memory for a table, zeroed."""
    return mmap.mmap(-1, native.BlockTable.bytes_needed(slots))


def name(number: int) -> bytes:
    """An id."""
    return number.to_bytes(16, "little")


def names(numbers: Iterable[int]) -> list[bytes]:
    """Ids."""
    return [name(number) for number in numbers]


def pack(ids: Iterable[bytes]) -> bytes:
    """Ids one after another."""
    return b"".join(ids)


class Claim:
    """What became of one id."""

    def __init__(self, slot: int, state: int, generation: int) -> None:
        self.slot, self.state, self.generation = slot, state, generation

    def __repr__(self) -> str:
        return f"Claim(slot={self.slot}, state={self.state}, generation={self.generation})"


class Table:
    """A BlockTable whose calls take and give lists. `process` is the start time it joins with."""

    def __init__(
        self, memory: Any, slots: int, policy: str = "s3fifo", *, create: bool = False, process: int = 1
    ) -> None:
        self.memory = memory
        self.slots = slots
        self.raw = native.BlockTable(memory, slots, policy, create)
        self.number: int = self.raw.join(os.getpid(), process)

    def claim(self, ids: Sequence[bytes]) -> list[Claim]:
        slots, states = np.full(len(ids), 99, np.int64), np.full(len(ids), 99, np.uint8)
        generations = np.full(len(ids), 99, np.uint32)
        self.raw.claim(pack(ids), slots, states, generations)
        return [Claim(*one) for one in zip(slots.tolist(), states.tolist(), generations.tolist(), strict=True)]

    def claim_one(self, one: bytes) -> Claim:
        return self.claim([one])[0]

    def lease(self, ids: Sequence[bytes]) -> list[int]:
        slots = np.full(len(ids), 99, np.int64)
        leased = self.raw.lease(pack(ids), slots)
        assert leased == np.count_nonzero(slots >= 0)
        return [int(slot) for slot in slots]

    def probe(self, ids: Sequence[bytes]) -> list[bool]:
        out = np.full(len(ids), 99, np.uint8)
        found = self.raw.probe(pack(ids), out)
        assert set(out.tolist()) <= {0, 1} and found == out.sum()
        return [bool(one) for one in out]

    def prefix(self, ids: Sequence[bytes]) -> int:
        return int(self.raw.prefix(pack(ids)))

    def drop(self, ids: Sequence[bytes]) -> int:
        return int(self.raw.drop(pack(ids)))

    def publish(self, slots: Sequence[int], dirty: bool = False, keep_lease: bool = False) -> None:
        self.raw.publish(np.array(slots, np.int64), dirty, keep_lease)

    def fail(self, slots: Sequence[int], reason: int) -> None:
        self.raw.fail(np.array(slots, np.int64), reason)

    def release(self, slots: Sequence[int]) -> None:
        self.raw.release(np.array(slots, np.int64))

    def clean(self, slots: Sequence[int]) -> None:
        self.raw.clean(np.array(slots, np.int64))

    def watch(self, claims: Sequence[Claim]) -> list[int]:
        out = np.full(len(claims), 99, np.uint8)
        slots = np.array([one.slot for one in claims], np.int64)
        self.raw.watch(slots, np.array([one.generation for one in claims], np.uint32), out)
        return [int(one) for one in out]

    def watch_one(self, claim: Claim) -> int:
        return self.watch([claim])[0]

    def fill(self, ids: Sequence[bytes], dirty: bool = False) -> list[int]:
        """Put ids in that are not there."""
        claims = self.claim(ids)
        assert all(one.state == MINE for one in claims), claims
        self.publish([one.slot for one in claims], dirty)
        return [one.slot for one in claims]

    def entries(self) -> npt.NDArray[Any]:
        return np.frombuffer(self.raw.entries(), ENTRY)

    def counts(self) -> dict[str, int]:
        """Slots by state, without the zeros."""
        return {state: count for state, count in self.raw.count_states().items() if count}


def check(table: Table, *, quiet: bool = True, lazy: bool = False) -> None:
    """Fail unless index, lists and slots agree.

    `quiet`: nothing is under way, so nobody holds anything either. `lazy`: whoever gave up a slot may have found the
    mutex taken, and left it to the next one who needs it to clear up behind.
    """
    slots, entries = table.slots, table.entries()
    states = [STATES[state] for state in entries["state"]]
    if quiet:
        assert set(states) <= {"empty", "ready", "failed", *(["orphan"] if lazy else [])}
        assert not entries["holders"].any()
    _check_index(table, entries, states, lazy)
    heads = np.frombuffer(table.memory, np.uint32, 18, LISTS_OFFSET).reshape(6, 3)
    raw = np.frombuffer(table.memory, SLOT, slots, INDEX_OFFSET + 64 * (slots // 4 + 8))
    assert np.array_equal(raw["list"], entries["list"])
    for state, place in zip(states, entries["list"].tolist(), strict=True):
        left = lazy and state in ("failed", "orphan")
        assert place in LISTS_OF[state] or (left and place in LISTS_OF["ready"]), (state, place)
    for place in range(1, 6):
        _check_list(raw, place, heads[place].tolist())


def _check_index(table: Table, entries: npt.NDArray[Any], states: list[str], lazy: bool) -> None:
    """Every READY and FILLING slot is in it once, and nothing else (unless it is `lazy`); and is found."""
    index = np.frombuffer(table.memory, np.uint64, 8 * (table.slots // 4 + 8), INDEX_OFFSET)
    pointed = sorted(int(entry & NIL) - 1 for entry in index[index != 0])
    live = [slot for slot, state in enumerate(states) if state in ("ready", "filling")]
    assert len(set(pointed)) == len(pointed)
    assert set(live) <= set(pointed)
    assert {states[slot] for slot in set(pointed) - set(live)} <= ({"failed", "orphan"} if lazy else set())
    ids = [entries["id"][slot].tobytes() for slot in live]
    assert len(set(ids)) == len(ids), "an id is there twice"
    assert table.probe(ids) == [states[slot] == "ready" for slot in live]


def _check_list(raw: npt.NDArray[Any], place: int, ends: list[int]) -> None:
    members = np.flatnonzero(raw["list"] == place).tolist()
    order: list[int] = []
    at, tail, count = ends
    while at != NIL:
        assert raw["previous"][at] == (order[-1] if order else NIL)
        order.append(at)
        assert len(order) <= len(members)
        at = int(raw["next"][at])
    assert sorted(order) == members
    assert tail == (order[-1] if order else NIL)
    assert count == len(members)
