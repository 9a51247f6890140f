"""Which shards of which blocks the rows of a batch are, and where they lie in the caller's memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ...coding import Codings, new_codings
from ...engines import requests as rq
from ...engines.chains import copy_requests
from ...tasks import Cuts, cut_row
from ...types import I64, U8, U64

__all__ = ["Geometry", "Units", "distinct", "in_order", "parts_of", "shares_of"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Of a store's blocks, as they lie in slots.

    Attributes
    ----------
    shard_size, shards
        Of the store.
    slot_bytes
        Bytes of a block that did not shrink, rounded up to whole pages.
    """

    shard_size: int
    shards: int
    slot_bytes: int


class Units:
    """The shards of some rows, one unit each; a row is a shard, or a whole block.

    Attributes
    ----------
    row, group, shard
        int64, shape (u,): position of the row among those given, its block, and the shard's index there.
    scattered
        Whether a shard lies in several pieces of memory, so that it goes through a slot of its own on the raw side.
    """

    def __init__(self, geometry: Geometry, piece_sizes: I64, pieces: U64, shards: I64, gates: U64, group: I64) -> None:
        """Take n rows: addresses of their pieces, (n, k), and shards, gates and blocks, (n,)."""
        self._geometry = geometry
        self._cuts: Cuts = cut_row(tuple(piece_sizes.tolist()), geometry.shard_size)
        self._pieces = pieces
        self._gates = gates
        self._shards = shards
        self._group = group
        n, width = len(shards), len(self._cuts.last)
        self.row: I64 = np.repeat(np.arange(n), width)
        self.group: I64 = np.repeat(group, width)
        self.shard: I64 = (np.maximum(shards, 0)[:, None] + np.arange(width)).reshape(-1)
        self.scattered = len(self._cuts) > width

    def __len__(self) -> int:
        return len(self.row)

    def codings(self, which: I64, staging: U64 | None, *, encode: bool) -> Codings:
        """Return codings of some units, of which the raw side is set: source to encode, target to decode.

        `staging` is where blocks lie on the raw side if that is `scattered`, by block; then no gate is needed.
        """
        out = new_codings(len(which))
        row, shard = self.row[which], self.shard[which]
        if staging is not None:
            raw = staging[self.group[which]] + (shard * self._geometry.shard_size).astype(np.uint64)
        else:
            cuts, at = self._cuts, shard - np.maximum(self._shards[row], 0)
            raw = self._pieces[row, cuts.piece[at]] + cuts.piece_offset[at].astype(np.uint64)
            out["gate"] = self._gates[row]
        out["source" if encode else "target"] = raw
        out["source_length"] = out["target_length"] = self._geometry.shard_size
        return out

    def copies(self, rows: Any, staging: U64, *, to_slots: bool) -> rq.Requests:
        """Return the copies between the caller's pieces of some rows and `staging`, shape (rows, runs)."""
        start = np.maximum(self._shards[rows], 0) * self._geometry.shard_size
        return copy_requests(
            rq.OP_MOVE,
            self._cuts,
            slots=staging[self._group[rows]] + start.astype(np.uint64),
            pieces=self._pieces[rows],
            gates=self._gates[rows],
            to_slots=to_slots,
        )


def in_order(rows: I64, group: I64) -> tuple[I64, I64]:
    """Return rows and their groups with those of a group together."""
    order = np.argsort(group, kind="stable")
    return rows[order], group[order]


def parts_of(group: I64, blocks: int, step: int) -> list[slice]:
    """Cut rows whose groups ascend into runs of at most `step` blocks each."""
    edges = np.searchsorted(group, np.arange(0, blocks, step)).tolist()
    return [slice(start, stop) for start, stop in zip(edges, [*edges[1:], len(group)], strict=True)]


def shares_of(blocks: int, jobs: int) -> list[range]:
    """Cut blocks into at most `jobs` runs, as even as can be."""
    jobs = min(jobs, blocks)
    edges = [blocks * i // jobs for i in range(jobs + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def distinct(ids: U8, rows: I64, group: I64) -> tuple[U8, I64]:
    """Return the ids of the blocks of some rows, C-contiguous, and the rows' groups counted from 0."""
    first = np.concatenate(([True], group[1:] != group[:-1]))
    return np.ascontiguousarray(ids[rows[first]]), np.cumsum(first) - 1
