"""The small parts of the Cache that need no memory to be shared."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.engines.processes import dead_among, own_identity
from ucm_async.stages.cache.admission import Admission, Share
from ucm_async.stages.cache.fills import PART_BYTES, cut_parts
from ucm_async.stages.cache.moves import MOVE_BYTES_MAX, cut_moves
from ucm_async.stages.cache.partial import NO_SLOT, PartialBlocks


class TestShare:
    def test_it_grants_what_is_left(self) -> None:
        share = Share(5)
        assert [share.take(3), share.take(3), share.take(1)] == [3, 2, 0]
        share.give_back(4)
        assert share.take(9) == 4
        assert share.refused == 7

    def test_the_smallest_cache_still_serves_everybody(self) -> None:
        admission = Admission(4)
        assert min(one["slots"] for one in admission.statistics().values()) == 1


@given(st.lists(st.integers(1, 3 * MOVE_BYTES_MAX), min_size=1, max_size=5))
def test_moves_cover_a_row_once_in_runs_that_end_with_its_pieces(pieces: list[int]) -> None:
    cuts = cut_moves(tuple(pieces))
    assert cuts.length.max() <= MOVE_BYTES_MAX
    assert (cuts.offset == np.cumsum(cuts.length) - cuts.length).all()
    assert int(cuts.length.sum()) == sum(pieces)
    starts = np.cumsum(pieces) - pieces
    assert (starts[cuts.piece] + cuts.piece_offset == cuts.offset).all()
    assert (cuts.piece_offset + cuts.length <= np.array(pieces)[cuts.piece]).all()


@given(st.integers(0, 300), st.integers(1, 2 * PART_BYTES))
def test_parts_are_everything_in_order(count: int, block_size: int) -> None:
    parts = cut_parts(np.arange(count), block_size)
    assert [one for part in parts for one in part.tolist()] == list(range(count))
    assert all(len(part) * block_size <= PART_BYTES or len(part) == 1 for part in parts)


class TestPartialBlocks:
    async def test_whole_in_any_order(self) -> None:
        blocks = PartialBlocks(3, 10)
        block = blocks.begin(b"a", 7, 1)
        for shard in (4, 1, 2):
            assert not blocks.is_whole(block)
            assert blocks.claim(block, shard)
            assert not blocks.claim(block, shard), "it is on its way already"
            blocks.end(block, shard, done=shard, stored=0, now=1.0)
        assert blocks.is_whole(block)
        assert block.stored == 0

    async def test_a_failed_shard_is_not_in(self) -> None:
        blocks = PartialBlocks(1, 10)
        block = blocks.begin(b"a")
        assert blocks.claim(block, 1)
        change = blocks.change(b"a")
        assert change is not None and not change.done()
        blocks.end(block, 1, done=0, stored=0, now=1.0)
        assert change.done()
        assert not blocks.is_whole(block)
        assert blocks.change(b"a") is None

    async def test_what_is_forgotten_begins_anew(self) -> None:
        blocks = PartialBlocks(2, 10)
        busy, idle = blocks.begin(b"a", 1), blocks.begin(b"b", 2)
        assert blocks.claim(busy, 1)
        assert not blocks.forget(busy)
        assert blocks.forget(idle)
        assert busy.forgotten and b"a" not in blocks and len(blocks) == 0

    async def test_the_oldest_idle_ones_go_first(self) -> None:
        blocks = PartialBlocks(2, 1)
        for number, name in enumerate((b"a", b"b", b"c")):
            block = blocks.begin(name, NO_SLOT if name == b"a" else number)
            assert blocks.claim(block, 1)
            blocks.end(block, 1, done=1, stored=1, now=float(number))
        assert [block.block_id for block in blocks.surplus()] == [b"a", b"b"]
        found = blocks.idle_since(2.0, in_slots=True)
        assert found is not None and found.block_id == b"b"
        assert blocks.idle_since(1.0, in_slots=True) is None


def test_the_living_and_the_dead() -> None:
    pid, started = own_identity()
    assert started > 0
    assert dead_among([(0, pid, started), (1, pid, started + 1), (2, 2**22 + 1, 5)]) == [1, 2]
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
        assert dead_among([(3, child.pid, 1)]) == [3]


def test_shares_are_not_given_back_twice() -> None:
    share = Share(2)
    with pytest.raises(AssertionError):
        share.give_back(1)
