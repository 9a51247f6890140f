"""What stages ask of the operating system beside requests, gathered in one object.

The data path is packed requests, and an engine runs them. What is left is little and rare: directories, locks, notes
for people. A stage asks the present `System` for it, and `make_engine` and `make_pool` ask it whether it has engines of
its own. So a simulation (`ucm_async.testing.simulation`) can stand in for the disk below a whole pipeline, and nobody
in the pipeline knows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Final

from ..abc import Engine
from ..native import BlockTable, Mapping
from ..types import U8
from . import processes
from .namedmemory import NamedMemory
from .sharedmemory import SharedMemory
from .watching import TableWatcher

__all__ = ["System", "current_system", "use_system"]


CLOCK_SLACK_S: Final = 60.0
"""So far the clock may be set after the machine has started, without a file of before being taken for one of after."""


_LONG: Final = array("l").itemsize
_FS_IOC_GETFLAGS: Final = 2 << 30 | _LONG << 16 | ord("f") << 8 | 1
_FS_IOC_SETFLAGS: Final = 1 << 30 | _LONG << 16 | ord("f") << 8 | 2
_FS_TOPDIR_FL: Final = 0x0002_0000
"""Of linux/fs.h, as x86 and ARM count the directions of an ioctl; elsewhere the kernel says no."""


class System:
    """The real one: the calls of `os` by their own names, and no engines but the usual ones.

    All of them block; call them in a thread. They raise OSError as `os` does.

    Attributes
    ----------
    late_reads_s
        So many seconds after the end of a process its reads may still arrive in memory that it shared.
    """

    late_reads_s: int = 10  # io_uring's, from a disk that is slow; one that holds a read for longer hangs

    def exists(self, path: Path) -> bool:
        """Tell whether there is something of that name."""
        return path.exists()

    def mkdir(self, path: str | Path) -> None:
        """Make a directory in one that exists."""
        os.mkdir(path)

    def mkdir_apart(self, parent: Path, names: Sequence[str]) -> None:
        """Make directories in `parent`, as far from each other on the disk as the file system can place them.

        ext2 to ext4 do that for the subdirectories of one that has ``FS_TOPDIR_FL`` (ioctl_iflags(2)), and choose the
        places by their names: so they get random ones first. Other file systems do not know the flag.
        """
        with contextlib.suppress(OSError):
            fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                flags = array("l", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(_LONG)))
                fcntl.ioctl(fd, _FS_IOC_SETFLAGS, bytes(array("l", [flags[0] | _FS_TOPDIR_FL])))
            finally:
                os.close(fd)
        for name in names:
            draft = parent / self.token(8)
            os.mkdir(draft)
            draft.rename(parent / name)

    def subdirectories(self, path: Path) -> list[str]:
        """Names of the directories in a directory, links left out."""
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    def names(self, path: Path) -> list[str]:
        """Names of everything in a directory; an empty list if there is no such directory."""
        try:
            return os.listdir(path)
        except FileNotFoundError:
            return []

    def size_and_time(self, path: Path) -> tuple[int, float] | None:
        """Bytes of a regular file and when it was last written, in seconds since the epoch; None if there is none."""
        try:
            about = os.lstat(path)
        except FileNotFoundError:
            return None
        return (about.st_size, about.st_mtime) if stat.S_ISREG(about.st_mode) else None

    def tree_bytes(self, path: Path) -> int:
        """Bytes of all regular files below a directory, as far as they can be seen."""
        total = 0
        for directory, _, files in os.walk(path):
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(directory, name)).st_size
        return total

    def free_bytes(self, path: Path) -> int:
        """Bytes of a file system that are free for everybody."""
        about = os.statvfs(path)
        return about.f_bavail * about.f_frsize

    def shared_memory(self, path: Path, nbytes: int) -> SharedMemory:
        """Return memory that the processes which name the same file share; see `SharedMemory`."""
        return SharedMemory(path, nbytes)

    def named_memory(self, name: str) -> NamedMemory:
        """Open memory of that name, or make it, empty; errors as of `NamedMemory.open`."""
        return NamedMemory.open(name)

    def watch_table(self, table: BlockTable, on_change: Callable[[], None]) -> TableWatcher:
        """Return what tells the running loop of changes in a table that other processes change, too."""
        return TableWatcher(table, on_change)

    def own_identity(self) -> tuple[int, int]:
        """Return pid and start time of this process."""
        return processes.own_identity()

    def dead_among(self, identities: Iterable[tuple[int, int, int]]) -> list[int]:
        """Return the numbers of those that have ended, of (number, pid, start time) each."""
        return processes.dead_among(identities)

    def pid_namespace(self) -> int:
        """Return a number that tells apart the PID namespaces of containers: only within one do pids mean anything."""
        return processes.pid_namespace()

    def boot_name(self) -> str:
        """Return a name that is another one each time the machine starts."""
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def started(self) -> float:
        """Return when the machine was running for sure, as file times tell it: about a minute after its start."""
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + CLOCK_SLACK_S

    def now(self) -> float:
        """Return the time in seconds since the epoch: what file times are compared with."""
        return time.time()

    @contextlib.contextmanager
    def collecting(self, ids: U8) -> Iterator[None]:
        """Be told which blocks, uint8 (n, 16), a collector is removing: whoever keeps books of promises needs it."""
        yield

    def open(self, path: Path, flags: int) -> int:
        """Open a file, with ``O_CLOEXEC``; one that is made is the owner's alone."""
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def lock(self, fd: int, *, wait: bool = True) -> None:
        """Take the ``flock`` of an open file, for this descriptor alone; BlockingIOError if somebody has it."""
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))

    def write_whole(self, path: Path, content: bytes) -> None:
        """Write a small file: afterwards the whole of it is there, or what was there before."""
        draft = path.with_name(f"{path.name}.{self.token(4)}.tmp")
        try:
            draft.write_bytes(content)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def read_whole(self, path: Path) -> bytes | None:
        """Read a small file; None if there is none."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is gone already is as good."""
        path.unlink(missing_ok=True)

    def sync_directory(self, path: Path) -> None:
        """Bring the names in a directory to the medium."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rmtree(self, path: Path, *, ignore_errors: bool = False) -> None:
        """Remove a directory and what is in it; with `ignore_errors` as far as it goes."""
        shutil.rmtree(path, ignore_errors=ignore_errors)

    def token(self, nbytes: int) -> str:
        """Return random hex digits, for a name that nobody else has."""
        return secrets.token_hex(nbytes)

    def direct_reason(self, directory: str | os.PathLike[str]) -> str | None:
        """Say why O_DIRECT is of no use in a directory, "" if it is; None: try it."""
        return None

    def map_memory(self, length: int, fd: int, *, populate: bool = True) -> Mapping:
        """Return memory for an arena; see `ucm_async.native.Mapping`."""
        return Mapping(length, fd, populate=populate)

    def make_engine(self, name: str, depth: int) -> Engine | None:
        """Return an engine in place of the one called `name`, on the running loop; None: take that."""
        return None


_REAL: Final = System()
_current: ContextVar[System] = ContextVar("ucm_async_system", default=_REAL)


def current_system() -> System:
    """Return the system of this context, the real one if nobody said otherwise."""
    return _current.get()


@contextlib.contextmanager
def use_system(system: System) -> Iterator[None]:
    """Have stages that are opened in the ``with`` block ask `system`."""
    before = _current.set(system)
    try:
        yield
    finally:
        _current.reset(before)
