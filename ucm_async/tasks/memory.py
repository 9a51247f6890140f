"""The caller's memory as the library sees it: addresses, sizes, and the promise that they stay valid."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from ..native import Exports, export_buffers
from ..types import I64, U64

__all__ = ["Memory", "Regions", "memory_of_addresses", "memory_of_buffers"]

_NOTHING: Final = lambda: None  # noqa: E731  (a release that has nothing to release)


class Memory:
    """Where the rows of a task lie.

    Attributes
    ----------
    addresses
        uint64, shape (n, k).
    piece_sizes
        Bytes of each of the k pieces of a row, the same for every row; `row_bytes` is their sum.
    direct
        True if the kernel may touch it: it is registered, or a stage's own.
    """

    __slots__ = ("_release", "addresses", "direct", "piece_sizes", "row_bytes")

    def __init__(
        self,
        addresses: U64,
        piece_sizes: tuple[int, ...],
        *,
        direct: bool = False,
        release: Callable[[], None] = _NOTHING,
    ) -> None:
        self.addresses = addresses
        self.piece_sizes = piece_sizes
        self.row_bytes = sum(piece_sizes)
        self.direct = direct
        self._release = release

    def release(self) -> None:
        """Give the buffers back to their owners. Idempotent."""
        release, self._release = self._release, _NOTHING
        release()


def memory_of_buffers(
    name: str, buffers: Any, rows: int, row_bytes: int, tensor_sizes: tuple[int, ...], *, writable: bool
) -> Memory:
    """Take buffer exports of what a caller passed as `name`.

    Parameters
    ----------
    name
        ``"dst"`` or ``"src"``, for the errors.
    buffers
        For each row a buffer or a sequence of buffers, or one buffer that holds all rows one after another.
    rows, row_bytes
        How many rows there are, and how many bytes each must have.
    tensor_sizes
        The tensors of a shard, for the errors: a row given in pieces must have `row_bytes` in all, cut alike in every
        row.
    writable
        Whether the library will write.

    Raises
    ------
    TypeError
        Something has no buffer protocol, or is read-only where it must be writable.
    ValueError
        A count or size is wrong, or a buffer is not C-contiguous.
    """
    if not isinstance(buffers, (list, tuple)):
        return _one_buffer(name, buffers, rows, row_bytes, writable)
    if len(buffers) != rows:
        raise ValueError(f"{name}: {len(buffers)} rows, must be {rows}, one for each id")
    if not isinstance(buffers[0], (list, tuple)):
        addresses, sizes, exports = _export(name, buffers, writable, width=0)
        wrong = 0 if rows == 1 else int((sizes == row_bytes).argmin())
        if sizes[wrong] != row_bytes:
            exports.release()
            raise ValueError(f"{name}[{wrong}]: {sizes[wrong]} bytes, must be {row_bytes}")
        return Memory(addresses.reshape(rows, 1), (row_bytes,), release=exports.release)
    return _pieces(name, buffers, rows, row_bytes, tensor_sizes, writable)


def memory_of_addresses(name: str, addresses: Any, rows: int, row_bytes: int, tensor_sizes: tuple[int, ...]) -> Memory:
    """Check raw addresses: uint64, shape (n, k) with k = 1, or one for each tensor of the row's shards.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape, or a null address.
    """
    try:
        array = np.asarray(addresses)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if array.dtype.kind not in "ui":
        raise TypeError(f"{name}: dtype {array.dtype}, must be uint64")
    shards = row_bytes // sum(tensor_sizes)
    widths = {1: (row_bytes,), len(tensor_sizes) * shards: tensor_sizes * shards}
    if array.ndim != 2 or array.shape[0] != rows or array.shape[1] not in widths:
        allowed = " or ".join(f"({rows}, {k})" for k in sorted(widths))
        raise ValueError(f"{name}: shape {array.shape}, must be {allowed}")
    if (array <= 0).any():
        raise ValueError(f"{name}: holds an address that is not positive")
    return Memory(np.ascontiguousarray(array, dtype=np.uint64), widths[array.shape[1]])


def _one_buffer(name: str, buffer: Any, rows: int, row_bytes: int, writable: bool) -> Memory:
    try:
        shape = getattr(buffer, "shape", None)
    except ValueError as error:  # a memoryview that was released
        raise ValueError(f"{name}: {error}") from None
    if shape is not None and (len(shape) == 0 or shape[0] != rows) and rows != 1:
        raise ValueError(f"{name}: shape {tuple(shape)}, must have {rows} rows of {row_bytes} bytes")
    addresses, sizes, exports = _export(name, (buffer,), writable, width=-1)
    if int(sizes[0]) != rows * row_bytes:
        exports.release()
        what = f"shape {tuple(shape)}, {sizes[0]} bytes" if shape is not None else f"{sizes[0]} bytes"
        raise ValueError(f"{name}: {what}, must be ({rows}, {row_bytes}) bytes = {rows * row_bytes}")
    if rows > 1:
        addresses = addresses + np.arange(rows, dtype=np.uint64) * np.uint64(row_bytes)
    return Memory(addresses.reshape(rows, 1), (row_bytes,), release=exports.release)


def _pieces(
    name: str, buffers: Sequence[Any], rows: int, row_bytes: int, tensor_sizes: tuple[int, ...], writable: bool
) -> Memory:
    width = len(buffers[0])
    for i, row in enumerate(buffers):
        if not isinstance(row, (list, tuple)) or len(row) != width or width == 0:
            got = f"{len(row)} buffers" if isinstance(row, (list, tuple)) else type(row).__name__
            raise ValueError(
                f"{name}[{i}]: {got}, must be a list of {width or len(tensor_sizes)} buffers like {name}[0]"
            )
    addresses, sizes, exports = _export(name, [one for row in buffers for one in row], writable, width=width)
    table = sizes.reshape(rows, width)
    uneven = np.flatnonzero((table != table[0]).any(axis=1))
    wrong = uneven[0] if len(uneven) else (0 if int(table[0].sum()) != row_bytes or not table[0].all() else -1)
    if wrong >= 0:
        exports.release()
        need = (
            list(tensor_sizes) if row_bytes == sum(tensor_sizes) else f"the same sizes in every row, {row_bytes} in all"
        )
        raise ValueError(f"{name}[{wrong}]: buffers of {table[wrong].tolist()} bytes, must be {need}")
    return Memory(addresses.reshape(rows, width), tuple(table[0].tolist()), release=exports.release)


def _export(name: str, flat: Sequence[Any], writable: bool, *, width: int) -> tuple[U64, U64, Exports]:
    """Export `flat`; `width` says how to name an element: -1 not at all, 0 ``name[i]``, k ``name[i][j]``."""
    for index, one in enumerate(flat):
        if isinstance(one, np.ndarray) and one.dtype.hasobject:  # its bytes are pointers: overwriting them would crash
            raise TypeError(f"{_place(name, index, width)}: dtype {one.dtype}, must hold plain bytes, not objects")
    addresses = np.empty(len(flat), dtype=np.uint64)
    sizes = np.empty(len(flat), dtype=np.uint64)
    try:
        return addresses, sizes, export_buffers(flat, writable, addresses, sizes)
    except (TypeError, BufferError) as error:
        if len(error.args) != 2:
            raise
        index, why = error.args
        raise _explain(_place(name, index, width), flat[index], writable, why) from None


def _place(name: str, index: int, width: int) -> str:
    """Name an element of the caller's argument; `width` as in `_export`."""
    if width < 0:
        return name
    return f"{name}[{index}]" if width == 0 else f"{name}[{index // width}][{index % width}]"


def _explain(where: str, one: Any, writable: bool, why: str) -> Exception:
    """Say in the same words for every kind of object why `one` cannot be exported."""
    try:
        view = memoryview(one)
    except TypeError:
        return TypeError(f"{where}: {type(one).__name__} has no buffer protocol")
    except ValueError as error:  # a memoryview that was released
        return ValueError(f"{where}: {error}")
    with view:
        if writable and view.readonly:
            return TypeError(f"{where}: {type(one).__name__} is read-only, must be writable")
        return ValueError(f"{where}: {why if view.c_contiguous else 'not C-contiguous'}")


class Regions:
    """The caller memory that was registered: address ranges, looked up for a whole array at a time."""

    def __init__(self) -> None:
        self._regions: list[tuple[int, int]] = []  # (start, end), sorted by start; may overlap

    def add(self, start: int, length: int) -> tuple[int, int]:
        """Add a range; returns the token for `remove`."""
        region = (start, start + length)
        self._regions.insert(bisect_right(self._regions, region), region)
        return region

    def remove(self, region: tuple[int, int]) -> None:
        """Forget a range."""
        self._regions.remove(region)

    def __len__(self) -> int:
        return len(self._regions)

    def cover(self, addresses: U64, piece_sizes: tuple[int, ...]) -> bool:
        """Tell whether every piece of every row lies inside one registered range."""
        if not self._regions:
            return False
        if addresses.size == 1:
            at = int(addresses[0, 0])
            return any(start <= at and at + piece_sizes[0] <= end for start, end in self._regions)
        sizes = np.array(piece_sizes, dtype=np.uint64)
        ends = addresses + sizes
        inside = np.zeros(addresses.shape, dtype=np.bool_)
        for start, end in self._regions:
            inside |= (addresses >= np.uint64(start)) & (ends <= np.uint64(end))
        return bool(inside.all())


def as_sizes(piece_sizes: tuple[int, ...]) -> I64:
    """Return piece sizes as the array that a batch shows."""
    return np.array(piece_sizes, dtype=np.int64)
