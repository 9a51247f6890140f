"""What a simulated disk holds: files and directories, each as reads show it and as it is on the medium.

What is not synced is kept as a list of changes. A power cut keeps any subset of them: of writes any sectors, of
changes to directories any of those that are not ordered by a sync. A rename is one change. That is less than any real
file system promises, and all that POSIX does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final, TypeAlias

__all__ = ["PAGE_BYTES", "Directory", "Edit", "File", "Node", "survivors", "synced_by"]

PAGE_BYTES: Final = 4096
"""Space is given out in units of this."""


class File:
    """A file's bytes.

    Attributes
    ----------
    content
        As reads show them.
    links, opens
        Names and descriptors it has; with neither, its space is free.
    lock
        Who holds its ``flock``.
    reserved
        Bytes allocated, whether written or not.
    small
        Whether it is a note or a lock, beside the data.
    written
        Says in which order files were written last.
    """

    __slots__ = ("_medium", "_unsynced", "content", "links", "lock", "opens", "reserved", "small", "written")

    def __init__(self) -> None:
        self.content = bytearray()
        self.links = 0
        self.opens = 0
        self.lock: object = None
        self.reserved = 0
        self.small = False
        self.written = 0
        self._medium = bytearray()
        self._unsynced: list[tuple[int, bytes, int]] = []  # where, what, and how long the file is at least

    @property
    def unsynced(self) -> int:
        """How many changes a power cut may lose."""
        return len(self._unsynced)

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`."""
        _put(self.content, offset, data, offset + len(data))
        self._unsynced.append((offset, data, offset + len(data)))

    def extend(self, size: int) -> None:
        """Make the file at least `size` bytes long, with zeros."""
        if size > len(self.content):
            _put(self.content, 0, b"", size)
            self._unsynced.append((0, b"", size))

    def truncate(self, size: int) -> None:
        """Cut the file, on the medium as well: for tests, and for what is damaged by hand."""
        del self.content[size:], self._medium[size:]
        self._unsynced.clear()

    def sync(self) -> None:
        """Bring everything to the medium."""
        for offset, data, size in self._unsynced:
            _put(self._medium, offset, data, size)
        self._unsynced.clear()

    def forget_unsynced(self) -> None:
        """Keep what is not synced from ever reaching the medium, though reads show it."""
        self._unsynced.clear()

    def flip(self, bit: int) -> None:
        """Flip a bit, on the medium as well."""
        for octets in (self.content, self._medium):
            if bit // 8 < len(octets):
                octets[bit // 8] ^= 1 << bit % 8

    def cut_power(self, generator: random.Random, keep: float, sector: int, stale: bytes) -> None:
        """Lose what is not synced, except for sectors that happen to be on the medium.

        Parameters
        ----------
        keep
            The share of sectors that are.
        stale
            What lies where the file was extended and never written: some other file's old bytes, or nothing for zeros.
        """
        for offset, data, size in self._unsynced:
            if not data and generator.random() < keep:
                self._extend_medium(size, stale)
            for start, piece in _sectors(offset, data, sector):
                if generator.random() < keep:
                    self._extend_medium(start, stale)
                    _put(self._medium, start, piece, 0)
        self._unsynced.clear()
        self.content = bytearray(self._medium)
        self.lock = None
        self.opens = 0

    def _extend_medium(self, size: int, stale: bytes) -> None:
        missing = size - len(self._medium)
        if missing > 0:
            old = stale[len(self._medium) : size]
            self._medium += old + bytes(missing - len(old))


class Directory:
    """Names and what they stand for, as reads show them and on the medium."""

    __slots__ = ("entries", "lock", "medium", "opens")

    def __init__(self) -> None:
        self.entries: dict[str, Node] = {}
        self.medium: dict[str, Node] = {}
        self.lock: object = None
        self.opens = 0


Node: TypeAlias = File | Directory


@dataclass(frozen=True, slots=True)
class Edit:
    """One change to directories, which happens as a whole or not at all.

    Attributes
    ----------
    steps
        Directory, name, and what the name stands for from then on; None: for nothing.
    """

    steps: tuple[tuple[Directory, str, Node | None], ...] = field(default=())

    def to_view(self) -> None:
        """Make it visible."""
        for directory, name, node in self.steps:
            _set(directory.entries, name, node)

    def to_medium(self) -> None:
        """Make it last."""
        for directory, name, node in self.steps:
            _set(directory.medium, name, node)


def synced_by(directory: Directory, journal: list[Edit]) -> tuple[list[Edit], list[Edit]]:
    """Split a journal at a sync of `directory`: what must last now, and what may still be lost.

    The first are the edits of that directory and, because an order is kept among edits of one name, those before them
    that touch a name which they touch.
    """
    names: set[tuple[int, str]] = set()
    synced: list[Edit] = []
    rest: list[Edit] = []
    for edit in reversed(journal):
        touched = {(id(where), name) for where, name, _ in edit.steps}
        if any(where is directory for where, _, _ in edit.steps) or names & touched:
            names |= touched
            synced.append(edit)
        else:
            rest.append(edit)
    return synced[::-1], rest[::-1]


def survivors(journal: list[Edit], generator: random.Random, keep: float) -> list[Edit]:
    """Return the edits that happen to be on the medium when the power is cut, in order."""
    return [edit for edit in journal if generator.random() < keep]


def _set(entries: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


def _put(octets: bytearray, offset: int, data: bytes, size: int) -> None:
    """Write into `octets`, which is then at least `size` long."""
    missing = max(size, offset + len(data)) - len(octets)
    if missing > 0:
        octets += bytes(missing)
    octets[offset : offset + len(data)] = data


def _sectors(offset: int, data: bytes, sector: int) -> list[tuple[int, bytes]]:
    """Cut `data` at the boundaries of sectors."""
    out = []
    at = 0
    while at < len(data):
        length = sector - (offset + at) % sector
        out.append((offset + at, data[at : at + length]))
        at += length
    return out
