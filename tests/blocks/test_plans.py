"""Which requests move rows: every byte once, headers last."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.blocks.layout import BlockLayout
from ucm_async.blocks.plans import plan_direct_reads, plan_direct_writes, plan_slot_reads, plan_slot_writes
from ucm_async.engines import requests as rq
from ucm_async.types import I64, U64, Bools

BASE = 1 << 40
PIECES = 1 << 50


@st.composite
def batches(draw: st.DrawFn, page: int = 1) -> tuple[BlockLayout, list[list[int]], list[bool]]:
    """Draw a layout, the shards of each block that are moved, and which blocks are whole then."""
    shards = draw(st.integers(1, 6))
    size = draw(st.integers(1, 20_000 // page)) * page
    some = st.lists(st.integers(0, shards - 1), min_size=1, unique=True).map(sorted)
    wanted = draw(st.lists(some, min_size=1, max_size=5))
    return BlockLayout.of(shards * size, size), wanted, [draw(st.booleans()) for _ in wanted]


def arrays(layout: BlockLayout, wanted: list[list[int]]) -> tuple[I64, U64, I64, I64]:
    group = np.repeat(np.arange(len(wanted)), [len(one) for one in wanted])
    start, stop = layout.row_ranges(np.concatenate([np.array(one, dtype=np.int64) for one in wanted]))
    bases = (BASE + np.arange(len(wanted)) * layout.file_bytes).astype(np.uint64)
    return group, bases, start, stop


def spans(requests: rq.Requests, wanted: I64) -> list[tuple[int, int]]:
    return [(int(one), int(one) + int(n)) for one, n in zip(requests["offset"], wanted, strict=True)]


@given(batches())
def test_reads_into_slots(drawn: tuple[BlockLayout, list[list[int]], list[bool]]) -> None:
    """Whole pages, the header and every row among them, each to the same offset of its slot."""
    layout, wanted, _ = drawn
    group, bases, start, stop = arrays(layout, wanted)
    reads, owner, lengths = plan_slot_reads(layout, group, bases, start, stop)
    assert (np.diff(owner) >= 0).all() and set(owner.tolist()) == set(range(len(wanted)))
    assert (reads["address"] == bases[owner] + reads["offset"]).all()
    for block in range(len(wanted)):
        mine = owner == block
        read = spans(reads[mine], lengths[mine])
        assert all(a % 4096 == 0 and b % 4096 == 0 and b <= layout.file_bytes for a, b in read)
        rows = zip(start[group == block].tolist(), stop[group == block].tolist(), strict=True)
        for a, b in [(0, layout.header_bytes), *rows]:
            assert any(low <= a and b <= high for low, high in read)


@given(batches())
def test_writes_from_slots(drawn: tuple[BlockLayout, list[list[int]], list[bool]]) -> None:
    """Each byte of the rows once; the header of a whole block last, or in one request with all of it."""
    layout, wanted, whole = drawn
    group, bases, start, stop = arrays(layout, wanted)
    writes, owner, lengths = plan_slot_writes(layout, group, bases, start, stop, np.array(whole))
    assert (np.diff(owner) >= 0).all()
    assert (writes["address"] == bases[owner] + writes["offset"]).all()
    for block, shards in enumerate(wanted):
        check_writes(layout, shards, whole[block], spans(writes[owner == block], lengths[owner == block]))


def check_writes(layout: BlockLayout, shards: list[int], whole: bool, written: list[tuple[int, int]]) -> None:
    covered = np.zeros(layout.file_bytes, dtype=np.int64)
    for low, high in written:
        covered[low:high] += 1
    end = layout.header_bytes + layout.block_size
    expected = np.zeros_like(covered)
    expected[: layout.header_bytes] = whole
    for shard in shards:
        at = layout.header_bytes + shard * layout.shard_size
        expected[at : at + layout.shard_size] = 1
    assert (covered[:end] == expected[:end]).all()
    assert [low for low, _ in written].count(0) == whole
    if whole:
        assert written[-1][0] == 0, "the header is not last"
        entire = len(shards) == layout.shards
        assert not entire or written == [(0, layout.file_bytes)]


@given(batches(page=4096))
def test_moves_of_registered_memory(drawn: tuple[BlockLayout, list[list[int]], list[bool]]) -> None:
    """Each row in one request, from its own pieces; the header with the first shard, or alone; last if written."""
    layout, wanted, whole = drawn
    group, heads, start, stop = arrays(layout, wanted)
    sizes = np.array([1024, layout.shard_size - 1024])
    pieces = (PIECES + np.arange(2 * len(group)).reshape(-1, 2) * layout.shard_size).astype(np.uint64)
    reads, owner, lengths, keep = plan_direct_reads(layout, pieces, sizes, group, heads, start, stop)
    check_direct(layout, (reads, owner, lengths), group, heads, pieces, np.ones(len(wanted), dtype=np.bool_), keep)
    writes, owner, lengths, keep = plan_direct_writes(layout, pieces, sizes, group, heads, start, stop, np.array(whole))
    check_direct(layout, (writes, owner, lengths), group, heads, pieces, np.array(whole), keep)
    for block, shards in enumerate(wanted):
        mine = owner == block
        written = spans(writes[mine], lengths[mine])
        if len(shards) < layout.shards or layout.shards == 1:
            check_writes(layout, shards, whole[block], written)
        assert not whole[block] or written[-1][0] == 0


def check_direct(
    layout: BlockLayout,
    plan: tuple[rq.Requests, I64, I64],
    group: I64,
    heads: U64,
    pieces: U64,
    whole: Bools,
    keep: object,
) -> None:
    requests, owner, lengths = plan
    vectors = np.asarray(keep)
    first = vectors.ctypes.data
    seen = []
    for one, block, length in zip(requests, owner.tolist(), lengths.tolist(), strict=True):
        if one["opcode"] in (rq.OP_READ, rq.OP_WRITE):
            assert (one["address"], one["length"], one["offset"]) == (heads[block], layout.header_bytes, 0)
            continue
        row, column = divmod((int(one["address"]) - first) // rq.IOVEC.itemsize, 3)
        mine = vectors[row, column : column + int(one["length"])]
        assert int(mine["length"].sum()) == length
        assert mine["address"].tolist() == [*([int(heads[block])] if column == 0 else []), *pieces[row].tolist()]
        assert (column == 0) == (one["offset"] == 0)
        assert group[row] == block
        seen.append(row)
    assert sorted(seen) == list(range(len(group)))
    assert sorted(owner[requests["offset"] == 0].tolist()) == np.flatnonzero(whole).tolist()
