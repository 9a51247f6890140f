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
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...config import StoreConfig
from ...engines.probe import probe_direct
from ...errors import ConfigError

__all__ = ["Backend", "open_backend"]

_log = logging.getLogger("ucm_async.posix")

WRITERS: Final = "writers"
QUARANTINE: Final = "quarantine"
WRITER_NAME_BYTES: Final = len(WRITERS) + 1 + 16
WRITER_FANOUT: Final = 16
"""Directories that a writer spreads its files over.

ext4 places new files near their directory, and looks long for a place where many were deleted lately: creates in one
directory were seen to cost ten times the usual then, in several not.
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
    leftovers
        Directories of dead writers that were removed when it was opened.
    """

    path: str
    root: Path
    dirfd: int = -1
    writer: str = ""
    direct: bool = False
    direct_reason: str = ""
    error: str = ""
    leftovers: int = 0
    lock_fd: int = -1

    def close(self) -> None:
        """Remove this writer's directory and close the descriptors. Idempotent."""
        if self.dirfd < 0:
            return
        with contextlib.suppress(OSError), _locked(self.root / WRITERS):
            shutil.rmtree(self.root / self.writer, ignore_errors=True)
        os.close(self.lock_fd)
        os.close(self.dirfd)
        self.dirfd = self.lock_fd = -1


def open_backend(path: str, config: StoreConfig) -> Backend:
    """Open a backend, making its directories as needed. Blocks: call it in a thread.

    The directory `path` itself must exist, or its parent must: a path that is mistyped, or not mounted, should not
    become a new store.

    Raises
    ------
    ConfigError
        It is missing, not a directory, or not writable.
    """
    fingerprint = config.namespace_fingerprint()
    root = Path(path) / f"{_slug(config.namespace)}-{fingerprint.hex()}"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        for directory in (root, root / WRITERS, root / QUARANTINE):
            directory.mkdir(exist_ok=True)
        backend = Backend(path, root)
        _describe(root, config)
        _claim_writer(backend)
    except OSError as error:
        raise ConfigError(f"storage_backends: {path!r}: {error.strerror}; it must be a writable directory") from error
    _choose_direct(backend, config)
    return backend


def _slug(namespace: str) -> str:
    """Make a namespace readable in a listing; the fingerprint tells namespaces apart, not this."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", namespace)[:48].strip("._") or "namespace"


def _describe(root: Path, config: StoreConfig) -> None:
    """Leave a note for people, once, atomically."""
    note = root / "namespace.json"
    if note.exists():
        return
    about = {
        "format": "ucm_async posix",
        "version": 1,
        "namespace": config.namespace,
        "block_size": config.block_size,
        "shard_size": config.shard_size,
    }
    draft = root / f"namespace.{secrets.token_hex(4)}.tmp"
    draft.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    draft.replace(note)


@contextlib.contextmanager
def _locked(writers: Path):  # type: ignore[no-untyped-def]  # a generator of nothing
    """Hold the lock under which writers' directories come and go."""
    fd = os.open(writers / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _claim_writer(backend: Backend) -> None:
    writers = backend.root / WRITERS
    with _locked(writers):
        backend.leftovers = _remove_dead_writers(writers)
        name = secrets.token_hex(8)
        for part in range(WRITER_FANOUT):
            (writers / name / f"{part:x}").mkdir(parents=True)
        lock_fd = os.open(writers / name / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    backend.writer = f"{WRITERS}/{name}"
    backend.lock_fd = lock_fd
    backend.dirfd = os.open(backend.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _remove_dead_writers(writers: Path) -> int:
    """Remove what writers left that do not live any more; the caller holds the lock of the directory."""
    removed = 0
    for entry in os.scandir(writers):
        if not entry.is_dir(follow_symlinks=False):
            continue
        try:
            fd = os.open(os.path.join(entry.path, "lock"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            fd = -1  # it died between mkdir and open
        try:
            if fd >= 0:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry.path)
            removed += 1
        except BlockingIOError:
            continue  # alive
        except OSError as error:
            _log.warning("leftovers of a dead writer stay in %s: %s", entry.path, error)
        finally:
            if fd >= 0:
                os.close(fd)
    return removed


def _choose_direct(backend: Backend, config: StoreConfig) -> None:
    """Use O_DIRECT if it is wanted and works here."""
    if config.io_direct is False:
        backend.direct_reason = "io_direct is off"
        return
    backend.direct, backend.direct_reason = probe_direct(backend.root / backend.writer)
    if not backend.direct and config.io_direct is True:
        _log.warning("%s: no O_DIRECT here (%s), going on with buffered I/O", backend.path, backend.direct_reason)
