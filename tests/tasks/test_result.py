"""Results and failure sets."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.errors import CorruptError, StoreError
from ucm_async.tasks import FailureSet, TaskResult
from ucm_async.types import ERROR_OF_STATUS, Status, block_ids

status_lists = st.lists(st.sampled_from(list(Status)), max_size=150)


def result_of(statuses: list[Status], errors: dict[int, StoreError] | None = None) -> TaskResult:
    status = np.array(statuses, dtype=np.uint8)
    ids, shards = block_ids(range(len(statuses))), np.arange(len(statuses))
    return TaskResult(status, FailureSet(status, errors or {}, ids, shards), True)


@given(status_lists)
def test_a_failure_for_each_row_that_is_not_ok(statuses: list[Status]) -> None:
    result = result_of(statuses)
    failed = [row for row, status in enumerate(statuses) if status != Status.OK]
    assert isinstance(result.failures, Mapping)
    assert list(result.failures) == failed
    assert len(result.failures) == len(failed)
    assert bool(result.failures) == bool(failed)
    assert [row in result.failures for row in range(-1, len(statuses) + 1)] == [
        row in failed for row in range(-1, len(statuses) + 1)
    ]
    for row, error in result.failures.items():
        assert type(error) is ERROR_OF_STATUS[statuses[row]]
        assert (error.row, error.shard, error.block_id) == (row, row, block_ids([row])[0].tobytes())
        assert str(error).startswith(f"row {row}: block {error.block_id.hex()} shard {row}: ")


@given(status_lists)
def test_ok_and_prefix(statuses: list[Status]) -> None:
    result = result_of(statuses)
    assert result.ok.tolist() == [status == Status.OK for status in statuses]
    assert result.loaded_prefix == next((i for i, s in enumerate(statuses) if s != Status.OK), len(statuses))


@given(status_lists)
def test_raise_for_failures(statuses: list[Status]) -> None:
    result = result_of(statuses)
    failed = len(result.failures)
    if failed == 0:
        result.raise_for_failures()
    elif failed == 1:
        with pytest.raises(StoreError):
            result.raise_for_failures()
    else:
        with pytest.raises(ExceptionGroup, match=f"{failed} of {len(statuses)} rows failed") as caught:
            result.raise_for_failures()
        assert len(caught.value.exceptions) == min(failed, 100)


def test_rows_may_be_numpy_ints() -> None:
    result = result_of([Status.OK, Status.MISS])
    for row in np.flatnonzero(~result.ok):
        assert row in result.failures
        assert result.failures[row].row == 1
    assert np.int64(0) not in result.failures


@pytest.mark.parametrize("row", [-1, 0, 2, "1", None])
def test_no_failure_there(row: object) -> None:
    failures = result_of([Status.OK, Status.MISS]).failures
    assert row not in failures
    assert failures.get(row) is None  # type: ignore[call-overload]


def test_the_given_reason_is_told() -> None:
    result = result_of([Status.CORRUPT, Status.CORRUPT], {1: CorruptError("the checksum of shard 3 is wrong")})
    assert "corrupt" in str(result.failures[0])
    assert str(result.failures[1]).endswith("the checksum of shard 3 is wrong")
    assert repr(result.failures) == "{0: corrupt, 1: the checksum of shard 3 is wrong}"


@pytest.mark.parametrize("kind", ERROR_OF_STATUS.values())
def test_errors_can_be_pickled(kind: type[StoreError]) -> None:
    """They travel between the processes of a frontend."""
    error = kind("why").at(3, b"x" * 16, 2)
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is kind
    assert (str(other), other.row, other.block_id, other.shard) == (str(error), 3, b"x" * 16, 2)
