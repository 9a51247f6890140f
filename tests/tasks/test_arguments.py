"""Ids and shard indexes: what is taken, and what is said about the rest."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.tasks import WHOLE_BLOCK, check_rows, refuse_duplicates
from ucm_async.types import as_block_ids, block_ids

ID = bytes(range(16))

few_rows = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=30)


class TestIds:
    @given(st.lists(st.binary(min_size=16, max_size=16), max_size=20))
    def test_lists_and_arrays_are_the_same(self, ids: list[bytes]) -> None:
        checked = as_block_ids(ids)
        assert checked.shape == (len(ids), 16)
        assert checked.dtype == np.uint8
        assert [one.tobytes() for one in checked] == ids
        assert as_block_ids(checked) is checked
        assert (as_block_ids(tuple(map(bytearray, ids))) == checked).all()

    @pytest.mark.parametrize(
        ("ids", "error", "message"),
        [
            ([ID, ID[:15]], ValueError, r"ids\[1\]: 15 bytes, must be 16"),
            ([ID[:15], ID + b"x"], ValueError, r"ids\[0\]: 15 bytes, must be 16"),
            ([b""], ValueError, r"ids\[0\]: 0 bytes, must be 16"),
            ([ID, "a" * 16], TypeError, r"ids\[1\]: str, must be bytes of length 16"),
            ([1, 2], TypeError, r"ids\[0\]: int, must be bytes"),
            ([ID, None], TypeError, r"ids\[1\]: NoneType, must be bytes"),
            (ID, TypeError, r"ids: a sequence of ids is needed, not one bytes; pass \[ids\]"),
            (bytearray(ID), TypeError, "not one bytearray"),
            ("a" * 16, TypeError, "not one str"),
            (None, TypeError, "ids: NoneType"),
            (7, TypeError, "ids: int"),
            (iter([ID]), TypeError, "ids: list_iterator"),
            (np.zeros((2, 16), np.int64), TypeError, "an array of ids must be uint8, not int64"),
            (np.zeros(16, np.uint8), ValueError, r"shape \(16,\), must be \(n, 16\)"),
            (np.zeros((2, 15), np.uint8), ValueError, r"shape \(2, 15\), must be \(n, 16\)"),
            (np.zeros((2, 16, 1), np.uint8), ValueError, r"shape \(2, 16, 1\)"),
            (np.zeros((2, 32), np.uint8)[:, ::2], ValueError, "not C-contiguous"),
            (np.zeros((4, 16), np.uint8)[::2], ValueError, "not C-contiguous"),
            (np.array([ID]), TypeError, "must be uint8"),
        ],
    )
    def test_wrong_ids(self, ids: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            check_rows(ids, None, 4)

    def test_the_ids_of_a_task_are_a_copy(self) -> None:
        ids = block_ids(range(3))
        array = ids.copy()
        checked, _ = check_rows(array, None, 1)
        array[:] = 0
        assert (checked == ids).all()


class TestShards:
    @pytest.mark.parametrize("kind", [list, tuple, np.array, lambda s: np.array(s, np.uint8), lambda s: range(4)])
    def test_any_sequence_of_ints(self, kind: Any) -> None:
        _, shards = check_rows(block_ids(range(4)), kind([0, 1, 2, 3]), 4)
        assert shards.dtype == np.int64
        assert shards.tolist() == [0, 1, 2, 3]

    def test_none_means_whole_blocks(self) -> None:
        _, shards = check_rows(block_ids(range(3)), None, 4)
        assert shards.tolist() == [WHOLE_BLOCK] * 3

    @pytest.mark.parametrize(
        ("shards", "error", "message"),
        [
            ([0, 4], ValueError, r"shard_index\[1\]: 4, must be 0 … 3"),
            ([-1, 0], ValueError, r"shard_index\[0\]: -1, must be 0 … 3"),
            (np.array([2**63, 0], np.uint64), ValueError, r"shard_index\[0\]"),
            ([2**70, 0], TypeError, "shard_index: object, must be ints"),
            ([0], ValueError, "shard_index: 1 entries, must be 2, one for each id"),
            ([0, 1, 2], ValueError, "3 entries, must be 2"),
            ([], ValueError, "0 entries, must be 2"),
            ([0.0, 1.0], TypeError, "shard_index: float64, must be ints"),
            ([True, False], TypeError, "shard_index: bool, must be ints"),
            (["0", "1"], TypeError, "must be ints"),
            ([0, None], TypeError, "shard_index: object, must be ints"),
            (0, ValueError, r"shard_index: shape \(\), must be \(2,\)"),
            ("01", ValueError, r"shard_index: shape \(\)"),
            ([[0, 1]], ValueError, r"shard_index: shape \(1, 2\), must be \(2,\)"),
            ([[0], [1, 2]], ValueError, "shard_index: "),
        ],
    )
    def test_wrong_shards(self, shards: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            check_rows([ID, ID], shards, 4)


class TestDuplicates:
    @given(few_rows)
    def test_exactly_the_dumps_that_name_a_shard_twice_are_refused(self, rows: list[tuple[int, int]]) -> None:
        ids, shards = check_rows(block_ids([block for block, _ in rows]), [shard for _, shard in rows], 4)
        twice = [row for row, count in Counter(rows).items() if count > 1]
        if not twice:
            refuse_duplicates(ids, shards)
            return
        with pytest.raises(ValueError, match="is in the dump already") as caught:
            refuse_duplicates(ids, shards)
        second, first = int(str(caught.value).split("[")[1].split("]")[0]), int(str(caught.value).rsplit(" ", 1)[1])
        assert first < second
        assert rows[first] == rows[second]
        assert f"shard {rows[first][1]} of block {ids[first].tobytes().hex()}" in str(caught.value)

    def test_whole_blocks(self) -> None:
        ids, shards = check_rows(block_ids([1, 2, 1]), None, 4)
        with pytest.raises(ValueError, match=r"ids\[2\]: the whole block of block [0-9a-f]{32} .* as row 0"):
            refuse_duplicates(ids, shards)
