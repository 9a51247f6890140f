"""Slices cover a task in order, within their bounds, and end where blocks end if they can."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from ucm_async.tasks import cut_slices
from ucm_async.types import U8, block_ids

MIB = 1 << 20

runs = st.lists(st.integers(1, 40), min_size=1, max_size=60)
"""How many consecutive rows each block has."""
row_sizes = st.sampled_from([1, 100, 4096, 64 << 10, MIB, 16 * MIB])
slice_sizes = st.sampled_from([4096, MIB, 8 * MIB])
queue_counts = st.integers(1, 16)


def ids_of(lengths: list[int]) -> U8:
    """Return ids with `lengths[i]` rows of block i; a block may come again later."""
    return np.repeat(block_ids([i % 7 for i in range(len(lengths))]), lengths, axis=0)


@given(runs, row_sizes, slice_sizes, queue_counts)
@example([1], 1, 4096, 1)
@example([40] * 60, 64 << 10, MIB, 4)
def test_slices_cover_every_row_once_and_in_order(
    lengths: list[int], row_bytes: int, slice_bytes: int, queues: int
) -> None:
    cuts = cut_slices(ids_of(lengths), row_bytes, slice_bytes=slice_bytes, queues=queues)
    assert [row for start, stop in cuts for row in range(start, stop)] == list(range(sum(lengths)))
    assert all(start < stop for start, stop in cuts)


@given(runs, row_sizes, slice_sizes, queue_counts)
def test_no_slice_is_larger_than_allowed(lengths: list[int], row_bytes: int, slice_bytes: int, queues: int) -> None:
    for start, stop in cut_slices(ids_of(lengths), row_bytes, slice_bytes=slice_bytes, queues=queues):
        assert stop - start == 1 or (stop - start) * row_bytes <= slice_bytes


@given(runs, row_sizes, slice_sizes, queue_counts)
def test_a_block_is_cut_only_if_it_is_too_large(
    lengths: list[int], row_bytes: int, slice_bytes: int, queues: int
) -> None:
    ids = ids_of(lengths)
    cuts = cut_slices(ids, row_bytes, slice_bytes=slice_bytes, queues=queues)
    words = ids.view(np.uint64)
    ends = {*(np.flatnonzero((words[1:] != words[:-1]).any(axis=1)) + 1).tolist(), len(ids)}
    for start, stop in cuts:
        if stop not in ends:  # then the slice holds nothing but this block, and no more of it would have gone in
            assert not any(start < end < stop for end in ends)
            assert (stop - start + 1) * row_bytes > slice_bytes


@given(st.integers(1, 2000), queue_counts)
def test_many_rows_occupy_every_queue(count: int, queues: int) -> None:
    cuts = cut_slices(block_ids(range(count)), MIB, slice_bytes=8 * MIB, queues=queues)
    assert len(cuts) >= min(queues, count) // 2 + 1 or len(cuts) == count
    sizes = [stop - start for start, stop in cuts]
    assert max(sizes) - min(sizes[:-1] or sizes) == 0  # even, but for the last


@given(st.integers(1, 200), queue_counts)
def test_small_rows_stay_together(count: int, queues: int) -> None:
    """What a slice costs would outweigh what it overlaps."""
    cuts = cut_slices(block_ids(range(count)), 4096, slice_bytes=8 * MIB, queues=queues)
    assert all(stop - start >= 16 for start, stop in cuts[:-1])


def test_a_block_that_comes_back_stays_in_one_slice() -> None:
    """Layer by layer: cut only where the slice would be too large, if the stage works on whole blocks."""
    ids = np.tile(block_ids(range(32)), (8, 1))
    assert len(cut_slices(ids, MIB, slice_bytes=1024 * MIB, queues=4)) == 4
    assert cut_slices(ids, MIB, slice_bytes=1024 * MIB, queues=4, whole_blocks=True) == [(0, 256)]
    assert cut_slices(ids, MIB, slice_bytes=100 * MIB, queues=4, whole_blocks=True) == [
        (0, 100),
        (100, 200),
        (200, 256),
    ]
    together = np.repeat(block_ids(range(32)), 8, axis=0)
    for rows in (together, block_ids(range(32))):
        usual = cut_slices(rows, MIB, slice_bytes=1024 * MIB, queues=4)
        assert cut_slices(rows, MIB, slice_bytes=1024 * MIB, queues=4, whole_blocks=True) == usual
