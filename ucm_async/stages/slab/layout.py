"""Where a block lies: segments, their first pages, and slots. Pure; told in docs/design/slab_format.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from ...blocks.header import HEADER_ALIGN
from ...blocks.layout import BlockLayout
from ...native import crc32c
from ...types import I64

__all__ = [
    "GONE",
    "PAGE_BYTES",
    "SegmentPage",
    "SlabGeometry",
    "check_segment",
    "pack_segment",
    "segment_name",
    "segment_number",
    "slot_sizes",
]

PAGE_BYTES: Final = HEADER_ALIGN
"""Of the page that a segment begins with; slots begin at multiples of it."""

GONE: Final = b"UCMGONE!"
"""How a slot begins whose block must not come back when headers are read."""

MAGIC: Final = b"UCMSLABS"
VERSION: Final = 2

CLASSES: Final = 32
"""Classes of slots: for what a codec leaves of a block, in parts of so many. At most as many as `SlotTable` has kinds.

Equal parts waste at most one of them. In a geometric row, whose relative waste is even, the steps are widest where
lossless codecs end, at two thirds of a block.
"""

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
        ("lost_s", "<u8"),
    ]
)
_CHECKSUM_FROM: Final = 12
_NAME: Final = re.compile(r"(\d{6})\.slab")


def slot_sizes(layout: BlockLayout) -> tuple[int, ...]:
    """Return the bytes of the slots of each class, ascending: a header, and parts of a block in whole pages.

    The last is that of a block as it is.
    """
    pages = {-(-layout.block_size * part // (CLASSES * PAGE_BYTES)) for part in range(1, CLASSES + 1)}
    return tuple(layout.header_bytes + PAGE_BYTES * count for count in sorted(pages))


@dataclass(frozen=True, slots=True)
class SlabGeometry:
    """How the segments of a directory are cut.

    All have as many slots; those of one segment are of one class. So a slot's number tells its segment, and its place
    there, whatever classes there are.

    Attributes
    ----------
    sizes
        Bytes of a slot by class, ascending, multiples of `PAGE_BYTES`; see `slot_sizes`.
    slots
        Of a segment. Slot numbers go on from one segment to the next.
    """

    sizes: tuple[int, ...]
    slots: int

    @classmethod
    def for_space(cls, sizes: tuple[int, ...], nbytes: int) -> SlabGeometry:
        """Choose how segments are cut for a store that may have `nbytes` of space."""
        segment = min(SEGMENT_BYTES_MAX, nbytes // SEGMENT_SHARE)
        return cls(sizes, max(1, (segment - PAGE_BYTES) // sizes[-1]))

    @classmethod
    def of_files(cls, sizes: tuple[int, ...], lengths: list[int]) -> SlabGeometry | None:
        """Conclude from the lengths of segments' files how they are cut; None if they cannot be told to be segments.

        Of several answers, which takes blocks of one length, the one with the largest slots.
        """
        longest = max(lengths, default=0) - PAGE_BYTES
        for nbytes in reversed(sizes):
            found = cls(sizes, longest // nbytes)
            if found.slots > 0 and all(length in map(found.segment_bytes, range(len(sizes))) for length in lengths):
                return found
        return cls(sizes, longest // sizes[-1]) if longest >= sizes[-1] else None

    @property
    def largest(self) -> int:
        """The class of blocks that are stored as they are."""
        return len(self.sizes) - 1

    def segment_bytes(self, kind: int) -> int:
        """Return the length of the file of a segment of a class."""
        return PAGE_BYTES + self.slots * self.sizes[kind]

    def kind_of_file(self, nbytes: int) -> int:
        """Return the class of a segment that has, or had before it was cut short, a file of `nbytes`."""
        return next((kind for kind in range(self.largest) if self.segment_bytes(kind) >= nbytes), self.largest)

    def kinds_for(self, nbytes: I64) -> I64:
        """Return the smallest class that holds blocks of `nbytes` bytes, header and all: int64, their shape."""
        return np.asarray(np.searchsorted(self.sizes, nbytes), dtype=np.int64)

    def first(self, segment: int) -> int:
        """Return the number of the first slot of a segment."""
        return segment * self.slots

    def offset(self, slots: I64, kind: int) -> I64:
        """Return where slots begin in the files of their segments, which are of one class: int64, their shape."""
        return PAGE_BYTES + slots % self.slots * self.sizes[kind]


def segment_name(number: int) -> str:
    """Return the file name of a segment."""
    return f"{number:06d}.slab"


def segment_number(name: str) -> int:
    """Return the number of the segment whose file has this name, -1 if it is no such name."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else -1


@dataclass(frozen=True, slots=True)
class SegmentPage:
    """What the first page of a segment says.

    Attributes
    ----------
    slots, slot_bytes
        How it is cut; 0 if the page is not to be trusted.
    lost_s
        Until when, in seconds since the epoch, something was in it that a failed sync may have lost; 0: nothing was.
    why
        What is wrong with it, empty if nothing is.
    version
        Another version of the format, in which the page is right; 0 otherwise.
    """

    slots: int
    slot_bytes: int
    lost_s: int = 0
    why: str = ""
    version: int = 0


def pack_segment(slots: int, slot_bytes: int, namespace: bytes, number: int, lost_s: int = 0) -> bytes:
    """Return the first page of a segment."""
    page = np.zeros(PAGE_BYTES, dtype=np.uint8)
    head = page[: _SEGMENT.itemsize].view(_SEGMENT)[0]
    head["magic"] = MAGIC
    head["version"] = VERSION
    head["namespace"] = np.frombuffer(namespace, dtype=np.uint8)
    head["number"] = number
    head["slots"] = slots
    head["slot_bytes"] = slot_bytes
    head["lost_s"] = lost_s
    head["checksum"] = crc32c(page[_CHECKSUM_FROM:])
    return page.tobytes()


def check_segment(page: bytes, sizes: tuple[int, ...] | None, namespace: bytes, number: int) -> SegmentPage:
    """Check the first page of a segment, whose slots must have one of `sizes`, None: any whole number of pages."""
    if len(page) < PAGE_BYTES:
        return SegmentPage(0, 0, why="it has no first page")
    head = np.frombuffer(page, dtype=_SEGMENT, count=1)[0]
    slots, slot_bytes, version = int(head["slots"]), int(head["slot_bytes"]), int(head["version"])
    sound = {
        "its first page is none of a segment": head["magic"] == MAGIC,
        "the checksum of its first page is wrong": head["checksum"] == crc32c(page[_CHECKSUM_FROM:PAGE_BYTES]),
    }
    can_be = slot_bytes in sizes if sizes else slot_bytes > 0 and slot_bytes % PAGE_BYTES == 0
    tests = {
        f"it has format version {version}, and this one reads {VERSION}": version == VERSION,
        "it belongs to another namespace": head["namespace"].tobytes() == namespace,
        "it is another segment": head["number"] == number,
        f"no slots have {slot_bytes} bytes": can_be,
        "it has no slots": slots > 0,
    }
    why = next((text for text, passed in (sound | tests).items() if not passed), "")
    if why:
        return SegmentPage(0, 0, 0, why, version if all(sound.values()) and version != VERSION else 0)
    return SegmentPage(slots, slot_bytes, int(head["lost_s"]))
