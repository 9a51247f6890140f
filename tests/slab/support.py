"""What tests of slabs share: slots on the disk, looked at and written past the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096
MAGIC = b"UCMKVBLK"
GONE = b"UCMGONE!"


@dataclass(frozen=True)
class RawSlot:
    """A slot as it lies on the disk."""

    path: Path
    offset: int
    nbytes: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.nbytes)

    def write(self, content: bytes, at: int = 0) -> None:
        with self.path.open("r+b") as file:
            file.seek(self.offset + at)
            file.write(content)


def slots_below(directory: Path) -> Iterator[RawSlot]:
    """Every slot of every segment below a directory, as the segments' first pages tell them."""
    for path in sorted(directory.glob("**/slab/*.slab")):
        with path.open("rb") as file:
            page = file.read(PAGE)
        slots, nbytes = int.from_bytes(page[36:40], "little"), int.from_bytes(page[40:48], "little")
        for number in range(slots):
            yield RawSlot(path, PAGE + number * nbytes, nbytes)


def find_block(directory: Path, block_id: bytes) -> RawSlot | None:
    """The slot whose header names the block; there is at most one."""
    found = []
    for slot in slots_below(directory):
        with slot.path.open("rb") as file:
            file.seek(slot.offset)
            head = file.read(32)
        if head[:8] == MAGIC and head[16:] == block_id:
            found.append(slot)
    assert len(found) <= 1
    return found[0] if found else None
