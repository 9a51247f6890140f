"""Which requests move the rows of blocks, between their place on the disk and slots or a caller's memory. Pure.

Offsets are from the start of a block, where its header lies. Arrays of n are by row, arrays of g by block.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ..engines import requests as rq
from ..engines.chains import addresses_of
from ..types import I64, U64, Bools
from .layout import BlockLayout, merge_ranges
from .transfer import DIRECT_ALIGN

__all__ = ["READ_GAP_BYTES", "plan_direct_reads", "plan_direct_writes", "plan_slot_reads", "plan_slot_writes"]

READ_GAP_BYTES: Final = 32 << 10
"""Bytes read along between two ranges of one file: at 2 GB/s they cost what a second request does."""


def plan_slot_reads(layout: BlockLayout, group: I64, bases: U64, start: I64, stop: I64) -> tuple[rq.Requests, I64, I64]:
    """Read the header and the rows of each block into its slot, whole pages, with as few requests as pays.

    Parameters
    ----------
    layout
        How a block lies, on the disk and in a slot alike.
    group
        int64, shape (n,): the block of each row, ascending.
    bases
        uint64, shape (g,): addresses of the slots.
    start, stop
        int64, shape (n,): bytes of the block that each row takes.

    Returns
    -------
    reads
        Array of REQUEST, shape (m,), without a descriptor.
    owner, wanted
        int64, shape (m,): the block of each read, ascending, and the bytes that it must bring.
    """
    head = layout.header_bytes
    start = start // DIRECT_ALIGN * DIRECT_ALIGN
    stop = -(-stop // DIRECT_ALIGN) * DIRECT_ALIGN
    owner = group
    if len(group) == len(bases) and int(start.max()) - head <= READ_GAP_BYTES:
        start = np.zeros_like(start)
    else:
        heads = np.arange(len(bases))
        owner, start, stop = merge_ranges(
            np.concatenate((heads, group)),
            np.concatenate((np.zeros_like(heads), start)),
            np.concatenate((np.full_like(heads, head), stop)),
            gap=READ_GAP_BYTES,
        )
    reads = rq.new_requests(len(owner))
    reads["opcode"] = rq.OP_READ
    reads["offset"] = start
    reads["address"] = bases[owner] + start.astype(np.uint64)
    reads["length"] = stop - start
    return reads, owner, stop - start


def plan_direct_reads(
    layout: BlockLayout, pieces: U64, piece_sizes: I64, group: I64, heads: U64, start: I64, stop: I64
) -> tuple[rq.Requests, I64, I64, object]:
    """Read each row into its pieces; the header goes along with the row that follows it, or alone.

    Parameters
    ----------
    pieces
        uint64, shape (n, k): addresses of each row's pieces; `piece_sizes`, int64 (k,), are their bytes.
    heads
        uint64, shape (g,): where the headers go.
    layout, group, start, stop
        As for `plan_slot_reads`.

    Returns
    -------
    reads, owner, wanted
        As of `plan_slot_reads`.
    vectors
        What the reads point to; it must live as long as they do.
    """
    head = layout.header_bytes
    beside = start == head
    vectors, first = _vectors(pieces, piece_sizes, heads[group], head, beside)
    alone = _without(np.ones(len(heads), dtype=np.bool_), group[beside])
    reads = rq.new_requests(len(group) + len(alone))
    of_rows, of_heads = reads[: len(group)], reads[len(group) :]
    of_rows["opcode"] = rq.OP_READV
    of_rows["offset"] = np.where(beside, 0, start)
    of_rows["address"] = first
    of_rows["length"] = len(piece_sizes) + beside
    of_heads["opcode"] = rq.OP_READ
    of_heads["address"] = heads[alone]
    of_heads["length"] = head
    wanted = np.concatenate((stop - start + np.where(beside, head, 0), np.full(len(alone), head)))
    owner = np.concatenate((group, alone))
    if len(alone):
        order = np.argsort(owner, kind="stable")
        reads, owner, wanted = reads[order], owner[order], wanted[order]
    return reads, owner, wanted, vectors


def plan_slot_writes(
    layout: BlockLayout, group: I64, bases: U64, start: I64, stop: I64, whole: Bools
) -> tuple[rq.Requests, I64, I64]:
    """Write rows from the slots of their blocks, and the headers of blocks that are whole then.

    A header is written last, or in one request with all of its block: what has one is whole, as far as a process that
    dies is concerned. The padding of a block goes with its last shard.

    Parameters
    ----------
    layout, group, bases, start, stop
        As for `plan_slot_reads`.
    whole
        Bool, shape (g,): blocks of which nothing is missing once these rows are in.

    Returns
    -------
    writes, owner, wanted
        As of `plan_slot_reads`; the writes of a block are in the order in which they must run.
    """
    head = layout.header_bytes
    stop = np.where(stop == head + layout.block_size, layout.file_bytes, stop)
    owner, start, stop = merge_ranges(group, start, stop, gap=0)
    entire = whole[owner] & (start == head) & (stop == layout.file_bytes)
    start = np.where(entire, 0, start)
    alone = _without(whole, owner[entire])
    if len(alone):
        owner = np.concatenate((owner, alone))
        order = np.argsort(owner, kind="stable")
        start = np.concatenate((start, np.zeros(len(alone), dtype=np.int64)))[order]
        stop = np.concatenate((stop, np.full(len(alone), head)))[order]
        owner = owner[order]
    writes = rq.new_requests(len(owner))
    writes["opcode"] = rq.OP_WRITE
    writes["offset"] = start
    writes["address"] = bases[owner] + start.astype(np.uint64)
    writes["length"] = stop - start
    return writes, owner, stop - start


def plan_direct_writes(
    layout: BlockLayout,
    pieces: U64,
    piece_sizes: I64,
    group: I64,
    heads: U64,
    start: I64,
    stop: I64,
    whole: Bools,
) -> tuple[rq.Requests, I64, I64, object]:
    """Write rows from their pieces, and headers as `plan_slot_writes` does: with the first shard, or alone, but last.

    Parameters
    ----------
    pieces, piece_sizes, heads
        As for `plan_direct_reads`.
    layout, group, start, stop, whole
        As for `plan_slot_writes`.

    Returns
    -------
    writes, owner, wanted, vectors
        As of `plan_slot_writes` and `plan_direct_reads`.
    """
    head = layout.header_bytes
    beside = (start == head) & whole[group]
    vectors, first = _vectors(pieces, piece_sizes, heads[group], head, beside)
    alone = _without(whole, group[beside])
    writes = rq.new_requests(len(group) + len(alone))
    of_rows, of_heads = writes[: len(group)], writes[len(group) :]
    of_rows["opcode"] = rq.OP_WRITEV
    of_rows["offset"] = np.where(beside, 0, start)
    of_rows["address"] = first
    of_rows["length"] = len(piece_sizes) + beside
    of_heads["opcode"] = rq.OP_WRITE
    of_heads["address"] = heads[alone]
    of_heads["length"] = head
    wanted = np.concatenate((stop - start + np.where(beside, head, 0), np.full(len(alone), head)))
    owner = np.concatenate((group, alone))
    order = np.lexsort((np.concatenate((beside, np.ones(len(alone), dtype=np.bool_))), owner))
    return writes[order], owner[order], wanted[order], vectors


def _without(whole: Bools, these: I64) -> I64:
    """Return the blocks that are whole but for these."""
    rest = whole.copy()
    rest[these] = False
    return np.flatnonzero(rest).astype(np.int64)


def _vectors(pieces: U64, piece_sizes: I64, heads: U64, head_bytes: int, beside: Bools) -> tuple[object, U64]:
    """Return an iovec for each header and each piece, and where each row's list begins: with its header or after it."""
    n, k = pieces.shape
    vectors = np.zeros((n, k + 1), dtype=rq.IOVEC)
    vectors["address"][:, 0] = heads
    vectors["length"][:, 0] = head_bytes
    vectors["address"][:, 1:] = pieces
    vectors["length"][:, 1:] = piece_sizes
    return vectors, addresses_of(vectors) + np.where(beside, 0, rq.IOVEC.itemsize).astype(np.uint64)
