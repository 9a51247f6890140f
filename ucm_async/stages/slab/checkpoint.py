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

__all__ = ["CHECKPOINT_NAME", "Checkpoint", "pack_checkpoint", "unpack_checkpoint"]

CHECKPOINT_NAME: Final = "checkpoint"

MAGIC: Final = b"UCMSLABC"
VERSION: Final = 4
_HEAD: Final = np.dtype(
    [
        ("magic", "S8"),
        ("checksum", "<u4"),  # CRC-32C of everything from `version` on
        ("version", "<u4"),
        ("namespace", "u1", 16),
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
    segment_slots
        Slots of a segment.
    segments, slot_bytes
        int64, shape (s,): the numbers of the segments that are there, ascending, and the bytes of their slots.
    slots
        int64, shape (n,): those that hold a block, ascending.
    ids
        uint8, shape (n, 16).
    lost
        uint8, shape (n,): 1 for a block that a failed sync may have lost; see `syncing`.
    doubtful
        Whether blocks may be torn that it knows from another checkpoint, or from headers; see `doubts`.
    """

    segment_slots: int
    segments: I64
    slot_bytes: I64
    slots: I64
    ids: U8
    lost: U8
    doubtful: bool = False


def pack_checkpoint(checkpoint: Checkpoint, namespace: bytes) -> bytes:
    """Return the content of the file."""
    head = np.zeros(1, dtype=_HEAD)
    head["magic"] = MAGIC
    head["version"] = VERSION
    head["namespace"] = np.frombuffer(namespace, dtype=np.uint8)
    head["slots"] = checkpoint.segment_slots
    head["segments"] = len(checkpoint.segments)
    head["blocks"] = len(checkpoint.slots)
    head["doubtful"] = checkpoint.doubtful
    numbers = (checkpoint.segments, checkpoint.slot_bytes, checkpoint.slots)
    body = b"".join(column.astype("<u4").tobytes() for column in numbers)
    body += checkpoint.ids.tobytes() + checkpoint.lost.tobytes()
    head["checksum"] = crc32c(body, crc32c(head.tobytes()[_CHECKSUM_FROM:]))
    return head.tobytes() + body


def unpack_checkpoint(content: bytes, namespace: bytes) -> Checkpoint | None:
    """Return what a file says; None if it is damaged, or not of this store."""
    if len(content) < _HEAD.itemsize:
        return None
    head = np.frombuffer(content, dtype=_HEAD, count=1)[0]
    segments, blocks = int(head["segments"]), int(head["blocks"])
    known = (head["magic"], head["version"]) == (MAGIC, VERSION)
    if not known or head["namespace"].tobytes() != namespace:
        return None
    if len(content) != _HEAD.itemsize + 8 * segments + (4 + BLOCK_ID_BYTES + 1) * blocks:
        return None
    if crc32c(content[_CHECKSUM_FROM:]) != head["checksum"]:
        return None
    numbers = np.frombuffer(content, dtype="<u4", count=2 * segments + blocks, offset=_HEAD.itemsize).astype(np.int64)
    rest = np.frombuffer(content, dtype=np.uint8, offset=_HEAD.itemsize + 4 * len(numbers))
    return Checkpoint(
        int(head["slots"]),
        numbers[:segments],
        numbers[segments : 2 * segments],
        numbers[2 * segments :],
        rest[: BLOCK_ID_BYTES * blocks].reshape(blocks, BLOCK_ID_BYTES),
        rest[BLOCK_ID_BYTES * blocks :],
        bool(head["doubtful"]),
    )
