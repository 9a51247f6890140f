"""The one door to the extension: its names, or those of the pure-Python twin where it cannot be used.

Attributes
----------
NATIVE : bool
    Whether these names are the extension's.
WHY : str
    Why the extension is not used; empty if it is. The environment variable ``UCM_ASYNC_PORTABLE=1`` forces the twin.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from .coding import CODING
from .engines.requests import REQUEST

__all__ = [
    "CLAIM_BUSY",
    "CLAIM_HIT",
    "CLAIM_MINE",
    "CLAIM_NONE",
    "CLAIM_THEIRS",
    "CODING_BYTES",
    "HAVE_CRC32C",
    "NATIVE",
    "PROCESSES_MAX",
    "REASON_MAX",
    "REQUEST_BYTES",
    "TABLE_USER_BYTES",
    "TABLE_USER_OFFSET",
    "TABLE_VERSION",
    "WATCH_DIRTY",
    "WATCH_FAILED",
    "WATCH_FILLING",
    "WATCH_GONE",
    "WATCH_READY",
    "WHY",
    "AioContext",
    "BlockTable",
    "CodecContext",
    "Driver",
    "Exports",
    "Gate",
    "IdTable",
    "LoadChains",
    "Mapping",
    "SlotTable",
    "ThreadPool",
    "UringContext",
    "Watcher",
    "block_paths",
    "crc32c",
    "execute",
    "export_buffers",
    "fence",
    "io_setup_limit",
    "mix_ids",
]


def _why_not() -> str:
    """Return why the extension cannot be used, empty if it can."""
    if os.environ.get("UCM_ASYNC_PORTABLE", "0") not in ("", "0"):
        return "UCM_ASYNC_PORTABLE is set"
    try:
        from . import _native  # noqa: PLC0415 (it may be missing)
    except ImportError as error:
        return f"the extension cannot be imported: {error}"
    for name, record in (("REQUEST", REQUEST), ("CODING", CODING)):
        found = getattr(_native, f"{name}_BYTES", 0)
        if found != record.itemsize:
            return f"the extension is of another version: {name} has {found} bytes there, not {record.itemsize}"
    return ""


WHY: Final = _why_not()
NATIVE: Final = not WHY

if TYPE_CHECKING or NATIVE:
    from ._native import (
        CLAIM_BUSY,
        CLAIM_HIT,
        CLAIM_MINE,
        CLAIM_NONE,
        CLAIM_THEIRS,
        CODING_BYTES,
        HAVE_CRC32C,
        PROCESSES_MAX,
        REASON_MAX,
        REQUEST_BYTES,
        TABLE_USER_BYTES,
        TABLE_USER_OFFSET,
        TABLE_VERSION,
        WATCH_DIRTY,
        WATCH_FAILED,
        WATCH_FILLING,
        WATCH_GONE,
        WATCH_READY,
        AioContext,
        BlockTable,
        CodecContext,
        Driver,
        Exports,
        Gate,
        IdTable,
        LoadChains,
        Mapping,
        SlotTable,
        ThreadPool,
        UringContext,
        Watcher,
        block_paths,
        crc32c,
        execute,
        export_buffers,
        fence,
        io_setup_limit,
        mix_ids,
    )
else:
    from ._portable import (
        CLAIM_BUSY,
        CLAIM_HIT,
        CLAIM_MINE,
        CLAIM_NONE,
        CLAIM_THEIRS,
        CODING_BYTES,
        HAVE_CRC32C,
        PROCESSES_MAX,
        REASON_MAX,
        REQUEST_BYTES,
        TABLE_USER_BYTES,
        TABLE_USER_OFFSET,
        TABLE_VERSION,
        WATCH_DIRTY,
        WATCH_FAILED,
        WATCH_FILLING,
        WATCH_GONE,
        WATCH_READY,
        AioContext,
        BlockTable,
        CodecContext,
        Driver,
        Exports,
        Gate,
        IdTable,
        LoadChains,
        Mapping,
        SlotTable,
        ThreadPool,
        UringContext,
        Watcher,
        block_paths,
        crc32c,
        execute,
        export_buffers,
        fence,
        io_setup_limit,
        mix_ids,
    )
