"""A process of the simulated machine: its descriptors, its memory, its engines, and its sudden death."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

from ...abc import Engine
from ...engines import requests as rq
from ...engines.namedmemory import NamedMemory
from ...engines.sharedmemory import MEMORY_DIRECTORY, SharedMemory
from ...engines.system import System
from ...engines.watching import TableWatcher
from ...native import BlockTable, Mapping
from ...types import U8
from .disk import AT_REMOVEDIR, OpenFile, SimulatedDisk
from .engine import SimulatedEngine
from .faults import Faults
from .files import Directory, File
from .memory import LazyMapping, MemoryWatch, Ranges, put, take, text_at
from .namedmemory import SimulatedNamedMemory, SimulatedTableWatcher
from .sharedmemory import SimulatedMemory
from .trace import Trace

__all__ = ["SimulatedProcess"]

AT_FDCWD: Final = -100
BOOT_S: Final = 1_767_225_600.0
"""When the simulated machine starts, in seconds since the epoch: the beginning of 2026."""

FIRST_DESCRIPTOR: Final = 1 << 20
"""Numbers that no real descriptor has: a real system call on one of them fails."""


class SimulatedProcess(System):
    """What stages use in place of the real system: enter ``use_system(process)`` before a store is opened.

    Parameters
    ----------
    disk
        Shared with other processes.
    name
        In the trace.
    trace
        Where what is done is noted.

    Attributes
    ----------
    dead
        True after `kill`. Whatever a dead process still asks for fails and changes nothing, so that its Python objects
        can be closed as usual.
    memory
        Watches the memory that requests work on.
    dies_in
        So many operations on the disk from now it dies, before the next one; -1: it does not.
    on_death
        Called when it dies.
    on_collecting
        Told the ids of blocks that are collected, uint8 (n, 16), and True before, False afterwards.
    """

    def __init__(self, disk: SimulatedDisk, name: str = "process", trace: Trace | None = None) -> None:
        self.disk = disk
        self.name = name
        self.dead = False
        self.memory = MemoryWatch()
        self.dies_in = -1
        self.on_death: Callable[[], None] = _nothing
        self.on_collecting: Callable[[U8, bool], None] = _nothing
        self._shared: list[SimulatedMemory] = []
        self._trace = trace or Trace()
        self._descriptors: dict[int, OpenFile] = {}
        self._next_descriptor = FIRST_DESCRIPTOR
        self._named: list[SimulatedNamedMemory] = []
        disk.processes += 1
        self._pid = disk.processes
        disk.alive.add(self._pid)
        self._engines: list[SimulatedEngine] = []

    @property
    def faults(self) -> Faults:
        """What goes wrong."""
        return self.disk.faults

    @property
    def descriptors(self) -> int:
        """How many files it has open."""
        return len(self._descriptors)

    def kill(self) -> None:
        """Die, as of SIGKILL: what was written stays in the page cache, and the rest never happens."""
        if self.dead:
            return
        self.dead = True
        self.faults.struck["kill"] += 1
        self._trace.note(self.name, "dies")
        for engine in self._engines:
            engine.abandon()
        for opened in self._descriptors.values():
            self.disk.close(opened)
        self._descriptors.clear()
        for memory in self._shared:
            memory.die()
        for named in self._named:
            named.die()
        self.disk.alive.discard(self._pid)
        self.on_death()

    def _count_down(self) -> None:
        if self.dies_in == 0 and not self.dead:
            self.kill()
        self.dies_in -= self.dies_in > 0

    def _live(self) -> SimulatedDisk:
        """Return the disk, for an operation; a dead process has none."""
        self._count_down()
        if self.dead:
            raise OSError(errno.EIO, "the process is dead")
        return self.disk

    def lives_on(self) -> bool:
        """Count an operation of the kernel that is none on the disk; False if the process is dead by then."""
        self._count_down()
        return not self.dead

    def must_live(self) -> None:
        """Count such an operation; OSError where `lives_on` is False."""
        self._live()

    # ---- ucm_async.engines.system.System

    late_reads_s = 0  # what the dead have begun is over, or never comes

    def exists(self, path: Path) -> bool:
        """See `System.exists`."""
        disk = self._live()
        try:
            disk.find(disk.root, str(path))
        except FileNotFoundError:
            return False
        return True

    def mkdir(self, path: str | Path) -> None:
        """See `System.mkdir`."""
        disk = self._live()
        disk.mkdir(disk.root, str(path))
        self._trace.note(self.name, "mkdir", str(path))

    def mkdir_apart(self, parent: Path, names: Sequence[str]) -> None:
        """See `System.mkdir_apart`; on this disk no place is far from another."""
        for name in names:
            self.mkdir(parent / name)

    def subdirectories(self, path: Path) -> list[str]:
        """See `System.subdirectories`."""
        disk = self._live()
        node = disk.find(disk.root, str(path))
        if isinstance(node, File):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return [name for name, one in node.entries.items() if isinstance(one, Directory)]

    def open(self, path: Path, flags: int) -> int:
        """See `System.open`."""
        self._live()
        return self._keep(self._open_small(str(path), flags))

    def close(self, fd: int) -> None:
        """See `System.close`."""
        if not self.dead:
            self.disk.close(self._descriptors.pop(fd))

    def lock(self, fd: int, *, wait: bool = True) -> None:
        """See `System.lock`. Nobody waits: what takes a lock to others' cost gives it back before they run."""
        self._live().lock(self._descriptors[fd])

    def sync_directory(self, path: Path) -> None:
        """See `System.sync_directory`."""
        disk = self._live()
        opened = disk.open(disk.root, str(path), os.O_RDONLY | os.O_DIRECTORY)
        disk.sync(opened)
        disk.close(opened)

    def write_whole(self, path: Path, content: bytes) -> None:
        """See `System.write_whole`."""
        draft = f"{path}.{self.token(4)}.tmp"
        disk = self._live()
        opened = self._open_small(draft, os.O_WRONLY | os.O_CREAT)
        try:
            if disk.write(opened, 0, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), draft)
            self._live().rename(disk.root, draft, str(path), 0)
        except OSError:
            if not self.dead:
                disk.unlink(disk.root, draft)
            raise
        finally:
            disk.close(opened)

    def _open_small(self, path: str, flags: int) -> OpenFile:
        opened = self.disk.open(self.disk.root, path, flags)
        if isinstance(opened.node, File) and flags & os.O_CREAT:
            opened.node.small = True
        return opened

    def read_whole(self, path: Path) -> bytes | None:
        """See `System.read_whole`."""
        disk = self._live()
        try:
            node = disk.find(disk.root, str(path))
        except FileNotFoundError:
            return None
        return bytes(node.content) if isinstance(node, File) else None

    def unlink(self, path: Path) -> None:
        """See `System.unlink`."""
        disk = self._live()
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(disk.root, str(path))
        self._trace.note(self.name, "unlink", str(path))

    def names(self, path: Path) -> list[str]:
        """See `System.names`."""
        disk = self._live()
        try:
            node = disk.find(disk.root, str(path))
        except FileNotFoundError:
            return []
        return list(node.entries) if isinstance(node, Directory) else []

    def size_and_time(self, path: Path) -> tuple[int, float] | None:
        """See `System.size_and_time`. Of times only the order is right."""
        disk = self._live()
        try:
            node = disk.find(disk.root, str(path))
        except FileNotFoundError:
            return None
        return (len(node.content), BOOT_S + node.written * 1e-6) if isinstance(node, File) else None

    def tree_bytes(self, path: Path) -> int:
        """See `System.tree_bytes`."""
        disk = self._live()
        try:
            node = disk.find(disk.root, str(path))
        except FileNotFoundError:
            return 0
        return sum(len(file.content) for file in disk.files(node)) if isinstance(node, Directory) else 0

    def free_bytes(self, path: Path) -> int:
        """See `System.free_bytes`."""
        disk = self._live()
        return MEMORY_BYTES if path == MEMORY_DIRECTORY else disk.capacity_bytes - disk.used_bytes

    def shared_memory(self, path: Path, nbytes: int) -> SharedMemory:
        """See `System.shared_memory`."""
        memory = SimulatedMemory(self._live().shared, str(path), nbytes)
        self._shared.append(memory)
        return memory

    def named_memory(self, name: str) -> NamedMemory:
        """See `System.named_memory`."""
        self._live()
        memory = SimulatedNamedMemory(name, self)
        self._named.append(memory)
        return memory

    def watch_table(self, table: BlockTable, on_change: Callable[[], None]) -> TableWatcher:
        """See `System.watch_table`."""
        return SimulatedTableWatcher(self, table, on_change)

    def own_identity(self) -> tuple[int, int]:
        """See `System.own_identity`: pids are never used again."""
        return self._pid, 1

    def dead_among(self, identities: Iterable[tuple[int, int, int]]) -> list[int]:
        """See `System.dead_among`; to the dead everybody lives."""
        return [number for number, pid, _ in identities if not self.dead and pid not in self.disk.alive]

    def pid_namespace(self) -> int:
        """See `System.pid_namespace`: there is one."""
        return 1

    def boot_name(self) -> str:
        """See `System.boot_name`."""
        return f"boot {self._live().power_cuts}"

    def started(self) -> float:
        """See `System.started`."""
        return BOOT_S + (self._live().writes_at_start + 0.5) * 1e-6

    def now(self) -> float:
        """See `System.now`: simulated time."""
        return BOOT_S + asyncio.get_running_loop().time()

    @contextlib.contextmanager
    def collecting(self, ids: U8) -> Iterator[None]:
        """See `System.collecting`."""
        self.on_collecting(ids, True)
        try:
            yield
        finally:
            self.on_collecting(ids, False)

    def rmtree(self, path: Path, *, ignore_errors: bool = False) -> None:
        """See `System.rmtree`."""
        try:
            self._remove(str(path))
        except OSError:
            if not ignore_errors:
                raise

    def _remove(self, path: str) -> None:
        disk = self._live()
        node = disk.find(disk.root, path)
        if isinstance(node, File):
            disk.unlink(disk.root, path)
            return
        for name in list(node.entries):
            self._remove(f"{path}/{name}")
        self._live().unlink(disk.root, path, AT_REMOVEDIR)

    def token(self, nbytes: int) -> str:
        """See `System.token`."""
        return self.disk.generator.randbytes(nbytes).hex()

    def direct_reason(self, directory: str | os.PathLike[str]) -> str:
        """See `System.direct_reason`."""
        return "" if self.disk.direct else "this simulated disk has no O_DIRECT"

    def map_memory(self, length: int, fd: int, *, populate: bool = True) -> Mapping:
        """See `System.map_memory`. Pages come when they are touched: a simulated store uses few of them."""
        made: Any = LazyMapping(-1, length) if fd < 0 else Mapping(length, fd)
        return cast(Mapping, made)

    def make_engine(self, name: str, depth: int) -> Engine:
        """See `System.make_engine`."""
        engine = SimulatedEngine(self, depth)
        self._engines.append(engine)
        return engine

    # ---- for chains

    def opened(self, fd: int) -> OpenFile | None:
        """Return what a descriptor stands for."""
        return self._descriptors.get(fd)

    def _keep(self, opened: OpenFile) -> int:
        fd = self._next_descriptor
        self._next_descriptor += 1  # never a number again: who uses one too late is told so
        self._descriptors[fd] = opened
        return fd

    def file_operation(self, row: tuple[int, ...], fd: int) -> int:
        """Run a request that is no transfer, with its descriptor; returns its result."""
        opcode, _, offset, address, length, _, _ = row
        code = opcode & rq.OP_MASK
        self._count_down()
        if self.dead:
            return -errno.EIO
        try:
            if code in (rq.OP_FDATASYNC, rq.OP_FSYNC):
                result = self._sync(fd)
            elif code == rq.OP_CLOSE:
                result = self._close(fd)
            elif self.faults.strikes("file_error"):
                result = -errno.EIO
            elif code == rq.OP_FALLOCATE:
                self.disk.allocate(self._descriptor(fd), offset, length)
                result = 0
            else:
                result = self._path_operation(opcode, fd, offset, text_at(address), length)
        except OSError as error:
            result = -(error.errno or errno.EIO)
        where = text_at(address) if code in _WITH_PATH else fd
        self._trace.note(self.name, _NAMES[code], where, result if code != rq.OP_OPEN else min(result, 0))
        return result

    def _path_operation(self, opcode: int, fd: int, offset: int, path: str, length: int) -> int:
        disk, code, base = self.disk, opcode & rq.OP_MASK, self._base(fd)
        if code == rq.OP_OPEN:
            if opcode & rq.FLAG_CACHED and disk.generator.random() < SHARE_COLD:
                return -errno.EAGAIN
            return self._keep(disk.open(base, path, offset))
        if code == rq.OP_STAT:
            node = disk.find(base, path)
            return len(node.content) if isinstance(node, File) else -errno.EISDIR
        if code == rq.OP_RENAME:
            disk.rename(base, path, text_at(offset), length)
        elif code == rq.OP_UNLINK:
            disk.unlink(base, path, length)
        else:
            disk.mkdir(base, path)
        return 0

    def _base(self, fd: int) -> Directory:
        """Return the directory that paths are relative to."""
        if fd == AT_FDCWD:
            return self.disk.root
        node = self._descriptor(fd).node
        if isinstance(node, File):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    def _descriptor(self, fd: int) -> OpenFile:
        opened = self._descriptors.get(fd)
        if opened is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return opened

    def _close(self, fd: int) -> int:
        opened = self._descriptors.pop(fd, None)
        if opened is None:
            return -errno.EBADF
        self.disk.close(opened)
        return 0

    def _sync(self, fd: int) -> int:
        opened = self._descriptor(fd)
        if self.faults.strikes("sync_error"):
            self.disk.fail_to_sync(opened)
            return -errno.EIO
        self.disk.sync(opened)
        return 0

    def read_piece(self, fd: int, offset: int, ranges: Ranges, at: int, size: int) -> int:
        """Read a piece of a transfer into memory; returns the bytes, or -errno."""
        faults = self.faults
        if faults.strikes("short_read"):
            self.disk.lies += 1  # twice in a row, and the file counts as truncated
            size = size // 2 // SECTOR * SECTOR
        try:
            data = self.disk.read(self._descriptor(fd), offset, size)
        except OSError as error:
            return -(error.errno or errno.EIO)
        failed = faults.strikes("read_error")
        put(ranges, at, data[: len(data) // 2] if failed else data)
        result = -errno.EIO if failed else len(data)
        self._trace.note(self.name, "read", fd, offset, result)
        return result

    def write_piece(self, fd: int, offset: int, ranges: Ranges, at: int, size: int) -> int:
        """Write a piece of a transfer from memory; returns the bytes, or -errno."""
        faults = self.faults
        self._count_down()
        if self.dead:
            return -errno.EIO
        failed = faults.strikes("write_error")
        if failed or faults.strikes("short_write"):
            size = size // 2 // SECTOR * SECTOR
        try:
            written = self.disk.write(self._descriptor(fd), offset, take(ranges, at, at + size))
        except OSError as error:
            return -(error.errno or errno.EIO)
        result = -errno.EIO if failed else written
        self._trace.note(self.name, "write", fd, offset, result)
        return result


def _nothing(*_: object) -> None:
    """Nobody is told."""


SECTOR: Final = 512
MEMORY_BYTES: Final = 1 << 40
"""Room for memory by name; what there is to see of its end needs no simulation."""
SHARE_COLD: Final = 0.1
"""How often an open with FLAG_CACHED would need the disk."""

_WITH_PATH: Final = (rq.OP_OPEN, rq.OP_RENAME, rq.OP_UNLINK, rq.OP_STAT, rq.OP_MKDIR)
_NAMES: Final = {
    rq.OP_FDATASYNC: "fdatasync",
    rq.OP_OPEN: "open",
    rq.OP_CLOSE: "close",
    rq.OP_RENAME: "rename",
    rq.OP_UNLINK: "unlink",
    rq.OP_STAT: "stat",
    rq.OP_MKDIR: "mkdir",
    rq.OP_FALLOCATE: "fallocate",
    rq.OP_FSYNC: "fsync",
}
