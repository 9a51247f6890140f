"""A simulated disk with a file system on it, which keeps its promises to the letter and not one more.

Everything here happens at once; how long it takes is the engine's business. Failures are OSErrors, as of `os`.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

from .faults import Faults
from .files import PAGE_BYTES, Directory, Edit, File, Node, survivors, synced_by
from .namedmemory import NamedObject
from .sharedmemory import Segment

__all__ = ["OpenFile", "SimulatedDisk"]

RENAME_NOREPLACE: Final = 1
AT_REMOVEDIR: Final = 0x200
STALE_MAX: Final = 8
"""Contents of removed files that are remembered: what is extended and never written may show them after a power cut."""


class OpenFile:
    """What a descriptor stands for."""

    __slots__ = ("direct", "node", "readable", "writable")

    def __init__(self, node: Node, flags: int) -> None:
        access = flags & os.O_ACCMODE
        self.node = node
        self.readable = access != os.O_WRONLY
        self.writable = access != os.O_RDONLY
        self.direct = bool(flags & os.O_DIRECT)

    @property
    def file(self) -> File:
        """The file; EISDIR if it is a directory."""
        if isinstance(self.node, Directory):
            raise _error(errno.EISDIR)
        return self.node


class SimulatedDisk:
    """Files, directories, and what of them is on the medium.

    Parameters
    ----------
    faults
        Decides what goes wrong.
    sector_bytes
        What the medium writes as a whole: 512 or 4096.
    capacity_bytes
        Space for data, in pages of 4096 bytes.
    direct
        Whether files can be opened with O_DIRECT.

    Attributes
    ----------
    root
        The root directory.
    used_bytes, used_bytes_max
        Space that files take, now and at most.
    lies
        How many files may have been damaged by faults that nobody reported.
    hung_until_s
        Nothing completes before this time, on the clock of the loop.
    power_cuts
        How often the power was cut.
    writes_at_start
        How many writes there had been when the machine started last.
    on_growth
        Called whenever a file has got more space, notes and locks left out.
    shared
        What the machine's processes share beside the disk; a power cut takes it.
    named
        Memory that they share by name; it goes as well.
    alive, processes
        The pids of those that live, and how many there ever were.
    """

    def __init__(
        self, faults: Faults, *, sector_bytes: int = 512, capacity_bytes: int = 1 << 40, direct: bool = True
    ) -> None:
        self.faults = faults
        self.sector_bytes = sector_bytes
        self.capacity_bytes = capacity_bytes
        self.direct = direct
        self.root = Directory()
        self.used_bytes = 0
        self.used_bytes_max = 0
        self.lies = 0
        self.hung_until_s = 0.0
        self.power_cuts = 0
        self.writes_at_start = 0
        self.on_growth: Callable[[], None] = _nothing
        self.shared: dict[str, Segment] = {}
        self.named: dict[str, NamedObject] = {}
        self.alive: set[int] = set()
        self.processes = 0
        self._writes = 0
        self._journal: list[Edit] = []
        self._stale: list[bytes] = []

    @property
    def generator(self) -> random.Random:
        """The one source of chance."""
        return self.faults.generator

    # ---- names

    def find(self, base: Directory, path: str) -> Node:
        """Return what `path` stands for; ENOENT or ENOTDIR if nothing."""
        directory, name = self._walk(base, path)
        if not name:
            return directory
        node = directory.entries.get(name)
        if node is None:
            raise _error(errno.ENOENT, path)
        return node

    def _walk(self, base: Directory, path: str) -> tuple[Directory, str]:
        """Return the directory of the last part of `path`, and that part: "" for the directory itself."""
        if not path:
            raise _error(errno.ENOENT)
        directory = self.root if path[0] == "/" else base
        *above, last = _parts(path)
        for part in above:
            node = directory.entries.get(part)
            if node is None:
                raise _error(errno.ENOENT, path)
            if not isinstance(node, Directory):
                raise _error(errno.ENOTDIR, path)
            directory = node
        return directory, last

    def _change(self, *steps: tuple[Directory, str, Node | None]) -> None:
        edit = Edit(steps)
        edit.to_view()
        self._journal.append(edit)

    def mkdir(self, base: Directory, path: str) -> None:
        """Make a directory."""
        directory, name = self._walk(base, path)
        if not name or name in directory.entries:
            raise _error(errno.EEXIST, path)
        self._change((directory, name, Directory()))

    def open(self, base: Directory, path: str, flags: int) -> OpenFile:
        """Open a file or a directory; O_CREAT, O_EXCL, O_TRUNC, O_DIRECTORY and O_DIRECT mean what they mean."""
        if flags & os.O_DIRECT and not self.direct:
            raise _error(errno.EINVAL, path)
        directory, name = self._walk(base, path)
        node: Node | None = directory.entries.get(name) if name else directory
        if node is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT, path)
            node = File()
            node.links = 1
            self._change((directory, name, node))
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise _error(errno.EEXIST, path)
        if isinstance(node, Directory) and flags & os.O_ACCMODE != os.O_RDONLY:
            raise _error(errno.EISDIR, path)
        if isinstance(node, File) and flags & os.O_DIRECTORY:
            raise _error(errno.ENOTDIR, path)
        if isinstance(node, File) and flags & os.O_TRUNC:
            self._empty(node)
        node.opens += 1
        return OpenFile(node, flags)

    def _empty(self, file: File) -> None:
        file.truncate(0)
        self.used_bytes -= file.reserved
        file.reserved = 0

    def close(self, opened: OpenFile) -> None:
        """Close what was opened; its lock goes with it."""
        node = opened.node
        node.opens -= 1
        if node.lock is opened:
            node.lock = None
        self._free_if_unused(node)

    def lock(self, opened: OpenFile) -> None:
        """Take the ``flock``; BlockingIOError if somebody else has it."""
        if opened.node.lock not in (None, opened):
            raise _error(errno.EWOULDBLOCK)
        opened.node.lock = opened

    def rename(self, base: Directory, old: str, new: str, flags: int) -> None:
        """``renameat2``: one change, which is there or is not."""
        source, old_name = self._walk(base, old)
        target, new_name = self._walk(base, new)
        node = source.entries.get(old_name)
        if node is None:
            raise _error(errno.ENOENT, old)
        replaced = target.entries.get(new_name)
        if replaced is not None and flags & RENAME_NOREPLACE:
            raise _error(errno.EEXIST, new)
        if replaced is node:
            return
        if isinstance(replaced, Directory):
            raise _error(errno.EISDIR, new)
        self._change((source, old_name, None), (target, new_name, node))
        if replaced is not None:
            self._unlink(replaced)

    def unlink(self, base: Directory, path: str, flags: int = 0) -> None:
        """Remove a name; with ``AT_REMOVEDIR`` that of an empty directory."""
        directory, name = self._walk(base, path)
        node = directory.entries.get(name)
        if node is None:
            raise _error(errno.ENOENT, path)
        if isinstance(node, Directory):
            if not flags & AT_REMOVEDIR:
                raise _error(errno.EISDIR, path)
            if node.entries:
                raise _error(errno.ENOTEMPTY, path)
        elif flags & AT_REMOVEDIR:
            raise _error(errno.ENOTDIR, path)
        self._change((directory, name, None))
        if isinstance(node, File):
            self._unlink(node)

    def _unlink(self, node: File) -> None:
        node.links -= 1
        self._free_if_unused(node)

    def _free_if_unused(self, node: Node) -> None:
        if isinstance(node, File) and node.links <= 0 and node.opens <= 0 and node.reserved:
            self.used_bytes -= node.reserved
            node.reserved = 0
            self._stale = [*self._stale[1 - STALE_MAX :], bytes(node.content)]

    # ---- bytes

    def read(self, opened: OpenFile, offset: int, length: int) -> bytes:
        """Return what is there, less than `length` only at the end of the file."""
        if not opened.readable:
            raise _error(errno.EBADF)
        return bytes(opened.file.content[offset : offset + length])

    def write(self, opened: OpenFile, offset: int, data: bytes) -> int:
        """Write what there is room for; returns how much that was, ENOSPC if nothing."""
        file = self._to_write(opened)
        if not data:
            return 0
        room = self._reserve(file, offset + len(data))
        if room < offset + len(data):
            self.faults.struck["no_space"] += 1
        if room <= offset:
            raise _error(errno.ENOSPC)
        data = data[: room - offset]
        if self.faults.strikes("lost_write"):
            self.lies += 1
            file.extend(offset + len(data))
        elif self.faults.strikes("misdirected_write"):
            self.lies += 2  # who should have got it, and who did
            file.extend(offset + len(data))
            self._misdirect(file, data)
        else:
            file.write(offset, data)
        if not file.small:
            self.on_growth()
        return len(data)

    def allocate(self, opened: OpenFile, offset: int, length: int) -> None:
        """``fallocate``: all of the space, or ENOSPC."""
        file = self._to_write(opened)
        before = file.reserved
        if self._reserve(file, offset + length) < offset + length:
            self.used_bytes -= file.reserved - before
            file.reserved = before
            self.faults.struck["no_space"] += 1
            raise _error(errno.ENOSPC)
        file.extend(offset + length)
        if not file.small:
            self.on_growth()

    def sync(self, opened: OpenFile) -> None:
        """``fsync`` and ``fdatasync``: the bytes of a file, or the names in a directory."""
        node = opened.node
        if isinstance(node, File):
            node.sync()
            return
        synced, self._journal = synced_by(node, self._journal)
        for edit in synced:
            edit.to_medium()

    def fail_to_sync(self, opened: OpenFile) -> None:
        """What a sync with an error leaves: nobody will write it again."""
        if isinstance(opened.node, File):
            opened.node.forget_unsynced()

    def _to_write(self, opened: OpenFile) -> File:
        if not opened.writable:
            raise _error(errno.EBADF)
        self._writes += 1
        opened.file.written = self._writes
        return opened.file

    def _reserve(self, file: File, size: int) -> int:
        """Take space for a file of `size` bytes, or as much as there is; returns the size there is space for."""
        wanted = -(-size // PAGE_BYTES) * PAGE_BYTES
        if wanted <= file.reserved:
            return size
        more = min(wanted - file.reserved, (self.capacity_bytes - self.used_bytes) // PAGE_BYTES * PAGE_BYTES)
        more = max(more, 0)
        file.reserved += more
        self.used_bytes += more
        self.used_bytes_max = max(self.used_bytes_max, self.used_bytes)
        return min(size, file.reserved)

    def _misdirect(self, rightful: File, data: bytes) -> None:
        """Put `data` where it does not belong."""
        generator = self.generator
        files = list(self.files()) or [rightful]
        victim = files[generator.randrange(len(files))]
        sectors = len(victim.content) // self.sector_bytes
        if sectors:
            offset = generator.randrange(sectors) * self.sector_bytes
            victim.write(offset, data[: len(victim.content) - offset])

    def data_bytes(self) -> int:
        """Return how long all files that have a name are together, notes and locks left out."""
        return sum(len(file.content) for file in self.files() if not file.small)

    # ---- what happens to it

    def files(self, below: Directory | None = None) -> Iterator[File]:
        """Every file that has a name, in the order of the directories."""
        for node in (below or self.root).entries.values():
            if isinstance(node, File):
                yield node
            else:
                yield from self.files(node)

    def flip_bit(self) -> None:
        """Flip a bit of one file, at rest."""
        files = [file for file in self.files() if file.content]
        if files:
            file = files[self.generator.randrange(len(files))]
            file.flip(self.generator.randrange(8 * len(file.content)))
            self.faults.struck["flip"] += 1
            self.lies += 1

    def hang(self, until_s: float) -> None:
        """Complete nothing before this time."""
        self.hung_until_s = max(self.hung_until_s, until_s)
        self.faults.struck["hang"] += 1

    def cut_power(self) -> None:
        """Lose what is not on the medium, but for what happens to be. Every process must be dead."""
        generator = self.generator
        keep = generator.choice((0.0, 0.5, 0.5, 1.0))
        for edit in survivors(self._journal, generator, keep):
            edit.to_medium()
        self._journal.clear()
        self.shared.clear()
        self.named.clear()
        self.used_bytes = 0
        seen: set[int] = set()
        self._restore(self.root, seen)
        self.power_cuts += 1
        self.writes_at_start = self._writes
        self.faults.struck["power_cut"] += 1

    def _restore(self, directory: Directory, seen: set[int]) -> None:
        """Show what is on the medium, from `directory` down."""
        directory.entries = dict(directory.medium)
        directory.lock = None
        directory.opens = 0
        for node in directory.entries.values():
            if isinstance(node, Directory):
                self._restore(node, seen)
                continue
            if id(node) in seen:  # a second name that the medium has, as of a link
                node.links += 1
                continue
            seen.add(id(node))
            generator = self.generator
            stale = generator.choice(self._stale) if self._stale and generator.random() < STALE_SHARE else b""
            node.cut_power(generator, generator.choice((0.0, 0.5, 0.9, 1.0)), self.sector_bytes, stale)
            node.links = 1
            node.reserved = -(-len(node.content) // PAGE_BYTES) * PAGE_BYTES
            self.used_bytes += node.reserved


STALE_SHARE: Final = 0.3
"""How often a file that was extended and never written shows old bytes rather than zeros."""


def _nothing() -> None:
    """Nobody is told."""


@lru_cache(maxsize=4096)
def _parts(path: str) -> tuple[str, ...]:
    """Return the names in a path; one that is empty stands for the directory it begins in."""
    return tuple(part for part in path.split("/") if part not in ("", ".")) or ("",)


def _error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)
