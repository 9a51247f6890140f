"""BlockTable: copies between slots and callers, by one thread and several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .tables import SLOTS, Table, check, name, names, pack
from .tools import address_of, native, noise

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
