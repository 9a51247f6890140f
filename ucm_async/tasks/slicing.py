"""How a task is cut into slices. Pure arithmetic."""

from __future__ import annotations

import numpy as np

from ..types import U8
from .groups import group_blocks

__all__ = ["cut_slices"]

SLICE_BYTES_MIN = 1 << 20
"""A slice is not made smaller than this to occupy another queue: what a slice costs would outweigh what it overlaps."""

SLICE_ROWS_MIN = 16
"""Nor with fewer rows than this, where rows are small."""


def cut_slices(
    ids: U8, row_bytes: int, *, slice_bytes: int, queues: int, whole_blocks: bool = False
) -> list[tuple[int, int]]:
    """Cut rows into consecutive runs, one a slice.

    Enough slices to occupy every queue, none above `slice_bytes`; the shards of one block that follow each other stay
    together as far as `slice_bytes` allows, so that they can become one I/O and one commit.

    Parameters
    ----------
    ids
        uint8, shape (n, 16), n > 0.
    row_bytes
        Bytes of each row.
    slice_bytes
        Upper bound of a slice; a single row may exceed it.
    queues
        How many queues there are to fill.
    whole_blocks
        The shards of a block belong together although they do not follow each other, as in a task that goes layer by
        layer: such a task is cut only where `slice_bytes` wants it.

    Returns
    -------
    list of (start, stop)
        Covering 0 … n in order.
    """
    n = len(ids)
    if n == 1:
        return [(0, 1)]
    most = max(1, slice_bytes // row_bytes)
    least = min(most, SLICE_ROWS_MIN, max(1, SLICE_BYTES_MIN // row_bytes))
    step = min(most, max(least, -(-n // queues)))
    if n <= step:
        return [(0, n)]
    words = ids.view(np.uint64)
    new_block = np.flatnonzero((words[1:] != words[:-1]).any(axis=1)) + 1
    if whole_blocks and len(group_blocks(ids)[0]) <= len(new_block):  # some block comes back
        return [(start, min(start + most, n)) for start in range(0, n, most)]
    if len(new_block) == n - 1:
        return [(start, min(start + step, n)) for start in range(0, n, step)]
    return _cut_at_blocks(np.append(new_block, n), n, step, most)


def _cut_at_blocks(
    block_ends: np.ndarray[tuple[int], np.dtype[np.int64]], n: int, step: int, most: int
) -> list[tuple[int, int]]:
    """Cut about every `step` rows, at the end of a block where one is near enough."""
    out: list[tuple[int, int]] = []
    start = 0
    while start < n:
        end = int(block_ends[np.searchsorted(block_ends, min(start + step, n))])
        if end - start > most:
            before = int(np.searchsorted(block_ends, start + most, side="right")) - 1
            end = int(block_ends[before]) if before >= 0 and block_ends[before] > start else start + most
        out.append((start, end))
        start = end
    return out
