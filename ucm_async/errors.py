"""Every error this library raises or stores, in one tree.

::

    UcmError
    ├── ConfigError (ValueError)            a key or value of the configuration
    ├── StoreClosedError (RuntimeError)     the store was closed, or never opened
    ├── WrongLoopError (RuntimeError)       called from another loop, thread or process
    ├── WouldBlock                          an ``x_nowait`` call had no room
    ├── UnknownNameError (LookupError)      no stage, engine, codec or connector of that name
    └── StoreError                          why one row of a task failed (a value first, raised on request)
        ├── BlockMissError (KeyError)       Status.MISS
        ├── DeadlineError (TimeoutError)    Status.TIMEOUT
        ├── TaskCancelledError              Status.CANCELLED
        ├── CorruptError                    Status.CORRUPT
        │   └── UnknownCodecError           its codec is not installed, or of a later version
        ├── BackendIOError (OSError)        Status.IO_ERROR
        ├── NoSpaceError (OSError)          Status.NO_SPACE
        ├── BusyError                       Status.BUSY
        └── ShutDownError                   Status.CLOSED

Wrong arguments raise plain ``ValueError`` or ``TypeError`` that name the argument, what it was and what it must be.
"""

from __future__ import annotations

import errno
import os


class UcmError(Exception):
    """Root of the errors of this library."""


class ConfigError(UcmError, ValueError):
    """A configuration key is unknown, or its value cannot be used."""


class StoreClosedError(UcmError, RuntimeError):
    """The store is closed, or was not opened yet."""


class WrongLoopError(UcmError, RuntimeError):
    """The store belongs to another event loop, thread or process."""


class WouldBlock(UcmError):
    """The operation has no room now and would have to wait."""


class UnknownNameError(UcmError, LookupError):
    """No stage, engine, codec or connector has that name."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StoreError(UcmError):
    """Why one row of a task failed.

    Attributes
    ----------
    row : int
        Position in the arguments of the call; -1 where the error is not about a row.
    block_id : bytes
        The 16-byte id of the block; empty where unknown.
    shard : int
        Index of the shard, -1 for a whole block.
    """

    default_reason = "failed"

    def __init__(self, reason: str = "", *, row: int = -1, block_id: bytes = b"", shard: int = -1) -> None:
        self.reason = reason or self.default_reason
        self.row = row
        self.block_id = block_id
        self.shard = shard
        super().__init__(self.reason)

    def __str__(self) -> str:
        where = f"row {self.row}: " if self.row >= 0 else ""
        block = f"block {self.block_id.hex()}" if self.block_id else ""
        shard = f" shard {self.shard}" if self.shard >= 0 else ""
        what = f"{block}{shard}: " if block else ""
        return f"{where}{what}{self.reason}"

    def at(self, row: int, block_id: bytes, shard: int) -> StoreError:
        """Return a copy of this error that says which row it is about."""
        other = type(self)(self.reason)
        other.row, other.block_id, other.shard = row, block_id, shard
        other.__cause__ = self.__cause__
        return other


class BlockMissError(StoreError, KeyError):
    """The block is not stored."""

    default_reason = "not stored"


class DeadlineError(StoreError, TimeoutError):
    """The deadline came first."""

    default_reason = "deadline exceeded"


class TaskCancelledError(StoreError):
    """The task was cancelled."""

    default_reason = "cancelled"


class CorruptError(StoreError):
    """What is stored does not match its own description; it was set aside."""

    default_reason = "corrupt"


class UnknownCodecError(CorruptError):
    """What is stored was made by a codec that is not available here."""

    default_reason = "codec not available"


class _OSStoreError(StoreError, OSError):
    """A store error with the errno of the system call behind it."""

    default_errno = errno.EIO

    def __init__(self, reason: str = "", **where: object) -> None:
        StoreError.__init__(self, reason, **where)  # type: ignore[arg-type]
        self.errno = self.default_errno

    def at(self, row: int, block_id: bytes, shard: int) -> StoreError:
        """See `StoreError.at`; the errno stays."""
        other = super().at(row, block_id, shard)
        assert isinstance(other, _OSStoreError)
        other.errno = self.errno
        return other

    @classmethod
    def from_errno(cls, number: int, what: str) -> StoreError:
        """Describe a failed system call: `what` was being done when `number` came back."""
        error = cls(f"{what}: {os.strerror(number)} ({errno.errorcode.get(number, number)})")
        error.errno = number
        return error


class BackendIOError(_OSStoreError):
    """The storage refused the operation."""

    default_reason = "input/output error"


class NoSpaceError(_OSStoreError):
    """The storage, or the cap that was set for it, is full."""

    default_reason = "no space left"
    default_errno = errno.ENOSPC


class BusyError(StoreError):
    """A bound was reached; the same call may work later."""

    default_reason = "busy"


class ShutDownError(StoreError):
    """The store was closed before the row was done."""

    default_reason = "store closed"
