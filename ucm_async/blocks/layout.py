"""Where the bytes of a block lie beside its header, and which of them are moved together. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..types import I64
from .header import HEADER_ALIGN, header_bytes

__all__ = ["BlockLayout", "merge_ranges"]


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """How a block lies in its file: the header, then the shards one after another, padded to whole pages.

    Attributes
    ----------
    block_size, shard_size, shards
        Of the store.
    header_bytes
        Where the data begins.
    file_bytes
        Length of the file, a multiple of 4096.
    """

    block_size: int
    shard_size: int
    shards: int
    header_bytes: int
    file_bytes: int

    @classmethod
    def of(cls, block_size: int, shard_size: int) -> BlockLayout:
        """Lay out blocks of `block_size` bytes in shards of `shard_size`."""
        shards = block_size // shard_size
        head = header_bytes(shards)
        return cls(block_size, shard_size, shards, head, head + -(-block_size // HEADER_ALIGN) * HEADER_ALIGN)

    def row_ranges(self, shards: I64) -> tuple[I64, I64]:
        """Return where rows begin and end in their files; -1 is a whole block."""
        whole = shards < 0
        start = self.header_bytes + np.where(whole, 0, shards) * self.shard_size
        return start, start + np.where(whole, self.block_size, self.shard_size)


def merge_ranges(group: I64, start: I64, stop: I64, *, gap: int) -> tuple[I64, I64, I64]:
    """Merge the ranges of each group that touch, overlap, or lie at most `gap` bytes apart.

    Parameters
    ----------
    group, start, stop
        int64, shape (n,): ranges [start, stop) of the file of each group, in any order.
    gap
        Bytes that are cheaper to read along than to skip.

    Returns
    -------
    group, start, stop
        int64, shape (m,), m <= n: sorted by group and start, disjoint and more than `gap` apart within a group.
    """
    if not len(group):
        return group, start, stop
    order = np.lexsort((start, group))
    group, start, stop = group[order], start[order], stop[order]
    span = int(stop.max(initial=0)) + gap + 1  # shifts each group to numbers of its own
    reach = np.maximum.accumulate(stop + group * span)
    new = np.ones(len(group), dtype=np.bool_)
    new[1:] = start[1:] + group[1:] * span > reach[:-1] + gap
    new[1:] |= group[1:] != group[:-1]
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(group)) - 1
    return group[first], start[first], reach[last] - group[last] * span
