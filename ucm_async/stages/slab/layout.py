"""Where a block lies: segments, their first pages, and slots. Pure; told in docs/design/slab_format.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from ...blocks.header import HEADER_ALIGN
from ...native import crc32c
from ...types import I64

__all__ = [
    "GONE",
    "PAGE_BYTES",
    "SlabGeometry",
    "check_segment",
    "pack_segment",
    "segment_name",
    "segment_number",
]

PAGE_BYTES: Final = HEADER_ALIGN
"""Of the page that a segment begins with; slots begin at multiples of it."""

GONE: Final = b"UCMGONE!"
"""How a slot begins whose block must not come back when headers are read."""

MAGIC: Final = b"UCMSLABS"
VERSION: Final = 1

SEGMENT_BYTES_MAX: Final = 256 << 20
SEGMENT_SHARE: Final = 16
"""A segment takes at most one part in so many of the space that a store may have: so much, at most, stays unused."""

_SEGMENT: Final = np.dtype(
    [
        ("magic", "S8"),
        ("checksum", "<u4"),  # CRC-32C of the page from `version` on
        ("version", "<u4"),
        ("namespace", "u1", 16),
        ("number", "<u4"),
        ("slots", "<u4"),
        ("slot_bytes", "<u8"),
    ]
)
_CHECKSUM_FROM: Final = 12
_NAME: Final = re.compile(r"(\d{6})\.slab")


@dataclass(frozen=True, slots=True)
class SlabGeometry:
    """How the segments of a directory are cut; all of them alike.

    Attributes
    ----------
    slot_bytes
        Of a slot, a multiple of `PAGE_BYTES`.
    slots
        Of a segment. Slot numbers go on from one segment to the next.
    """

    slot_bytes: int
    slots: int

    @classmethod
    def for_space(cls, slot_bytes: int, nbytes: int) -> SlabGeometry:
        """Choose how segments are cut for a store that may have `nbytes` of space."""
        segment = min(SEGMENT_BYTES_MAX, nbytes // SEGMENT_SHARE)
        return cls(slot_bytes, max(1, (segment - PAGE_BYTES) // slot_bytes))

    @classmethod
    def of_file(cls, slot_bytes: int, nbytes: int) -> SlabGeometry | None:
        """Conclude from the length of a segment's file how it is cut; None if it has no slot."""
        slots = (nbytes - PAGE_BYTES) // slot_bytes
        return cls(slot_bytes, slots) if slots > 0 else None

    @property
    def segment_bytes(self) -> int:
        """Length of a segment's file."""
        return PAGE_BYTES + self.slots * self.slot_bytes

    def offset(self, slots: I64) -> I64:
        """Return where slots begin in the files of their segments: int64, the shape of `slots`."""
        return PAGE_BYTES + slots % self.slots * self.slot_bytes

    def first(self, segment: int) -> int:
        """Return the number of the first slot of a segment."""
        return segment * self.slots


def segment_name(number: int) -> str:
    """Return the file name of a segment."""
    return f"{number:06d}.slab"


def segment_number(name: str) -> int:
    """Return the number of the segment whose file has this name, -1 if it is no such name."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else -1


def pack_segment(geometry: SlabGeometry, namespace: bytes, number: int) -> bytes:
    """Return the first page of a segment."""
    page = np.zeros(PAGE_BYTES, dtype=np.uint8)
    head = page[: _SEGMENT.itemsize].view(_SEGMENT)[0]
    head["magic"] = MAGIC
    head["version"] = VERSION
    head["namespace"] = np.frombuffer(namespace, dtype=np.uint8)
    head["number"] = number
    head["slots"] = geometry.slots
    head["slot_bytes"] = geometry.slot_bytes
    head["checksum"] = crc32c(page[_CHECKSUM_FROM:])
    return page.tobytes()


def check_segment(page: bytes, slot_bytes: int, namespace: bytes, number: int) -> tuple[SlabGeometry | None, str]:
    """Check the first page of a segment; returns its geometry, or None and what is wrong with it."""
    if len(page) < PAGE_BYTES:
        return None, "it has no first page"
    head = np.frombuffer(page, dtype=_SEGMENT, count=1)[0]
    geometry = SlabGeometry(int(head["slot_bytes"]), int(head["slots"]))
    tests = {
        "its first page is none of a segment": head["magic"] == MAGIC,
        "the checksum of its first page is wrong": head["checksum"] == crc32c(page[_CHECKSUM_FROM:PAGE_BYTES]),
        "it has an unknown format version": head["version"] == VERSION,
        "it belongs to another namespace": head["namespace"].tobytes() == namespace,
        "it is another segment": head["number"] == number,
        f"its slots have {geometry.slot_bytes} bytes and must have {slot_bytes}": geometry.slot_bytes == slot_bytes,
        "it has no slots": geometry.slots > 0,
    }
    why = next((text for text, passed in tests.items() if not passed), "")
    return (None if why else geometry), why
