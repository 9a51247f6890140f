"""The chains that load blocks, one row of each; the format of headers is told in docs/design/format.md."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..engines import requests as rq
from .memory import array_of, view_of

_PAGE: Final = 4096
_OWN_CHECKSUM_AT: Final = 8
_CHECKSUM_FROM: Final = 12
_ID_AT: Final = 16
_ENTRIES_AT: Final = 80
_ENTRY_BYTES: Final = 24
_ENTRY_CHECKSUM_AT: Final = 16
_RUN: Final = 5
"""Columns of a run: offset, length, piece, offset in the piece, whether it continues a shard."""

_I64 = npt.NDArray[np.int64]


class LoadChains:
    """Writes the chains of one layout and looks at what became of them; see the stub of the extension."""

    def __init__(self, header: Any, header_bytes: int, shard_bytes: int, block_bytes: int, gap: int) -> None:
        template = np.frombuffer(bytes(header), dtype=np.uint8)
        shards, rest = divmod(len(template) - _ENTRIES_AT, _ENTRY_BYTES)
        if shards < 1 or rest:
            raise ValueError(f"header: {len(template)} bytes, must be {_ENTRIES_AT} and {_ENTRY_BYTES} for each shard")
        fits = header_bytes >= len(template) and header_bytes % _PAGE == 0 and shard_bytes > 0 and gap >= 0
        if not fits or block_bytes != shards * shard_bytes:
            raise ValueError(
                f"header_bytes {header_bytes}, shard_bytes {shard_bytes}, block_bytes {block_bytes}, gap {gap}: "
                f"no layout of {shards} shards"
            )
        self._template = template
        self._shards = shards
        self._head, self._shard, self._block, self._gap = header_bytes, shard_bytes, block_bytes, gap

    def reads(self, shards: Any, direct: bool, /) -> int:
        """Return how many reads a chain needs for these rows, 1 or 2."""
        start, _ = self._ranges(array_of(shards, np.int64, "shards"))
        return 1 + bool((~self._beside(start, direct)).any())

    def write(
        self,
        table: Any,
        wanted: Any,
        vectors: Any,
        shards: Any,
        bases: Any,
        addresses: Any,
        lengths: Any,
        gates: Any,
        runs: Any,
        /,
    ) -> None:
        """Write all but the first and the last step of a chain a row."""
        row = array_of(shards, np.int64, "shards")
        cut = _runs(runs)
        steps, bring = self._table(table, wanted, row, cut)
        sizes = array_of(lengths, np.int64, "lengths")
        pieces = _of("addresses", addresses, "<u8", len(row) * len(sizes)).reshape(len(row), len(sizes))
        base, gate = _of("bases", bases, "<u8", len(row)), _of("gates", gates, "<u8", len(row))
        direct = vectors is not None
        if direct:
            vectors = _of("vectors", vectors, rq.IOVEC, len(row) * (1 + len(sizes)), writable=True)
        self._check_runs(row, cut, len(sizes))
        if self.reads(row, direct) > bring.shape[1]:
            raise ValueError("wanted: a row takes two reads")
        steps[:], bring[:] = np.zeros((), dtype=rq.REQUEST), 0
        reads = steps[:, 1 : 1 + bring.shape[1]]
        reads["gate"] = gate[:, None]
        if direct:
            lists = vectors.reshape(len(row), 1 + len(sizes))
            self._read_to_pieces(reads, bring, lists, row, base, pieces, sizes)
        else:
            self._read_to_slots(reads, bring, row, base)
        unused = bring == 0
        reads[unused] = np.zeros((), dtype=rq.REQUEST)
        head = steps[:, 1 + bring.shape[1]]
        head["opcode"] = rq.OP_CHECKSUM | rq.FLAG_IF_WELL
        head["address"] = base + np.uint64(_CHECKSUM_FROM)
        head["length"] = len(self._template) - _CHECKSUM_FROM
        copies = steps[:, 2 + bring.shape[1] : -1]
        opcode = (rq.OP_CHECKSUM if direct else rq.OP_COPY) | rq.FLAG_IF_WELL
        copies["opcode"] = np.where(cut[:, 4] != 0, opcode | rq.FLAG_CHAIN, opcode)
        copies["address"] = pieces[:, cut[:, 2]] + cut[:, 3].astype(np.uint64)
        if not direct:
            slot = base + self._ranges(row)[0].astype(np.uint64)
            copies["offset"] = slot[:, None] + cut[:, 0].astype(np.uint64)
        copies["length"] = cut[:, 1]
        copies["gate"] = gate[:, None]

    def all_good(self, table: Any, wanted: Any, ids: Any, shards: Any, bases: Any, runs: Any, /) -> bool:
        """Tell whether all reads are whole, all headers are what they must be, and the checksums agree."""
        row = array_of(shards, np.int64, "shards")
        cut = _runs(runs)
        steps, bring = self._table(table, wanted, row, cut)
        names = _of("ids", ids, np.uint8, 16 * len(row)).reshape(len(row), 16)
        base = _of("bases", bases, "<u8", len(row))
        self._check_runs(row, cut, None)
        reads = bring.shape[1]
        results = steps["result"]
        if not (results[:, 1 : 1 + reads] == bring).all():
            return False
        found = np.empty((len(row), len(self._template)), dtype=np.uint8)
        for i, address in enumerate(base.tolist()):
            found[i] = np.frombuffer(view_of(address, len(self._template)), dtype=np.uint8)
        entries = found[:, _ENTRIES_AT:].reshape(len(row), self._shards, _ENTRY_BYTES)
        sums_at = slice(_ENTRY_CHECKSUM_AT, _ENTRY_CHECKSUM_AT + 4)
        told = np.ascontiguousarray(entries[:, :, sums_at]).view("<u4")[:, :, 0]
        expected = np.tile(self._template, (len(row), 1))
        expected[:, _ID_AT : _ID_AT + 16] = names
        own = np.ascontiguousarray(found[:, _OWN_CHECKSUM_AT:_CHECKSUM_FROM]).view("<u4")[:, 0]
        expected[:, _OWN_CHECKSUM_AT:_CHECKSUM_FROM] = found[:, _OWN_CHECKSUM_AT:_CHECKSUM_FROM]
        expected[:, _ENTRIES_AT:].reshape(entries.shape)[:, :, sums_at] = entries[:, :, sums_at]
        if not (found == expected).all() or not (own == results[:, 1 + reads]).all():
            return False
        last = np.append(cut[1:, 4] == 0, True)[: len(cut)]
        sums = results[:, 2 + reads : -1][:, last]
        first = np.maximum(row, 0)
        stored = told[np.arange(len(row))[:, None], first[:, None] + np.arange(sums.shape[1])]
        return bool((sums == stored).all())

    def _ranges(self, row: _I64) -> tuple[_I64, _I64]:
        """Where rows begin, and their bytes."""
        start = self._head + np.maximum(row, 0) * self._shard
        return start, np.where(row < 0, self._block, self._shard)

    def _beside(self, start: _I64, direct: bool) -> npt.NDArray[np.bool_]:
        """Tell which rows are read along with the header."""
        beside: npt.NDArray[np.bool_] = start == self._head
        return beside if direct else beside | (start // _PAGE * _PAGE - self._head <= self._gap)

    def _table(self, table: Any, wanted: Any, row: _I64, cut: _I64) -> tuple[rq.Requests, _I64]:
        if ((row < -1) | (row >= self._shards)).any():
            raise ValueError(f"shards: must be -1 … {self._shards - 1}")
        requests = array_of(table, rq.REQUEST, "table", writable=True)
        bring = array_of(wanted, np.int64, "wanted", writable=True)
        n = max(len(row), 1)
        reads, steps = len(bring) // n, len(requests) // n
        even = reads * len(row) == len(bring) and steps * len(row) == len(requests)
        if not even or reads not in (1, 2) or steps != 3 + reads + len(cut):
            raise ValueError(
                f"table: {len(requests)} requests and {len(bring)} in wanted, must be for each of {len(row)} rows "
                f"3 + {len(cut)} and its reads, 1 or 2"
            )
        return requests.reshape(len(row), steps), bring.reshape(len(row), reads)

    def _check_runs(self, row: _I64, cut: _I64, pieces: int | None) -> None:
        shards = int((cut[:, 4] == 0).sum()) if len(cut) else 0
        most = 1 if (row >= 0).any() else self._shards
        outside = (cut[:, :3] < 0).any() or (cut[:, 0] + cut[:, 1] > self._block).any()
        if outside or shards > most or (pieces is not None and (cut[:, 2] >= pieces).any()):
            raise ValueError("runs: one leaves the row or its pieces")

    def _read_to_slots(self, reads: rq.Requests, bring: _I64, row: _I64, base: npt.NDArray[np.uint64]) -> None:
        start, size = self._ranges(row)
        beside = self._beside(start, False)
        first = np.where(beside, 0, start // _PAGE * _PAGE)
        stop = -(-(start + size) // _PAGE) * _PAGE
        apart = np.flatnonzero(~beside)
        for rows, column in ((np.flatnonzero(beside), 0), (apart, 1)):
            if not len(rows):
                continue
            one = reads[:, column]
            one["opcode"][rows] = rq.OP_READ
            one["offset"][rows] = first[rows]
            one["address"][rows] = base[rows] + first[rows].astype(np.uint64)
            one["length"][rows] = bring[rows, column] = (stop - first)[rows]
        if len(apart):
            self._read_headers(reads[:, 0], bring[:, 0], apart, base)

    def _read_to_pieces(
        self,
        reads: rq.Requests,
        bring: _I64,
        lists: npt.NDArray[Any],
        row: _I64,
        base: npt.NDArray[np.uint64],
        pieces: npt.NDArray[np.uint64],
        sizes: _I64,
    ) -> None:
        lists["address"][:, 0], lists["length"][:, 0] = base, self._head
        lists["address"][:, 1:], lists["length"][:, 1:] = pieces, sizes
        start, size = self._ranges(row)
        beside = self._beside(start, True)
        at = lists.ctypes.data + lists.strides[0] * np.arange(len(row)) if len(row) else np.zeros(0, dtype=np.int64)
        one = reads[:, 0]
        one["opcode"] = rq.OP_READV
        one["offset"] = np.where(beside, 0, start)
        one["address"] = at + np.where(beside, 0, rq.IOVEC.itemsize)
        one["length"] = len(sizes) + beside
        bring[:, 0] = size + np.where(beside, self._head, 0)
        apart = np.flatnonzero(~beside)
        if len(apart):
            self._read_headers(reads[:, 1], bring[:, 1], apart, base)

    def _read_headers(self, column: rq.Requests, bring: _I64, rows: _I64, base: npt.NDArray[np.uint64]) -> None:
        column["opcode"][rows] = rq.OP_READ
        column["offset"][rows] = 0
        column["address"][rows] = base[rows]
        column["length"][rows] = bring[rows] = self._head


def _runs(runs: Any) -> _I64:
    flat = array_of(runs, np.int64, "runs")
    if len(flat) % _RUN:
        raise ValueError(f"runs: {8 * len(flat)} bytes, must be a multiple of {8 * _RUN}")
    return flat.reshape(-1, _RUN)


def _of(name: str, array: Any, dtype: npt.DTypeLike, count: int, *, writable: bool = False) -> npt.NDArray[Any]:
    """Return a flat view of as many elements as there must be."""
    found = array_of(array, dtype, name, writable=writable)
    if len(found) != count:
        raise ValueError(f"{name}: {len(found)} elements, must be {count}")
    return found
