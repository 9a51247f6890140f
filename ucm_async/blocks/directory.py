"""The directory of one namespace in one backend: made, described, brought to the medium.

Which files are in it is the business of a layout.

Its name ends with the namespace's fingerprint, so that namespaces never meet; ``namespace.json`` in it says what it is,
for people, and which layout its blocks have: one directory has one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..config import StoreConfig
from ..engines.probe import probe_direct
from ..engines.system import System
from ..errors import ConfigError

__all__ = ["QUARANTINE", "cannot_open", "choose_direct", "layout_of", "make_directory", "namespace_root", "read_note"]

_log = logging.getLogger(__name__)

NOTE: Final = "namespace.json"
QUARANTINE: Final = "quarantine"
"""Where blocks that failed a check are set aside, whatever the layout."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the note says, and a directory that only this layout has."""

    name: str
    home: str


_LAYOUTS: Final = (_Layout("posix", "writers"), _Layout("slab", "slab"))


def namespace_root(path: str, config: StoreConfig) -> Path:
    """Return the directory of the namespace in the backend `path`."""
    return Path(path) / f"{_slug(config.namespace)}-{config.namespace_fingerprint().hex()}"


def make_directory(system: System, path: str, config: StoreConfig, layout: str, below: Iterable[str]) -> bool:
    """Make the namespace's directory and some directories `below` it; returns whether it is new. Blocks.

    The backend `path` itself must exist, or its parent must: a path that is mistyped, or not mounted, should not become
    a new store.

    Raises
    ------
    ConfigError
        It holds blocks of another layout.
    OSError
        It is missing, not a directory, or not writable.
    """
    root, fresh = namespace_root(path, config), False
    for other in _LAYOUTS:
        if other.name != layout and system.exists(root / other.home):
            raise ConfigError(
                f"storage_backends: {path!r} holds blocks of this namespace in the layout {other.name!r}, must hold "
                f"none, or such of {layout!r}; name another directory"
            )
    for directory in (Path(path), root, *(root / name for name in below)):
        with contextlib.suppress(FileExistsError):
            system.mkdir(directory)
            fresh |= directory == root
    _make_last(system, path, root)
    _describe(system, root, config, layout)
    return fresh


def cannot_open(path: str, error: OSError) -> ConfigError:
    """Return what to raise where the backend `path` cannot be made ready, and why."""
    must = "it must be a writable directory"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        must = "a store needs some 100 KiB for directories of its own; ucm-async gc makes room"
    return ConfigError(f"storage_backends: {path!r}: {error.strerror}; {must}")


def layout_of(system: System, root: Path) -> str:
    """Return the name of the layout of a namespace's directory, "" if it is none."""
    return next((one.name for one in _LAYOUTS if system.exists(root / one.home)), "")


def read_note(system: System, root: Path) -> dict[str, Any]:
    """Return what the note of a namespace says; nothing, if it is missing or cannot be read. Blocks."""
    try:
        about = json.loads(system.read_whole(root / NOTE) or b"{}")
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _slug(namespace: str) -> str:
    """Make a namespace readable in a listing; the fingerprint tells namespaces apart, not this."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", namespace)[:48].strip("._") or "namespace"


def _make_last(system: System, path: str, root: Path) -> None:
    """Bring the names of the backend, of the namespace and of what it has to the medium, whoever made them.

    A dump that is synced does the same for what is below; without this, a power cut takes the whole namespace.
    """
    for directory in (Path(path).absolute().parent, Path(path), root):
        try:
            system.sync_directory(directory)
        except OSError as error:  # no right to read it, or a file system that has no such thing
            _log.warning("%s: its names may not survive a power cut: %s", directory, error.strerror)


def _describe(system: System, root: Path, config: StoreConfig, layout: str) -> None:
    """Leave a note for people, once; where there is no room for it, another time."""
    if system.exists(root / NOTE):
        return
    about = {
        "format": f"ucm_async {layout}",
        "version": 1,
        "namespace": config.namespace,
        "block_size": config.block_size,
        "shard_size": config.shard_size,
    }
    try:
        system.write_whole(root / NOTE, (json.dumps(about, indent=2) + "\n").encode())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _log.warning("%s: %s", root / NOTE, error.strerror)


def choose_direct(config: StoreConfig, path: str, directory: Path) -> tuple[bool, str]:
    """Tell whether files in `directory` are opened with O_DIRECT, and why not: if it is wanted and works here."""
    if config.io_direct is False:
        return False, "io_direct is off"
    direct, reason = probe_direct(directory)
    if not direct and config.io_direct is True:
        _log.warning("%s: no O_DIRECT here (%s), going on with buffered I/O", path, reason)
    return direct, reason
