"""Rows of one block that follow each other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.tasks import group_blocks, group_rows, ids_among, rank_in_group
from ucm_async.types import block_ids

blocks_of_rows = st.lists(st.integers(0, 4), max_size=30)


@given(blocks_of_rows)
def test_grouping_consecutive_rows(blocks: list[int]) -> None:
    first, group = group_rows(block_ids(blocks))
    assert first.tolist() == [i for i in range(len(blocks)) if i == 0 or blocks[i] != blocks[i - 1]]
    assert group.tolist() == [sum(at <= i for at in first.tolist()) - 1 for i in range(len(blocks))]


@given(blocks_of_rows)
def test_grouping_the_rows_of_each_block(blocks: list[int]) -> None:
    first, group = group_blocks(block_ids(blocks))
    names = list(dict.fromkeys(blocks))
    assert first.tolist() == [blocks.index(one) for one in names]
    assert group.tolist() == [names.index(one) for one in blocks]


@given(blocks_of_rows)
def test_ranks_count_the_rows_of_each_group(blocks: list[int]) -> None:
    names, group = np.unique(np.array(blocks, dtype=np.int64), return_inverse=True)  # every group has a row
    group.sort()
    rank, most = rank_in_group(group, len(names))
    assert rank.tolist() == [i - group.tolist().index(one) for i, one in enumerate(group.tolist())]
    assert most == max((group.tolist().count(one) for one in group.tolist()), default=1)


@given(blocks_of_rows, st.lists(blocks_of_rows, max_size=3))
def test_ids_among_others(blocks: list[int], others: list[list[int]]) -> None:
    found = ids_among(block_ids(blocks), [block_ids(some) for some in others])
    assert found.tolist() == [any(block in some for some in others) for block in blocks]
