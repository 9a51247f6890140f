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

from .engines.requests import REQUEST

__all__ = [
    "HAVE_CRC32C",
    "NATIVE",
    "REQUEST_BYTES",
    "WHY",
    "AioContext",
    "Driver",
    "Exports",
    "Gate",
    "IdTable",
    "Mapping",
    "SlotTable",
    "ThreadPool",
    "UringContext",
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
    if REQUEST.itemsize != _native.REQUEST_BYTES:
        return (
            f"the extension is of another version: a request of {_native.REQUEST_BYTES} bytes, not {REQUEST.itemsize}"
        )
    return ""


WHY: Final = _why_not()
NATIVE: Final = not WHY

if TYPE_CHECKING or NATIVE:
    from ._native import (
        HAVE_CRC32C,
        REQUEST_BYTES,
        AioContext,
        Driver,
        Exports,
        Gate,
        IdTable,
        Mapping,
        SlotTable,
        ThreadPool,
        UringContext,
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
        HAVE_CRC32C,
        REQUEST_BYTES,
        AioContext,
        Driver,
        Exports,
        Gate,
        IdTable,
        Mapping,
        SlotTable,
        ThreadPool,
        UringContext,
        block_paths,
        crc32c,
        execute,
        export_buffers,
        fence,
        io_setup_limit,
        mix_ids,
    )
