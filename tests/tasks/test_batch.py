"""Slices of several tasks that travel as one batch."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.errors import CorruptError
from ucm_async.tasks import SliceBatch, make_batches, reasons_at, reasons_of
from ucm_async.types import Status

from .doubles import ROW_BYTES, make_task, slices_of


async def test_rows_stand_one_after_another() -> None:
    first, second = make_task(3), make_task(2)
    batch = SliceBatch([*slices_of(first, (1, 3)), *slices_of(second, (0, 2))])
    assert len(batch) == 4
    assert (batch.ids == np.concatenate((first.ids[1:], second.ids))).all()
    assert (batch.addresses == np.concatenate((first.memory.addresses[1:], second.memory.addresses))).all()
    assert batch.gates.tolist() == [first.gate_address] * 2 + [second.gate_address] * 2
    assert first.gate_address != second.gate_address
    assert batch.piece_sizes.tolist() == [ROW_BYTES]


@pytest.mark.parametrize("as_mask", [False, True])
async def test_reports_find_their_tasks(as_mask: bool) -> None:
    first, second = make_task(2), make_task(3)
    batch = SliceBatch([*slices_of(first, (0, 2)), *slices_of(second, (0, 3))])
    rows = np.array([1, 2, 4])
    if as_mask:
        mask = np.zeros(5, dtype=np.bool_)
        mask[rows] = True
        rows = mask
    batch.report(rows, np.array([Status.MISS, Status.OK, Status.BUSY], dtype=np.uint8))
    batch.report(np.array([0]), Status.CORRUPT, CorruptError("bad"))
    batch.report_rest(Status.OK)
    assert (await first).status.tolist() == [Status.CORRUPT, Status.MISS]
    assert (await second).status.tolist() == [Status.OK, Status.OK, Status.BUSY]
    assert (await first).failures[0].reason == "bad"


async def test_each_row_has_its_own_reason() -> None:
    first, second = make_task(2), make_task(3)
    batch = SliceBatch([*slices_of(first, (0, 2)), *slices_of(second, (0, 3))])
    batch.report(np.array([3]), Status.OK)
    rows, reasons = np.array([4, 1, 3, 2]), {0: CorruptError("four"), 1: CorruptError("one"), 2: CorruptError("three")}
    batch.report(rows, np.full(4, Status.CORRUPT, dtype=np.uint8), reasons)
    batch.report_rest(Status.OK)
    assert {row: one.reason for row, one in (await first).failures.items()} == {1: "one"}
    assert {row: one.reason for row, one in (await second).failures.items()} == {0: "corrupt", 2: "four"}
    assert {row: one.reason for row, one in (await second).failures.told.items()} == {2: "four"}


@given(st.lists(st.integers(0, 9), max_size=20), st.sets(st.integers(0, 9)), st.permutations(range(10)))
def test_reasons_go_by_other_numbers(keys: list[int], told: set[int], places: list[int]) -> None:
    reasons = {key: CorruptError(str(key)) for key in told}
    assert reasons_of(reasons, np.array(keys, dtype=np.int64)) == {
        row: reasons[key] for row, key in enumerate(keys) if key in told
    }
    moved = reasons_at(reasons, np.array(places))
    assert {places[key]: reasons[key] for key in told} == moved
    assert reasons_of(moved, np.array(places)) == reasons


async def test_rows_of_settled_tasks_are_not_live() -> None:
    first, second = make_task(2), make_task(2)
    batch = SliceBatch([*slices_of(first, (0, 2)), *slices_of(second, (0, 2))])
    assert batch.live().all()
    batch.report(np.array([3]), Status.OK)
    first.cancel()
    assert batch.live().tolist() == [False, False, True, False]
    second.cancel()


async def test_patience_ends_with_the_nearest_deadline() -> None:
    first, second = make_task(1), make_task(1)
    batch = SliceBatch([*slices_of(first, (0, 1)), *slices_of(second, (0, 1))])
    assert batch.patience_s() == float("inf")
    second.set_deadline(asyncio.get_running_loop().time() + 50)
    assert 0 < batch.patience_s() < 51


async def test_what_cannot_be_treated_alike_is_apart() -> None:
    plain, direct, pieces = make_task(1), make_task(1, direct=True), make_task(1, rows=[[bytearray(60), bytearray(4)]])
    synced = make_task(1)
    synced.durability = "synced"
    other = make_task(1)
    slices = [one for task in (plain, direct, pieces, synced, other) for one in slices_of(task, (0, 1))]
    batches = make_batches(slices)
    assert [[one.task for one in batch.slices] for batch in batches] == [[plain, other], [direct], [pieces], [synced]]
    assert [batch.direct for batch in batches] == [False, True, False, False]
    assert batches[2].piece_sizes.tolist() == [60, 4]
    assert batches[3].durability == "synced"
