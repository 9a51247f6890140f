"""Chains of requests, one a block: a table whose rows run side by side, each from left to right. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..types import U8, U64
from . import requests as rq

if TYPE_CHECKING:
    from ..tasks import Cuts

__all__ = ["ChainTable", "addresses_of", "copy_requests"]


class ChainTable:
    """Requests of shape (blocks, steps), NOPs where nothing else was put.

    Attributes
    ----------
    table
        Array of REQUEST, shape (blocks, steps).
    keep
        What the requests point to, beside the slots and the caller's memory: paths, vectors. It must live as long as
        they do.
    """

    __slots__ = ("keep", "table")

    def __init__(self, blocks: int, steps: int) -> None:
        self.table = rq.new_requests(blocks * steps).reshape(blocks, steps)
        self.keep: list[object] = []

    @property
    def steps(self) -> int:
        """Requests of a chain: the `chunk` of a submit."""
        return self.table.shape[1]

    def rows(self, which: npt.NDArray[Any]) -> rq.Requests:
        """Return a copy of some chains, to be submitted."""
        return np.ascontiguousarray(self.table[which])


def copy_requests(
    opcode: int, cuts: Cuts, *, slots: U64, pieces: U64, gates: U64, to_slots: bool, flags: int = 0
) -> rq.Requests:
    """Make the requests that copy rows between slots and the caller's pieces, or only take their checksums.

    Parameters
    ----------
    opcode
        OP_COPY, or OP_CHECKSUM of the pieces.
    cuts
        How a row is cut; its m runs become m requests.
    slots
        Address of each row's first byte in its slot, shape (n,).
    pieces
        Addresses of each row's pieces, shape (n, k).
    gates
        Shape (n,).
    to_slots
        The direction of the copy.
    flags
        For every request.

    Returns
    -------
    array of REQUEST, shape (n, m)
        After they ran, the result at each shard's last run is its checksum.
    """
    table = rq.new_requests(len(slots) * len(cuts)).reshape(len(slots), len(cuts))
    caller = pieces[:, cuts.piece] + cuts.piece_offset.astype(np.uint64)
    own = slots[:, None] + cuts.offset.astype(np.uint64)
    table["opcode"] = np.where(cuts.continues, opcode | flags | rq.FLAG_CHAIN, opcode | flags)
    if opcode == rq.OP_CHECKSUM:
        table["address"] = caller
    elif to_slots:
        table["address"], table["offset"] = own, caller
    else:
        table["address"], table["offset"] = caller, own
    table["length"] = cuts.length
    table["gate"] = gates[:, None]
    return table


def addresses_of(array: U8 | npt.NDArray[Any]) -> U64:
    """Return the address of each row of an array that lives on."""
    steps = np.arange(len(array), dtype=np.uint64) * np.uint64(array.strides[0])
    return steps + np.uint64(array.ctypes.data)
