"""One storage backend: its directories, this writer's own corner in it, and what dead writers left there.

::

    BACKEND/
      NAMESPACE-FINGERPRINT/          one namespace, one geometry
        namespace.json                what it is, for people
        00/ … ff/                     committed blocks, one file each
        quarantine/                   files that failed a check
        writers/
          .lock                       held while a writer's directory is made or removed
          WRITER/                     one open store
            0/ … f/                   its files under way
            lock                      held (flock) as long as the store lives

A ``flock`` ends with the process that holds it, however it dies: whoever can take the lock of a writer's directory
may remove it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ...blocks.directory import QUARANTINE, cannot_open, choose_direct, make_directory, namespace_root
from ...config import StoreConfig
from ...engines.system import System, current_system

__all__ = ["QUARANTINE", "Backend", "open_backend", "reclaim_writers", "survey_writers"]

_log = logging.getLogger("ucm_async.posix")

WRITERS: Final = "writers"
WRITER_NAME_BYTES: Final = len(WRITERS) + 1 + 16
WRITER_FANOUT: Final = 16
"""Directories that a writer spreads its files over.

ext4 places new files near their directory, and steps over every inode there that was deleted in the last minutes: where
a store deletes, a create was seen to take 300 us. So they are asked to lie far from each other, and it takes 10.
"""


@dataclass(slots=True)
class Backend:
    """An open backend. `close` it in the end.

    Attributes
    ----------
    path
        As configured.
    root
        The namespace's directory.
    dirfd
        Open descriptor of `root`; -1 if the backend could not be opened.
    writer
        This store's own directory, relative to `root`.
    direct
        Whether files here are opened with O_DIRECT; `direct_reason` says why not.
    error
        Why the backend is not in use; empty if it is.
    fresh
        Whether this store made the namespace's directory: there is nothing in it yet.
    leftovers
        Directories of dead writers that were removed when it was opened.
    system
        Who has the files.
    """

    path: str
    root: Path
    dirfd: int = -1
    writer: str = ""
    direct: bool = False
    direct_reason: str = ""
    error: str = ""
    fresh: bool = False
    leftovers: int = 0
    lock_fd: int = -1
    system: System = field(default_factory=current_system)

    @property
    def owner(self) -> str:
        """Name of this store among the writers."""
        return self.writer.removeprefix(f"{WRITERS}/")

    def reclaim(self, living: frozenset[str]) -> int:
        """Remove the files of dead writers; returns the bytes of those that could not be removed. Blocks.

        Parameters
        ----------
        living
            Writers whose files are nobody's business here. One that is not named and that holds its lock is just
            opening, or just dying.
        """
        writers = self.root / WRITERS
        with _locked(self.system, writers):
            _remove_dead_writers(self.system, writers)
            names = self.system.subdirectories(writers)
        return sum(self.system.tree_bytes(writers / name) for name in names if name not in living)

    def close(self) -> None:
        """Remove this writer's directory and close the descriptors. Idempotent."""
        if self.dirfd < 0:
            return
        system = self.system
        with contextlib.suppress(OSError), _locked(system, self.root / WRITERS):
            system.rmtree(self.root / self.writer, ignore_errors=True)
        system.close(self.lock_fd)
        system.close(self.dirfd)
        self.dirfd = self.lock_fd = -1


def open_backend(path: str, config: StoreConfig) -> Backend:
    """Open a backend, making its directories as needed. Blocks: call it in a thread.

    The directory `path` itself must exist, or its parent must: a path that is mistyped, or not mounted, should not
    become a new store.

    Raises
    ------
    ConfigError
        It is missing, not a directory, or not writable; or it holds blocks in another layout.
    """
    backend = Backend(path, namespace_root(path, config))
    try:
        backend.fresh = make_directory(backend.system, path, config, "posix", (WRITERS, QUARANTINE))
        _claim_writer(backend)
    except OSError as error:
        raise cannot_open(path, error) from error
    backend.direct, backend.direct_reason = choose_direct(config, path, backend.root / backend.writer)
    return backend


@contextlib.contextmanager
def _locked(system: System, writers: Path) -> Iterator[None]:
    """Hold the lock under which writers' directories come and go."""
    fd = system.open(writers / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        system.lock(fd)
        yield
    finally:
        system.close(fd)


def _claim_writer(backend: Backend) -> None:
    system, writers = backend.system, backend.root / WRITERS
    with _locked(system, writers):
        backend.leftovers = _remove_dead_writers(system, writers)
        name = system.token(8)
        own = writers / name
        system.mkdir(own)
        system.mkdir_apart(own, [f"{part:x}" for part in range(WRITER_FANOUT)])
        lock_fd = system.open(own / "lock", os.O_RDWR | os.O_CREAT)
        system.lock(lock_fd, wait=False)
    backend.writer = f"{WRITERS}/{name}"
    backend.lock_fd = lock_fd
    backend.dirfd = system.open(backend.root, os.O_RDONLY | os.O_DIRECTORY)


def survey_writers(system: System, root: Path) -> dict[str, bool]:
    """Return the writers of a namespace's directory by name, and whether each lives. Blocks."""
    writers = root / WRITERS
    found = {}
    if system.exists(writers):
        with _locked(system, writers):  # who is just opening must find its own lock free
            found = {name: _lives(system, writers / name / "lock") for name in system.subdirectories(writers)}
    return found


def _lives(system: System, lock: Path) -> bool:
    try:
        fd = system.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        system.lock(fd, wait=False)
    except BlockingIOError:
        return True
    finally:
        system.close(fd)
    return False


def reclaim_writers(system: System, root: Path) -> int:
    """Remove what dead writers left in a namespace's directory; returns how many there were. Blocks."""
    with _locked(system, root / WRITERS):
        return _remove_dead_writers(system, root / WRITERS)


def _remove_dead_writers(system: System, writers: Path) -> int:
    """Remove what writers left that do not live any more; the caller holds the lock of the directory."""
    removed = 0
    for name in system.subdirectories(writers):
        try:
            fd = system.open(writers / name / "lock", os.O_RDWR)
        except FileNotFoundError:
            fd = -1  # it died between mkdir and open
        try:
            if fd >= 0:
                system.lock(fd, wait=False)
            system.rmtree(writers / name)
            removed += 1
        except BlockingIOError:
            continue  # alive
        except OSError as error:
            _log.warning("leftovers of a dead writer stay in %s: %s", writers / name, error)
        finally:
            if fd >= 0:
                system.close(fd)
    return removed
