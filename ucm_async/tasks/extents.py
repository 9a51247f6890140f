"""Where the bytes of a row lie: in the caller's pieces, and in the shards that checksums cover. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from ..types import I64, Bools

__all__ = ["Cuts", "cut_row"]


@dataclass(frozen=True, slots=True)
class Cuts:
    """The runs of one row that lie in one piece and in one shard at a time, in order. All arrays int64, shape (m,).

    Attributes
    ----------
    offset
        Where the run begins in the row, bytes.
    length
        Its bytes.
    piece, piece_offset
        The caller's piece it lies in, and where in it.
    shard
        The shard it lies in, counted from the row's first.
    continues
        Bool: the run goes on in the shard of the run before it, so its checksum chains.
    last
        Position of each shard's last run; shape (shards in the row,).
    runs
        The same as one array, shape (m, 5): offset, length, piece, piece_offset, continues.
    """

    offset: I64
    length: I64
    piece: I64
    piece_offset: I64
    shard: I64
    continues: Bools
    last: I64
    runs: I64 = field(init=False)

    def __post_init__(self) -> None:
        """Put them side by side."""
        columns = (self.offset, self.length, self.piece, self.piece_offset, self.continues.astype(np.int64))
        object.__setattr__(self, "runs", np.stack(columns, axis=1))

    def __len__(self) -> int:
        return len(self.offset)


@lru_cache(maxsize=64)
def cut_row(piece_sizes: tuple[int, ...], shard_size: int) -> Cuts:
    """Cut a row at the ends of its pieces and of its shards.

    Parameters
    ----------
    piece_sizes
        Bytes of each of the row's pieces, all positive.
    shard_size
        Bytes of a shard; the row is a whole number of shards long.

    Raises
    ------
    ValueError
        A size is not positive, or the pieces do not make whole shards.
    """
    if shard_size <= 0 or not piece_sizes or min(piece_sizes) <= 0:
        raise ValueError(f"piece_sizes {piece_sizes} and shard_size {shard_size} must be positive")
    ends = np.cumsum(np.array(piece_sizes, dtype=np.int64))
    row_bytes = int(ends[-1])
    if row_bytes % shard_size:
        raise ValueError(f"piece_sizes sum to {row_bytes} bytes, must be a multiple of shard_size {shard_size}")
    starts = np.union1d(np.concatenate(([0], ends[:-1])), np.arange(0, row_bytes, shard_size)).astype(np.int64)
    length = np.diff(np.append(starts, row_bytes))
    piece = np.searchsorted(ends, starts, side="right").astype(np.int64)
    piece_start = ends[piece] - np.array(piece_sizes, dtype=np.int64)[piece]
    shard = starts // shard_size
    continues = np.zeros(len(starts), dtype=np.bool_)
    continues[1:] = shard[1:] == shard[:-1]
    last = np.flatnonzero(np.append(~continues[1:], True)).astype(np.int64)
    return Cuts(starts, length, piece, starts - piece_start, shard, continues, last)
