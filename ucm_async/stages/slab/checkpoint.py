"""The index of a directory while no store is open: written by the last one that closes, used by the next. Pure.

Some numbers, then for each stored block its slot and its id, all under one checksum. It is a shortcut and no truth:
where it is missing, or does not fit, headers are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ...native import crc32c
from ...types import BLOCK_ID_BYTES, I64, U8
from .layout import SlabGeometry

__all__ = ["CHECKPOINT_NAME", "Checkpoint", "pack_checkpoint", "unpack_checkpoint"]

CHECKPOINT_NAME: Final = "checkpoint"

MAGIC: Final = b"UCMSLABC"
VERSION: Final = 2
_HEAD: Final = np.dtype(
    [
        ("magic", "S8"),
        ("checksum", "<u4"),  # CRC-32C of everything from `version` on
        ("version", "<u4"),
        ("namespace", "u1", 16),
        ("slot_bytes", "<u8"),
        ("slots", "<u4"),
        ("segments", "<u4"),
        ("blocks", "<u8"),
        ("doubtful", "<u8"),
    ]
)
_CHECKSUM_FROM: Final = 12


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint says.

    Attributes
    ----------
    geometry
        Of the segments.
    segments
        int64, shape (s,): the numbers of those that are there, ascending.
    slots
        int64, shape (n,): those that hold a block, ascending.
    ids
        uint8, shape (n, 16).
    doubtful
        Whether blocks may be torn that it knows from another checkpoint, or from headers; see `doubts`.
    """

    geometry: SlabGeometry
    segments: I64
    slots: I64
    ids: U8
    doubtful: bool = False


def pack_checkpoint(checkpoint: Checkpoint, namespace: bytes) -> bytes:
    """Return the content of the file."""
    head = np.zeros(1, dtype=_HEAD)
    head["magic"] = MAGIC
    head["version"] = VERSION
    head["namespace"] = np.frombuffer(namespace, dtype=np.uint8)
    head["slot_bytes"] = checkpoint.geometry.slot_bytes
    head["slots"] = checkpoint.geometry.slots
    head["segments"] = len(checkpoint.segments)
    head["blocks"] = len(checkpoint.slots)
    head["doubtful"] = checkpoint.doubtful
    columns = (checkpoint.segments.astype("<u4"), checkpoint.slots.astype("<u4"), checkpoint.ids)
    body = b"".join(column.tobytes() for column in columns)
    head["checksum"] = crc32c(body, crc32c(head.tobytes()[_CHECKSUM_FROM:]))
    return head.tobytes() + body


def unpack_checkpoint(content: bytes, slot_bytes: int, namespace: bytes) -> Checkpoint | None:
    """Return what a file says; None if it is damaged, or not of this store."""
    if len(content) < _HEAD.itemsize:
        return None
    head = np.frombuffer(content, dtype=_HEAD, count=1)[0]
    segments, blocks = int(head["segments"]), int(head["blocks"])
    known = (head["magic"], head["version"], head["slot_bytes"]) == (MAGIC, VERSION, slot_bytes)
    if not known or head["namespace"].tobytes() != namespace:
        return None
    if len(content) != _HEAD.itemsize + 4 * segments + (4 + BLOCK_ID_BYTES) * blocks:
        return None
    if crc32c(content[_CHECKSUM_FROM:]) != head["checksum"]:
        return None
    numbers = np.frombuffer(content, dtype="<u4", count=segments + blocks, offset=_HEAD.itemsize)
    ids = np.frombuffer(content, dtype=np.uint8, offset=_HEAD.itemsize + numbers.nbytes)
    return Checkpoint(
        SlabGeometry(int(head["slot_bytes"]), int(head["slots"])),
        numbers[:segments].astype(np.int64),
        numbers[segments:].astype(np.int64),
        ids.reshape(blocks, BLOCK_ID_BYTES),
        bool(head["doubtful"]),
    )
