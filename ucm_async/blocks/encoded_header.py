"""Headers of blocks whose shards a codec has stored. Pure; the format is told in docs/design/format.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..coding import RAW, EncodedRows, codec_label
from ..engines import requests as rq
from ..engines.chains import addresses_of
from ..native import execute
from ..types import I64, U8, Bools
from .header import (
    CHECKSUM_CRC32C,
    CHECKSUM_FROM,
    ENTRY,
    HEADER,
    MAGIC,
    VERSION,
    header_template,
    used_bytes,
)
from .layout import BlockLayout

__all__ = [
    "FLAG_LOSSY",
    "EncodedCheck",
    "check_encoded_headers",
    "header_checksums",
    "pack_encoded_headers",
    "why_not_plain",
]

FLAG_LOSSY: Final = 1
"""In `flags` of a header: what decodes is not what was dumped, bit for bit."""


def pack_encoded_headers(layout: BlockLayout, ids: U8, namespace: bytes, encoded: EncodedRows) -> U8:
    """Build the headers of encoded blocks, without their own checksums.

    Parameters
    ----------
    layout
        Of the blocks.
    ids, namespace
        As for `ucm_async.blocks.header.pack_headers`.
    encoded
        The shards of each block, shape (n, shards).

    Returns
    -------
    numpy.ndarray
        uint8, shape (n, used_bytes). A block of which no shard shrank, each in its place, has the header of a plain
        one.
    """
    out = np.empty((len(ids), used_bytes(layout.shards)), dtype=np.uint8)
    out[:] = np.frombuffer(header_template(namespace, layout.shard_size, layout.shards), dtype=np.uint8)
    head = out[:, : HEADER.itemsize].view(HEADER)[:, 0]
    shrunk = encoded.codecs != RAW
    some = shrunk.any(axis=1)
    head["block_id"] = ids
    head["codec"] = encoded.codecs[np.arange(len(ids)), shrunk.argmax(axis=1)]
    head["flags"] = np.where(encoded.lossy & some, FLAG_LOSSY, 0)
    head["codec_parameters"] = np.where(some[:, None], encoded.parameters, 0)
    entries = out[:, HEADER.itemsize :].view(ENTRY)
    entries["offset"] = encoded.offsets + layout.header_bytes
    entries["stored_length"] = encoded.lengths
    entries["checksum"] = encoded.checksums
    entries["codec"] = encoded.codecs
    return out


@dataclass(frozen=True, slots=True)
class EncodedCheck:
    """What `check_encoded_headers` found.

    Attributes
    ----------
    good
        Bool, shape (n,).
    why
        Index of a header that is not good -> what is wrong with it.
    encoded
        What the headers say of their shards, shape (n, shards). Meaningless where not good.
    """

    good: Bools
    why: dict[int, str]
    encoded: EncodedRows


def check_encoded_headers(
    layout: BlockLayout, headers: U8, ids: U8, namespace: bytes, own_checksums: npt.NDArray[Any], nbytes: I64
) -> EncodedCheck:
    """Check headers of blocks, plain ones and encoded ones, and read them.

    Parameters
    ----------
    layout, ids, namespace
        As for `pack_encoded_headers`.
    headers
        uint8, shape (n, used_bytes), C-contiguous.
    own_checksums
        The checksums that were computed of ``headers[:, CHECKSUM_FROM:]``, shape (n,).
    nbytes
        int64, shape (n,): bytes that could be read of each block, its header among them.
    """
    head = headers[:, : HEADER.itemsize].view(HEADER)[:, 0]
    entries = headers[:, HEADER.itemsize :].view(ENTRY)
    codecs, lengths = entries["codec"], entries["stored_length"]
    ends = entries["offset"] + lengths
    fingerprint = np.frombuffer(namespace, dtype=np.uint8)
    proper = (entries["raw_length"] == layout.shard_size) & (lengths <= layout.shard_size)
    proper &= (entries["offset"] >= layout.header_bytes) & (entries["offset"] <= layout.file_bytes)
    proper &= (codecs != RAW) | (lengths == layout.shard_size)
    tests = {
        "no block header": head["magic"] == MAGIC,
        "the header's checksum is wrong": head["header_checksum"] == own_checksums,
        "an unknown format version": head["version"] == VERSION,
        "an unknown checksum algorithm": head["checksum_algorithm"] == CHECKSUM_CRC32C,
        "the header names another block": (head["block_id"] == ids).all(axis=1),
        "the header names another namespace": (head["namespace"] == fingerprint).all(axis=1),
        "another number or size of shards, or flags that are not known": (head["header_bytes"] == layout.header_bytes)
        & (head["shard_count"] == layout.shards)
        & (head["flags"] <= FLAG_LOSSY)
        & proper.all(axis=1),
        "the file is truncated: it ends within a shard": (ends <= nbytes[:, None].astype(np.uint64)).all(axis=1),
    }
    good = np.logical_and.reduce(list(tests.values()))
    why = {i: next(text for text, well in tests.items() if not well[i]) for i in np.flatnonzero(~good).tolist()}
    encoded = EncodedRows(
        codecs=codecs.astype(np.uint32),
        offsets=entries["offset"].astype(np.int64) - layout.header_bytes,
        lengths=lengths.astype(np.int64),
        checksums=entries["checksum"].astype(np.uint32),
        parameters=np.ascontiguousarray(head["codec_parameters"]),
        lossy=head["flags"] & FLAG_LOSSY != 0,
    )
    return EncodedCheck(np.asarray(good), why, encoded)


def header_checksums(headers: U8) -> npt.NDArray[np.int64]:
    """Return the checksum of what each header's own covers; int64, shape (n,). A few hundred nanoseconds each."""
    requests = rq.new_requests(len(headers))
    requests["opcode"] = rq.OP_CHECKSUM
    requests["address"] = addresses_of(headers) + np.uint64(CHECKSUM_FROM)
    requests["length"] = headers.shape[1] - CHECKSUM_FROM
    execute(requests)
    sums: npt.NDArray[np.int64] = requests["result"]
    return sums


def why_not_plain(layout: BlockLayout, header: U8, block_id: U8, namespace: bytes) -> str:
    """Tell who does not expect encoded blocks why it cannot read one; empty if nothing like that is there.

    Parameters
    ----------
    header
        uint8, shape (used_bytes,), as it was read.
    block_id
        uint8, shape (16,).
    layout, namespace
        As for `pack_encoded_headers`.
    """
    headers = np.ascontiguousarray(header).reshape(1, -1)
    everything = np.array([layout.file_bytes])
    check = check_encoded_headers(
        layout, headers, block_id.reshape(1, -1), namespace, header_checksums(headers), everything
    )
    number = int(headers[:, : HEADER.itemsize].view(HEADER)["codec"][0, 0])
    if not check.good[0] or number == RAW:
        return ""
    return f"the block is stored by codec {codec_label(number)!r}, which takes the stage Compress to read"
