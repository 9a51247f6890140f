"""Where the bytes of a block lie, and what is merged."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.blocks.layout import BlockLayout, merge_ranges


@st.composite
def ranges(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], int]:
    """Draw ranges of some groups, and a gap."""
    one = st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 20))
    drawn = draw(st.lists(one, max_size=20))
    return [(group, start, start + length) for group, start, length in drawn], draw(st.integers(0, 10))


def merged_slowly(given_ranges: list[tuple[int, int, int]], gap: int) -> list[tuple[int, int, int]]:
    out: list[tuple[int, int, int]] = []
    for group, start, stop in sorted(given_ranges):
        if out and out[-1][0] == group and start <= out[-1][2] + gap:
            out[-1] = (group, out[-1][1], max(out[-1][2], stop))
        else:
            out.append((group, start, stop))
    return out


class TestRanges:
    @given(ranges())
    def test_merging_against_the_reference(self, drawn: tuple[list[tuple[int, int, int]], int]) -> None:
        given_ranges, gap = drawn
        columns = np.array(given_ranges, dtype=np.int64).reshape(-1, 3).T
        merged = merge_ranges(*columns, gap=gap)
        assert list(zip(*(one.tolist() for one in merged), strict=True)) == merged_slowly(given_ranges, gap)

    @given(st.integers(1, 300), st.integers(1, 40_000))
    def test_a_file_is_header_shards_and_padding(self, shards: int, shard_size: int) -> None:
        layout = BlockLayout.of(shards * shard_size, shard_size)
        assert layout.shards == shards
        assert layout.header_bytes % 4096 == 0
        assert layout.file_bytes % 4096 == 0
        assert 0 <= layout.file_bytes - layout.header_bytes - layout.block_size < 4096
        start, stop = layout.row_ranges(np.arange(shards))
        assert start[0] == layout.header_bytes
        assert stop[-1] == layout.header_bytes + layout.block_size
        assert (stop - start == shard_size).all()
        assert (start[1:] == stop[:-1]).all()
        whole_start, whole_stop = layout.row_ranges(np.array([-1]))
        assert (whole_start[0], whole_stop[0]) == (start[0], stop[-1])
