"""Names of blocks: what the files of docs/design/format.md are called."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

_ID_BYTES: Final = 16
_PATH_BYTES: Final = 36  # "xx/", 32 hex digits, NUL
_HEX: Final = np.frombuffer(b"".join(b"%02x" % i for i in range(256)), dtype=np.uint8).reshape(256, 2)
_LOW: Final = np.uint64(0x9E3779B97F4A7C15)  # odd constants; any would do, but they are part of the format
_HIGH: Final = np.uint64(0xC2B2AE3D27D4EB4F)


def _rows(name: str, ids: Any, out: Any, dtype: type, width: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    given, room = memoryview(ids), memoryview(out)
    if room.readonly:
        raise BufferError(f"{name}(): the room for the results is read-only")
    if given.nbytes % _ID_BYTES or room.nbytes != given.nbytes // _ID_BYTES * width:
        raise ValueError(
            f"{name}(): {given.nbytes} bytes of ids and {room.nbytes} of room, must be 16 and {width} for each id"
        )
    if not given.nbytes:
        return np.empty((0, _ID_BYTES), dtype=np.uint8), np.empty(0, dtype=dtype)
    return np.frombuffer(given, dtype=np.uint8).reshape(-1, _ID_BYTES), np.frombuffer(room, dtype=dtype)


def _mix(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    words = np.ascontiguousarray(ids).view("<u8")
    mixed: npt.NDArray[np.uint64] = words[:, 0] * _LOW ^ (words[:, 1] + (words[:, 0] >> np.uint64(32))) * _HIGH
    mixed ^= mixed >> np.uint64(29)
    mixed *= _LOW
    mixed ^= mixed >> np.uint64(32)
    return mixed


def mix_ids(ids: Any, out: Any, /) -> None:
    """Write 64 well-mixed bits of each id."""
    rows, mixed = _rows("mix_ids", ids, out, np.uint64, 8)
    mixed[:] = _mix(rows)


def block_paths(ids: Any, out: Any, /) -> None:
    """Write ``xx/<32 hex digits>`` and a NUL for each id."""
    rows, flat = _rows("block_paths", ids, out, np.uint8, _PATH_BYTES)
    paths = flat.reshape(-1, _PATH_BYTES)
    paths[:, 0:2] = _HEX[(_mix(rows) >> np.uint64(56)).astype(np.uint8)]
    paths[:, 2] = ord("/")
    paths[:, 3:35] = _HEX[rows].reshape(-1, 32)
    paths[:, 35] = 0
