"""IdTable against a dict."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from .tools import native

Ids = npt.NDArray[np.uint8]

IDS = [bytes([i]) + bytes(15) for i in range(40)] + [bytes(15) + bytes([i]) for i in range(40)]
some_ids = st.lists(st.sampled_from(IDS), max_size=30)


def pack(ids: list[bytes]) -> Ids:
    return np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 16)


def random_ids(count: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), dtype=np.uint8)


def counted_ids(count: int, byte: int = 0) -> Ids:
    """Ids that share all bytes but four: counters, as of a trace."""
    made = np.zeros((count, 16), np.uint8)
    made[:, byte : byte + 4] = np.arange(count, dtype=np.uint32).view(np.uint8).reshape(-1, 4)
    return made


def get(table: Any, ids: Ids) -> list[int]:
    out = np.full(len(ids), 77, np.uint64)
    found = table.get(ids, out)
    assert found == np.count_nonzero(out)
    return [int(one) for one in out]


class AgainstADict(RuleBasedStateMachine):
    """With more room than ids nothing is forgotten, so the table must equal a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.table = native.IdTable(5000)
        self.model: dict[bytes, int] = {}

    @rule(ids=some_ids, start=st.integers(1, 2**63))
    def put(self, ids: list[bytes], start: int) -> None:
        values = np.arange(start, start + len(ids), dtype=np.uint64)
        self.table.put(pack(ids), values)
        self.model.update(zip(ids, values.tolist(), strict=True))

    @rule(ids=some_ids)
    def get(self, ids: list[bytes]) -> None:
        assert get(self.table, pack(ids)) == [self.model.get(one, 0) for one in ids]

    @rule(ids=some_ids)
    def discard(self, ids: list[bytes]) -> None:
        there = {one for one in ids if self.model.pop(one, None)}
        assert self.table.discard(pack(ids)) == len(there)

    @rule(ids=some_ids)
    def prefix(self, ids: list[bytes]) -> None:
        wanted = next((i for i, one in enumerate(ids) if one not in self.model), len(ids))
        assert self.table.prefix(pack(ids)) == wanted

    @rule()
    def clear(self) -> None:
        self.table.clear()
        self.model.clear()

    @invariant()
    def same_length(self) -> None:
        assert len(self.table) == len(self.model)


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=60, stateful_step_count=30)


@given(st.integers(1, 300), st.integers(1, 2000))
def test_bounded_and_never_wrong(capacity: int, count: int) -> None:
    table = native.IdTable(capacity)
    ids, values = random_ids(count), np.arange(1, count + 1, dtype=np.uint64)
    table.put(ids, values)
    assert len(table) <= table.capacity
    assert capacity <= table.capacity < capacity * 1.25 + 10
    for got, wanted in zip(get(table, ids), values.tolist(), strict=True):
        assert got in (0, wanted)
    assert get(table, ids[-1:]) == [count]


@pytest.mark.parametrize("ids", [random_ids(100_000), *(counted_ids(100_000, byte) for byte in (0, 4, 6, 8, 12))])
def test_ids_spread(ids: Ids) -> None:
    """Whatever the ids look like, a table that is half full has forgotten next to nothing, and a full one little."""
    for capacity, share in ((200_000, 0.995), (100_000, 0.94)):
        table = native.IdTable(capacity)
        table.put(ids, np.arange(1, len(ids) + 1, dtype=np.uint64))
        assert len(table) > share * len(ids)


def test_what_is_used_stays() -> None:
    """Ids that are looked up again and again outlive a stream of others that are not."""
    table = native.IdTable(1000)
    used, stream = random_ids(100, 1), random_ids(20_000, 2)
    table.put(used, np.ones(100, np.uint64))
    for i in range(0, len(stream), 100):
        table.put(stream[i : i + 100], np.ones(100, np.uint64))
        get(table, used)
    assert sum(get(table, used)) >= 95
    assert sum(get(table, stream)) <= table.capacity


def test_zeros_are_an_id_like_any_other() -> None:
    table = native.IdTable(10)
    nothing = np.zeros((1, 16), np.uint8)
    assert get(table, nothing) == [0]
    table.put(nothing, np.array([5], np.uint64))
    assert get(table, nothing) == [5]


def test_the_last_of_equal_ids_counts() -> None:
    table = native.IdTable(10)
    table.put(np.zeros((3, 16), np.uint8), np.array([1, 2, 3], np.uint64))
    assert get(table, np.zeros((1, 16), np.uint8)) == [3]
    assert len(table) == 1


def test_bytes_are_ids_too() -> None:
    table = native.IdTable(10)
    table.put(b"a" * 16 + b"b" * 16, np.array([1, 2], np.uint64))
    assert table.prefix(b"b" * 16 + b"a" * 16 + b"c" * 16) == 2
    assert table.prefix(b"") == 0
    assert table.discard(bytearray(b"a" * 16)) == 1


def test_large_batches_and_threads() -> None:
    """The lock is the GIL, given up now and then: others get in, and nothing breaks."""
    table = native.IdTable(400_000)
    ids = random_ids(100_000)
    values = np.arange(1, len(ids) + 1, dtype=np.uint64)
    wrong: list[int] = []

    def work(me: int) -> None:
        for _ in range(5):
            mine = slice(me * 25_000, (me + 1) * 25_000)
            table.put(ids[mine], values[mine])
            out = np.zeros(len(ids), np.uint64)
            table.get(ids, out)
            wrong.extend(out[(out != 0) & (out != values)].tolist())

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(table) == np.count_nonzero(get(table, ids))


def test_wrong_arguments() -> None:
    table = native.IdTable(10)
    one, two = np.ones(1, np.uint64), np.ones(2, np.uint64)
    with pytest.raises(ValueError, match="multiple of 16"):
        table.get(bytes(15), one)
    with pytest.raises(ValueError, match="out"):
        table.get(bytes(16), two)
    with pytest.raises(ValueError, match="values"):
        table.put(bytes(32), one)
    with pytest.raises(ValueError, match=r"values\[1\]"):
        table.put(bytes(32), np.array([1, 0], np.uint64))
    with pytest.raises((BufferError, ValueError)):
        table.get(bytes(16), bytes(8))
    with pytest.raises(TypeError):
        table.get(bytes(16))
    with pytest.raises(TypeError):
        table.prefix("text")
    with pytest.raises((BufferError, ValueError)):
        table.discard(np.zeros((4, 16), np.uint8)[::2])
    assert len(table) == 0


@pytest.mark.parametrize("capacity", [0, -5, 2**62])
def test_wrong_capacities(capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity"):
        native.IdTable(capacity)
