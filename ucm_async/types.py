"""Words that every room shares: statuses, durability, block ids, arrays."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import (
    BackendIOError,
    BlockMissError,
    BusyError,
    CorruptError,
    DeadlineError,
    NoSpaceError,
    ShutDownError,
    StoreError,
    TaskCancelledError,
)

BLOCK_ID_BYTES: Final = 16

U8: TypeAlias = npt.NDArray[np.uint8]
U64: TypeAlias = npt.NDArray[np.uint64]
I64: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

BlockIds: TypeAlias = Sequence[bytes] | U8
"""A sequence of 16-byte ids, or a C-contiguous uint8 array of shape (n, 16)."""

Durability: TypeAlias = Literal["cached", "stored", "synced"]
DURABILITIES: Final[tuple[Durability, ...]] = ("cached", "stored", "synced")


class Status(enum.IntEnum):
    """What became of one row of a task."""

    OK = 0
    MISS = 1
    TIMEOUT = 2
    CANCELLED = 3
    CORRUPT = 4
    IO_ERROR = 5
    NO_SPACE = 6
    BUSY = 7
    CLOSED = 8


Reasons: TypeAlias = Mapping[int, StoreError]
"""Position of a row -> why it failed, of those of which there is more to say than their `Status`."""

PENDING: Final = 255
"""Status of a row that is still on its way. Never seen in a `TaskResult`."""

ERROR_OF_STATUS: Final[dict[Status, type[StoreError]]] = {
    Status.MISS: BlockMissError,
    Status.TIMEOUT: DeadlineError,
    Status.CANCELLED: TaskCancelledError,
    Status.CORRUPT: CorruptError,
    Status.IO_ERROR: BackendIOError,
    Status.NO_SPACE: NoSpaceError,
    Status.BUSY: BusyError,
    Status.CLOSED: ShutDownError,
}


def as_block_ids(ids: BlockIds, *, name: str = "ids") -> U8:
    """Check `ids` and return them as a uint8 array of shape (n, 16).

    Parameters
    ----------
    ids
        A sequence of 16-byte ``bytes``, or a C-contiguous uint8 array of shape (n, 16), which is returned as it is.
    name
        The argument's name, for the errors.

    Raises
    ------
    TypeError
        `ids` is neither.
    ValueError
        An id is not 16 bytes long, or the array has another shape.
    """
    if isinstance(ids, np.ndarray):
        if ids.dtype != np.uint8:
            raise TypeError(f"{name}: an array of ids must be uint8, not {ids.dtype}")
        if ids.ndim != 2 or ids.shape[1] != BLOCK_ID_BYTES:
            raise ValueError(f"{name}: shape {ids.shape}, must be (n, {BLOCK_ID_BYTES})")
        if not ids.flags.c_contiguous:
            raise ValueError(f"{name}: the array is not C-contiguous; pass np.ascontiguousarray({name})")
        return ids
    if not isinstance(ids, (list, tuple)):
        _check_sequence(ids, name)
    try:
        joined = b"".join(ids)
    except TypeError:
        wrong = next((i for i, one in enumerate(ids) if not isinstance(one, (bytes, bytearray, memoryview))), -1)
        got = type(ids[wrong]).__name__ if wrong >= 0 else type(ids).__name__
        where = f"{name}[{wrong}]" if wrong >= 0 else name
        raise TypeError(f"{where}: {got}, must be bytes of length {BLOCK_ID_BYTES}") from None
    if len(joined) != BLOCK_ID_BYTES * len(ids) or any(map(_WRONG_LENGTH, map(len, ids))):
        wrong = next(i for i, one in enumerate(ids) if len(one) != BLOCK_ID_BYTES)
        raise ValueError(
            f"{name}[{wrong}]: {len(ids[wrong])} bytes, must be {BLOCK_ID_BYTES} (see ucm_async.block_ids)"
        )
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, BLOCK_ID_BYTES)


def _check_sequence(ids: object, name: str) -> None:
    if isinstance(ids, (bytes, bytearray, str)):
        raise TypeError(f"{name}: a sequence of ids is needed, not one {type(ids).__name__}; pass [{name}]")
    if not (hasattr(ids, "__len__") and hasattr(ids, "__getitem__")):
        raise TypeError(f"{name}: {type(ids).__name__}, must be a sequence of bytes of length {BLOCK_ID_BYTES}")


_WRONG_LENGTH: Final = BLOCK_ID_BYTES.__ne__


def block_ids(hashes: Iterable[bytes | int]) -> U8:
    """Fold hashes of any length into block ids, the same in every process and on every machine.

    Parameters
    ----------
    hashes
        ``bytes`` of any length, at least one byte (vLLM's are 32 bytes, or 36 with the group), or non-negative ints
        (a trace's block numbers). Sixteen bytes are an id already and stay as they are.

    Returns
    -------
    numpy.ndarray
        uint8, shape (n, 16), C-contiguous.

    Raises
    ------
    TypeError, ValueError
        A hash is neither bytes nor a non-negative int, or it is empty.

    Notes
    -----
    The fold is BLAKE2b with a 16-byte digest (RFC 7693), of the bytes, or of ``b"int:"`` and the decimal digits.
    """
    out = bytearray()
    for i, one in enumerate(hashes):
        out += _fold(one, i)
    return np.frombuffer(bytes(out), dtype=np.uint8).reshape(-1, BLOCK_ID_BYTES)


def _fold(one: bytes | int, position: int) -> bytes:
    if isinstance(one, int) and not isinstance(one, bool):
        if one < 0:
            raise ValueError(f"hashes[{position}]: {one}, must not be negative")
        one = b"int:%d" % one
    elif not isinstance(one, (bytes, bytearray, memoryview)):
        raise TypeError(f"hashes[{position}]: {type(one).__name__}, must be bytes or int")
    elif len(one) == 0:
        raise ValueError(f"hashes[{position}]: empty, must have at least one byte")
    elif len(one) == BLOCK_ID_BYTES:
        return bytes(one)
    return hashlib.blake2b(one, digest_size=BLOCK_ID_BYTES).digest()
