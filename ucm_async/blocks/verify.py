"""Whether a stored block is what its own header says: by that alone, whatever geometry or codec it has. Pure."""

from __future__ import annotations

import numpy as np

from ..native import crc32c
from ..types import U8
from .header import CHECKSUM_FROM, ENTRY, HEADER, MAGIC, header_bytes, used_bytes

__all__ = ["verify_block"]

VERSIONS = (1,)
ALGORITHMS = (1,)


def verify_block(stored: U8, block_id: bytes, fingerprint: bytes) -> str:
    """Verify a block: its header, its place, and the checksum of every shard.

    Parameters
    ----------
    stored
        uint8, shape (n,): the block as it is stored, from its header to the end of its padding.
    block_id, fingerprint
        What the header must name: the block whose place this is, and the namespace, 16 bytes each.

    Returns
    -------
    str
        What is wrong; empty if nothing is. The padding at the end is covered by nothing and not looked at.
    """
    if len(stored) < HEADER.itemsize:
        return f"{len(stored)} bytes are no header"
    head = stored[: HEADER.itemsize].view(HEADER)[0]
    shards = int(head["shard_count"])
    used = used_bytes(shards)
    if bytes(head["magic"]) != MAGIC:
        return "no block header"
    if used > len(stored) or int(head["header_checksum"]) != crc32c(stored[CHECKSUM_FROM:used]):
        return "the header's checksum is wrong"
    if int(head["version"]) not in VERSIONS:
        return f"an unknown format version, {int(head['version'])}"
    if int(head["checksum_algorithm"]) not in ALGORITHMS:
        return f"an unknown checksum algorithm, {int(head['checksum_algorithm'])}"
    if head["block_id"].tobytes() != block_id:
        return f"it is block {head['block_id'].tobytes().hex()}"
    if head["namespace"].tobytes() != fingerprint:
        return "it is of another namespace"
    return _verify_shards(stored, used, int(head["header_bytes"]), stored[HEADER.itemsize : used].view(ENTRY))


def _verify_shards(stored: U8, used: int, data_from: int, entries: np.ndarray[tuple[int], np.dtype[np.void]]) -> str:
    if data_from != header_bytes(len(entries)) or stored[used:data_from].any():
        return "the header's padding is not zero"
    starts = entries["offset"].astype(np.int64)
    stops = starts + entries["stored_length"]
    if (starts < data_from).any() or (starts[1:] < stops[:-1]).any():
        return "the header's offsets are wrong"
    end = int(stops.max(initial=data_from))
    if end > len(stored):
        return f"cut short: {len(stored)} of {end} bytes"
    for shard, (start, stop, checksum) in enumerate(zip(starts, stops, entries["checksum"].tolist(), strict=True)):
        if crc32c(stored[start:stop]) != checksum:
            return f"the checksum of shard {shard} is wrong"
    return ""
