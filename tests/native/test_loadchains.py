"""The chains of one row a block: what is written, byte by byte, and what passes for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.blocks.header import (
    CHECKSUM_FROM,
    ENTRY,
    HEADER,
    header_template,
    pack_headers,
    seal_headers,
    used_bytes,
)
from ucm_async.blocks.layout import BlockLayout
from ucm_async.blocks.plans import READ_GAP_BYTES, plan_direct_reads, plan_slot_reads
from ucm_async.engines import requests as rq
from ucm_async.engines.chains import copy_requests
from ucm_async.tasks import cut_row

from .tools import address_of, native, noise

NAMESPACE = bytes(range(100, 116))


def load_chains(layout: BlockLayout, gap: int = READ_GAP_BYTES) -> Any:
    header = header_template(NAMESPACE, layout.shard_size, layout.shards)
    return native.LoadChains(header, layout.header_bytes, layout.shard_size, layout.block_size, gap)


def test_the_format_is_the_one_of_the_headers() -> None:
    """What the C code has as numbers."""
    assert (HEADER.itemsize, ENTRY.itemsize, CHECKSUM_FROM) == (80, 24, 12)
    assert HEADER.fields is not None and ENTRY.fields is not None
    assert (HEADER.fields["header_checksum"][1], HEADER.fields["block_id"][1]) == (8, 16)
    assert ENTRY.fields["checksum"][1] == 16


@dataclass
class Rows:
    """The arguments of one call."""

    layout: BlockLayout
    direct: bool
    shards: Any
    bases: Any
    pieces: Any
    sizes: tuple[int, ...]
    gates: Any

    def write(self) -> tuple[Any, Any, Any]:
        """Return table, wanted and vectors as they are written."""
        one = load_chains(self.layout)
        n, runs = len(self.shards), self.runs
        reads = one.reads(self.shards, self.direct)
        table = np.full((n, 3 + reads + len(runs)), 0xEE, dtype=np.uint8).astype(rq.REQUEST)
        wanted = np.full((n, reads), 99, dtype=np.int64)
        vectors = np.zeros((n, 1 + len(self.sizes)), dtype=rq.IOVEC) if self.direct else None
        sizes = np.array(self.sizes, dtype=np.int64)
        one.write(table, wanted, vectors, self.shards, self.bases, self.pieces, sizes, self.gates, runs)
        return table, wanted, vectors

    @property
    def runs(self) -> Any:
        return cut_row(self.sizes, self.layout.shard_size).runs

    def planned(self, vectors: Any) -> tuple[Any, Any]:
        """Return the same of the plan for any number of rows a block, whose vectors are elsewhere."""
        n, each = len(self.shards), np.arange(len(self.shards))
        start, stop = self.layout.row_ranges(self.shards)
        sizes = np.array(self.sizes, dtype=np.int64)
        if self.direct:
            reads, owner, wanted, own = plan_direct_reads(
                self.layout, self.pieces, sizes, each, self.bases, start, stop
            )
            vectored = reads["opcode"] == rq.OP_READV
            shift = vectors.ctypes.data - own.ctypes.data  # type: ignore[attr-defined]
            reads["address"][vectored] = reads["address"][vectored].astype(np.int64) + shift
            assert vectors.tobytes() == own.tobytes()  # type: ignore[attr-defined]
        else:
            reads, owner, wanted = plan_slot_reads(self.layout, each, self.bases, start, stop)
        reads["gate"] = self.gates[owner]
        step = np.arange(len(owner)) - np.searchsorted(owner, owner)
        width = int(step.max()) + 1
        cuts = cut_row(self.sizes, self.layout.shard_size)
        table = np.zeros((n, 3 + width + len(cuts)), dtype=rq.REQUEST)
        table[owner, 1 + step] = reads
        head = table[:, 1 + width]
        head["opcode"] = rq.OP_CHECKSUM | rq.FLAG_IF_WELL
        head["address"], head["length"] = self.bases + np.uint64(12), used_bytes(self.layout.shards) - 12
        table[:, 2 + width : -1] = copy_requests(
            rq.OP_CHECKSUM if self.direct else rq.OP_COPY,
            cuts,
            slots=self.bases + start.astype(np.uint64),
            pieces=self.pieces,
            gates=self.gates,
            to_slots=False,
            flags=rq.FLAG_IF_WELL,
        )
        brings = np.zeros((n, width), dtype=np.int64)
        brings[owner, step] = wanted
        return table, brings


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    shard_size = draw(st.sampled_from([512, 4096, 12_288, 65_536]))
    layout = BlockLayout.of(shard_size * draw(st.integers(1, 9)), shard_size)
    n = draw(st.integers(1, 6))
    whole = draw(st.booleans())
    shards = np.array([-1 if whole else draw(st.integers(0, layout.shards - 1)) for _ in range(n)], dtype=np.int64)
    row = layout.block_size if whole else shard_size
    cut = draw(st.sampled_from([row, row // 2, row // 4]))
    sizes = (cut,) * (row // cut)
    numbers = np.random.default_rng(draw(st.integers(0, 99)))
    bases = numbers.integers(1, 1 << 40, n, dtype=np.uint64) * np.uint64(4096)
    pieces = numbers.integers(1, 1 << 50, (n, len(sizes)), dtype=np.uint64)
    return Rows(layout, draw(st.booleans()), shards, bases, pieces, sizes, numbers.integers(0, 9, n, dtype=np.uint64))


@given(rows())
def test_writes_what_the_plan_of_many_rows_does(some: Rows) -> None:
    table, wanted, vectors = some.write()
    expected, brings = some.planned(vectors)
    assert wanted.shape == brings.shape and (wanted == brings).all()
    assert table.shape == expected.shape
    for name in rq.REQUEST.names or ():
        assert (table[name] == expected[name]).all(), name


class Loaded:
    """Three blocks of four shards that were read to slots and copied, as chains would have left them."""

    def __init__(self, *, whole: bool = True) -> None:
        self.layout = BlockLayout.of(4 * 1024, 1024)
        n = 3
        self.ids = noise(16 * n).reshape(n, 16).copy()
        self.shards = np.full(n, -1, dtype=np.int64) if whole else np.array([3, 0, 1])
        self.sums = np.arange(1, 4 * n + 1, dtype=np.uint32).reshape(n, 4)
        headers = pack_headers(self.ids, NAMESPACE, 1024, self.sums)
        own = np.array([native.crc32c(header[CHECKSUM_FROM:].copy()) for header in headers], dtype=np.uint32)
        seal_headers(headers, own)
        self.slots = np.zeros((n, self.layout.file_bytes), dtype=np.uint8)
        self.slots[:, : headers.shape[1]] = headers
        self.bases = np.array([address_of(slot) for slot in self.slots], dtype=np.uint64)
        row = 4096 if whole else 1024
        self.runs = cut_row((row,), 1024).runs
        pieces, gates = np.ones((n, 1), dtype=np.uint64), np.zeros(n, dtype=np.uint64)
        some = Rows(self.layout, False, self.shards, self.bases, pieces, (row,), gates)
        self.table, self.wanted, _ = some.write()
        self.table["result"][:, 1] = self.wanted[:, 0]
        self.table["result"][:, 2] = own
        self.table["result"][:, 3:-1] = self.sums if whole else self.sums[np.arange(n), self.shards][:, None]

    def good(self) -> bool:
        found = load_chains(self.layout).all_good(self.table, self.wanted, self.ids, self.shards, self.bases, self.runs)
        assert isinstance(found, bool)
        return found


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_good(whole: bool) -> None:
    assert Loaded(whole=whole).good()


@pytest.mark.parametrize("block", range(3))
def test_every_byte_of_a_header_counts(block: int) -> None:
    loaded = Loaded()
    for at in range(used_bytes(4)):
        loaded.slots[block, at] ^= 0x40
        assert not loaded.good(), at
        loaded.slots[block, at] ^= 0x40
    assert loaded.good()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("block", range(3))
def test_every_result_counts(block: int, whole: bool) -> None:
    loaded = Loaded(whole=whole)
    for step in range(1, loaded.table.shape[1] - 1):
        for wrong in (loaded.table["result"][block, step] + 1, -5, rq.PENDING_RESULT, 1 << 32):
            before = int(loaded.table["result"][block, step])
            loaded.table["result"][block, step] = wrong
            assert not loaded.good(), (step, wrong)
            loaded.table["result"][block, step] = before
    assert loaded.good()


def test_the_id_counts() -> None:
    loaded = Loaded()
    loaded.ids[2, 15] ^= 1
    assert not loaded.good()


def arguments(some: Rows) -> dict[str, Any]:
    table, wanted, vectors = some.write()
    sizes = np.array(some.sizes, dtype=np.int64)
    names = ("table", "wanted", "vectors", "shards", "bases", "addresses", "lengths", "gates", "runs")
    return dict(
        zip(
            names,
            (table, wanted, vectors, some.shards, some.bases, some.pieces, sizes, some.gates, some.runs),
            strict=True,
        )
    )


@pytest.mark.parametrize(
    "change",
    [
        {"table": np.zeros(11, dtype=rq.REQUEST)},
        {"table": np.zeros(3, dtype=np.uint8)},
        {"wanted": np.zeros(3, dtype=np.int64)},
        {"wanted": np.zeros(6, dtype=np.int64)},
        {"vectors": np.zeros(5, dtype=rq.IOVEC)},
        {"shards": np.array([0, 4], dtype=np.int64)},
        {"shards": np.array([-2, 0], dtype=np.int64)},
        {"bases": np.zeros(1, dtype=np.uint64)},
        {"addresses": np.zeros((2, 3), dtype=np.uint64)},
        {"gates": np.zeros(3, dtype=np.uint64)},
        {"runs": np.zeros(7, dtype=np.int64)},
        {"runs": np.array([[0, 512, 0, 0, 0], [512, 512, 2, 0, 1]])},
        {"runs": np.array([[0, 512, 0, 0, 0], [512, 1 << 40, 1, 0, 1]])},
        {"runs": np.array([[-8, 520, 0, 0, 0], [512, 512, 1, 0, 1]])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_arrays_that_do_not_fit(change: dict[str, Any]) -> None:
    layout = BlockLayout.of(4 * 1024, 1024)
    shards, words = np.array([0, 1], dtype=np.int64), np.zeros(2, dtype=np.uint64)
    some = Rows(layout, True, shards, words, np.ones((2, 2), dtype=np.uint64), (512, 512), words)
    given = arguments(some)
    load_chains(layout).write(*given.values())
    with pytest.raises(ValueError, match=next(iter(change))):
        load_chains(layout).write(*(given | change).values())


def test_more_shards_than_the_row_has() -> None:
    loaded = Loaded(whole=False)
    runs = np.array([[0, 512, 0, 0, 0], [512, 512, 0, 512, 0]])
    table = np.zeros((3, 6), dtype=rq.REQUEST)
    with pytest.raises(ValueError, match="runs"):
        load_chains(loaded.layout).all_good(table, loaded.wanted, loaded.ids, loaded.shards, loaded.bases, runs)


def test_what_must_be_writable() -> None:
    loaded = Loaded()
    loaded.table.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        loaded.good()


def test_a_row_that_takes_two_reads_needs_room_for_them() -> None:
    layout = BlockLayout.of(1 << 20, 1 << 18)
    one = load_chains(layout)
    near, far = np.array([0], dtype=np.int64), np.array([3], dtype=np.int64)
    assert (one.reads(near, False), one.reads(far, False), one.reads(near, True), one.reads(far, True)) == (1, 2, 1, 2)
    words = np.zeros(1, dtype=np.uint64)
    runs = cut_row((1 << 18,), 1 << 18).runs
    table, wanted = np.zeros(5, dtype=rq.REQUEST), np.zeros(1, dtype=np.int64)
    with pytest.raises(ValueError, match="two reads"):
        one.write(table, wanted, None, far, words, words, np.array([1 << 18]), words, runs)


@pytest.mark.parametrize("sizes", [(0, 1024, 4096), (4096, 0, 4096), (4096, 1024, 4095), (100, 1024, 4096)])
def test_no_layout(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no layout"):
        native.LoadChains(header_template(NAMESPACE, 1024, 4), *sizes, 0)


def test_no_header() -> None:
    with pytest.raises(ValueError, match="header"):
        native.LoadChains(bytes(90), 4096, 1024, 4096, 0)


def test_wrong_calls() -> None:
    one = load_chains(BlockLayout.of(4096, 1024))
    for call in (one.write, one.all_good, one.reads):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(TypeError):
        one.reads("text", False)
