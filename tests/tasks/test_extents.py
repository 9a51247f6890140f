"""How a row is cut at the ends of its pieces and of its shards, against a slow reference."""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.tasks import cut_row


@st.composite
def rows(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    """Draw pieces that make a whole number of shards."""
    shard_size = draw(st.integers(1, 30))
    total = shard_size * draw(st.integers(1, 6))
    ends = sorted(draw(st.sets(st.integers(1, total - 1), max_size=8))) if total > 1 else []
    edges = [0, *ends, total]
    return tuple(b - a for a, b in pairwise(edges)), shard_size


def reference(pieces: tuple[int, ...], shard_size: int) -> list[tuple[int, int, int, int, int]]:
    """Walk over the bytes: (offset, length, piece, piece_offset, shard) of each run."""
    octets = [(piece, at) for piece, size in enumerate(pieces) for at in range(size)]
    keyed = [(piece, offset // shard_size, offset, at) for offset, (piece, at) in enumerate(octets)]
    out = []
    for (piece, shard), run in groupby(keyed, key=lambda one: one[:2]):
        members = list(run)
        out.append((members[0][2], len(members), piece, members[0][3], shard))
    return out


@given(rows())
def test_against_the_reference(row: tuple[tuple[int, ...], int]) -> None:
    pieces, shard_size = row
    cuts = cut_row(pieces, shard_size)
    table = zip(cuts.offset, cuts.length, cuts.piece, cuts.piece_offset, cuts.shard, strict=True)
    assert [tuple(int(one) for one in run) for run in table] == reference(pieces, shard_size)
    assert len(cuts) == len(cuts.offset)


@given(rows())
def test_checksums_chain_inside_a_shard(row: tuple[tuple[int, ...], int]) -> None:
    pieces, shard_size = row
    cuts = cut_row(pieces, shard_size)
    shards = cuts.shard.tolist()
    assert cuts.continues.tolist() == [i > 0 and shards[i] == shards[i - 1] for i in range(len(shards))]
    assert cuts.last.tolist() == [max(i for i, s in enumerate(shards) if s == shard) for shard in sorted(set(shards))]
    assert len(cuts.last) == sum(pieces) // shard_size


@given(rows())
def test_the_arrays_are_int64(row: tuple[tuple[int, ...], int]) -> None:
    cuts = cut_row(*row)
    for name in ("offset", "length", "piece", "piece_offset", "shard", "last"):
        assert getattr(cuts, name).dtype == np.int64
    assert cuts.continues.dtype == np.bool_


@pytest.mark.parametrize(
    ("pieces", "shard_size", "message"),
    [
        ((), 4, "must be positive"),
        ((4, 0), 4, "must be positive"),
        ((4, -4), 4, "must be positive"),
        ((4,), 0, "must be positive"),
        ((3, 2), 4, "sum to 5 bytes, must be a multiple of shard_size 4"),
    ],
)
def test_what_cannot_be_cut(pieces: tuple[int, ...], shard_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut_row(pieces, shard_size)
