"""What a dump does with encoded rows: their bytes lie in the library's memory, and need no copy, only a header.

Whole blocks are packed: their file is as long as its shards need. Shards that come one at a time lie where those of a
plain block do, since nobody knows how long the others will be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..coding import MIXED, RAW, EncodedRows
from ..engines import requests as rq
from ..engines.chains import addresses_of
from ..types import I64, U64, Bools
from .header import HEADER_ALIGN
from .layout import BlockLayout
from .transfer import DIRECT_ALIGN

if TYPE_CHECKING:
    from .dumping import Writing
    from .writes import BlockWrites

__all__ = ["encoded_bytes", "keep_checksums", "note_encoded", "plan_encoded_writes"]


def encoded_bytes(layout: BlockLayout, encoded: EncodedRows) -> I64:
    """Return the bytes that packed blocks take in all, int64, shape (n,): a whole number of pages."""
    used = (encoded.offsets + encoded.lengths).max(axis=1)
    return np.asarray(layout.header_bytes + -(-used // HEADER_ALIGN) * HEADER_ALIGN)


def note_encoded(layout: BlockLayout, writes: BlockWrites, writing: Writing[Any]) -> None:
    """Keep what the headers will say of claimed shards, and how long the files will be.

    Shards that do not fit under one header with those of their block that are in fail with `MIXED`.
    """
    encoded: EncodedRows | None = writing.batch.encoded
    if encoded is None and not writes.encoded:
        return
    nbytes = [] if encoded is None else encoded_bytes(layout, encoded).tolist()
    for row, g in zip(writing.rows.tolist(), writing.group.tolist(), strict=True):
        entry, shard = int(writing.entries[g]), int(writing.batch.shards[row])
        if encoded is None:
            if entry in writes.encoded:  # begun by a stage above that has been replaced since
                _note_plain(layout, writes, entry, shard)
        elif shard < 0:
            writes.encoded[entry] = encoded.rows(slice(row, row + 1))
            if not writes.reserved[entry]:
                writes.file_bytes[entry] = nbytes[row]
        elif not _note_shard(layout, writes, entry, shard, encoded.rows(slice(row, row + 1))):
            writing.failed[g] = MIXED


def _plain_rows(layout: BlockLayout) -> EncodedRows:
    """Return one block of which every shard is stored as it is, in its place."""
    rows = EncodedRows.zeros(1, layout.shards)
    rows.offsets[:] = layout.shard_size * np.arange(layout.shards)
    rows.lengths[:] = layout.shard_size
    return rows


def _note_plain(layout: BlockLayout, writes: BlockWrites, entry: int, shard: int) -> None:
    if shard < 0:
        del writes.encoded[entry]
        writes.file_bytes[entry] = layout.file_bytes
        return
    known, plain = writes.encoded[entry], _plain_rows(layout)
    for now, then in ((known.codecs, plain.codecs), (known.lengths, plain.lengths)):
        now[0, shard] = then[0, shard]


def _note_shard(layout: BlockLayout, writes: BlockWrites, entry: int, shard: int, one: EncodedRows) -> bool:
    """Note one shard; False if its parameters are not those of the others."""
    known = writes.encoded.setdefault(entry, _plain_rows(layout))
    if not writes.reserved[entry]:
        writes.file_bytes[entry] = layout.file_bytes
    if one.codecs[0, 0] != RAW:
        others = known.codecs[0] != RAW
        others[shard] = False
        if others.any() and (known.parameters != one.parameters).any():
            return False
        known.parameters[:] = one.parameters
        known.lossy |= one.lossy
    known.codecs[0, shard], known.lengths[0, shard] = one.codecs[0, 0], one.lengths[0, 0]
    known.offsets[0, shard] = layout.shard_size * shard
    return True


def keep_checksums(writes: BlockWrites, writing: Writing[Any]) -> None:
    """Keep the checksums, which the stage above has taken."""
    encoded = writing.batch.encoded
    assert encoded is not None
    keep = writing.failed[writing.group] == 0
    rows, entries = writing.rows[keep], writing.entries[writing.group[keep]]
    at = np.maximum(writing.batch.shards[rows], 0)[:, None] + np.arange(encoded.checksums.shape[1])
    writes.checksums[entries[:, None], at] = encoded.checksums[rows]


def plan_encoded_writes(
    layout: BlockLayout,
    shards: I64,
    addresses: U64,
    encoded: EncodedRows,
    group: I64,
    heads: U64,
    whole: Bools,
) -> tuple[rq.Requests, I64, I64, object]:
    """Write encoded rows from where they lie: a whole block with its header, or shards, and the header last.

    Parameters
    ----------
    shards, addresses, encoded
        Of n rows, as in a batch.
    group, heads, whole
        As for `ucm_async.blocks.plans.plan_direct_writes`.

    Returns
    -------
    writes, owner, wanted, vectors
        As of `plan_direct_writes`.
    """
    head = layout.header_bytes
    packed = shards < 0
    aligned = layout.shard_size % DIRECT_ALIGN == 0
    used = (encoded.offsets + encoded.lengths).max(axis=1)
    nbytes = np.where(packed | aligned, -(-used // DIRECT_ALIGN) * DIRECT_ALIGN, used)
    vectors = np.zeros((len(group), 2), dtype=rq.IOVEC)
    vectors["address"][:, 0], vectors["length"][:, 0] = heads[group], head
    vectors["address"][:, 1], vectors["length"][:, 1] = addresses[:, 0], nbytes
    alone = np.flatnonzero(whole & ~np.isin(np.arange(len(heads)), group[packed]))
    writes = rq.new_requests(len(group) + len(alone))
    of_rows, of_heads = writes[: len(group)], writes[len(group) :]
    of_rows["opcode"] = np.where(packed, rq.OP_WRITEV, rq.OP_WRITE)
    of_rows["offset"] = np.where(packed, 0, head + shards * layout.shard_size)
    of_rows["address"] = np.where(packed, addresses_of(vectors), addresses[:, 0])
    of_rows["length"] = np.where(packed, 2, nbytes)
    of_heads["opcode"] = rq.OP_WRITE
    of_heads["address"] = heads[alone]
    of_heads["length"] = head
    wanted = np.concatenate((nbytes + np.where(packed, head, 0), np.full(len(alone), head)))
    owner = np.concatenate((group, alone))
    order = np.argsort(owner, kind="stable")  # headers come last of their block
    return writes[order], owner[order], wanted[order], vectors
