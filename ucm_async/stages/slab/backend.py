"""One storage backend of slabs: its directories.

::

    BACKEND/
      NAMESPACE-FINGERPRINT/          one namespace, one geometry
        namespace.json                what it is, for people
        slab/
          lock                        names the shared memory; its bytes are what locks are named by
          000000.slab …               segments
          checkpoint                  the index, while no store is open
        quarantine/                   copies of slots that failed a check
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ...blocks.directory import QUARANTINE, cannot_open, choose_direct, make_directory, namespace_root
from ...config import StoreConfig
from ...engines.system import System, current_system

__all__ = ["HOME", "QUARANTINE", "SlabBackend", "open_backend"]

HOME: Final = "slab"


@dataclass(slots=True)
class SlabBackend:
    """An open backend. `close` it in the end.

    Attributes
    ----------
    path
        As configured.
    root
        The namespace's directory.
    owner
        Name of this store, for the account of space.
    dirfd
        Open descriptor of `root`; -1 if the backend could not be opened.
    direct
        Whether segments are opened with O_DIRECT; `direct_reason` says why not.
    error
        Why the backend is not in use; empty if it is.
    fresh
        Whether this store made the namespace's directory: there is nothing in it yet.
    system
        Who has the files.
    """

    path: str
    root: Path
    owner: str = ""
    dirfd: int = -1
    direct: bool = False
    direct_reason: str = ""
    error: str = ""
    fresh: bool = False
    system: System = field(default_factory=current_system)

    @property
    def home(self) -> Path:
        """Where the segments are."""
        return self.root / HOME

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self.dirfd >= 0:
            self.system.close(self.dirfd)
            self.dirfd = -1


def open_backend(path: str, config: StoreConfig) -> SlabBackend:
    """Open a backend, making its directories as needed. Blocks: call it in a thread.

    Raises
    ------
    ConfigError
        It is missing, not a directory, or not writable; or it holds blocks in another layout.
    """
    backend = SlabBackend(path, namespace_root(path, config))
    try:
        backend.fresh = make_directory(backend.system, path, config, "slab", (HOME, QUARANTINE))
        backend.owner = backend.system.token(8)
        backend.dirfd = backend.system.open(backend.root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise cannot_open(path, error) from error
    backend.direct, backend.direct_reason = choose_direct(config, path, backend.home)
    return backend
