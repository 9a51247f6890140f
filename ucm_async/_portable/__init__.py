"""The pure-Python twin of the extension: the same names and meanings, for machines that cannot have it.

Slower by far, but whole: `ucm_async.native` takes one or the other, and nothing else in the package can tell them
apart. There is no asynchronous system call to be had from here, so the contexts of rings raise ``OSError(ENOSYS)``.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import Any, Final, final

from ..coding import CODING
from ..engines.requests import REQUEST
from .codec_context import CodecContext
from .crc32c import crc32c
from .execute import execute
from .exports import Exports, export_buffers
from .gate import Gate
from .idtable import IdTable
from .loadchains import LoadChains
from .mapping import Mapping
from .paths import block_paths, mix_ids
from .pool import ThreadPool

__all__ = [
    "CLAIM_BUSY",
    "CLAIM_HIT",
    "CLAIM_MINE",
    "CLAIM_NONE",
    "CLAIM_THEIRS",
    "CODING_BYTES",
    "HAVE_CRC32C",
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

HAVE_CRC32C: Final = False
CODING_BYTES: Final = CODING.itemsize
REQUEST_BYTES: Final = REQUEST.itemsize


# What answers of a BlockTable would mean. The numbers are those of ext/blocktable.h; a test compares them.
CLAIM_NONE: Final = 0
CLAIM_HIT: Final = 1
CLAIM_MINE: Final = 2
CLAIM_THEIRS: Final = 3
CLAIM_BUSY: Final = 4
WATCH_GONE: Final = 0
WATCH_FILLING: Final = 1
WATCH_READY: Final = 2
WATCH_DIRTY: Final = 3
WATCH_FAILED: Final = 0x80
REASON_MAX: Final = 0x7F
PROCESSES_MAX: Final = 48
TABLE_VERSION: Final = 2
TABLE_USER_OFFSET: Final = 1024
TABLE_USER_BYTES: Final = 3072


class _Missing:
    """What needs the extension."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSYS, f"{type(self).__name__} needs the extension ucm_async._native")


@final
class AioContext(_Missing):
    """Linux native AIO: not without the extension."""


@final
class UringContext(_Missing):
    """io_uring: not without the extension."""


@final
class Driver(_Missing):
    """Chains over a ring: not without the extension."""


@final
class BlockTable(_Missing):
    """Slots shared between processes: not without the extension, since Python has no atomic operations on memory."""


@final
class Watcher(_Missing):
    """Waiting for another process' slots: not without the extension."""


@final
class SlotTable(_Missing):
    """Slots that processes share without locks: there are no atomic operations to be had from here."""


def fence() -> None:
    """Order memory for all processors, as far as that can be done from here.

    A lock is taken with an atomic instruction, and a system call goes through the kernel's own barriers; on x86-64
    either is a full one.
    """
    with _LOCK:
        os.getppid()


_LOCK: Final = threading.Lock()


def io_setup_limit() -> tuple[int, int]:
    """Return (aio-nr, aio-max-nr) of the system; (-1, -1) where unknown."""
    try:
        return _read_limit("aio-nr"), _read_limit("aio-max-nr")
    except (OSError, ValueError):
        return -1, -1


def _read_limit(name: str) -> int:
    fd = os.open(f"/proc/sys/fs/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 64))
    finally:
        os.close(fd)
