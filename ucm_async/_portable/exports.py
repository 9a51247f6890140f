"""Buffer exports of a caller's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np

from .memory import Data, address_of, array_of


@final
class Exports:
    """Buffer exports of a caller's memory, held until ``release()`` or deallocation."""

    def __init__(self, views: list[memoryview]) -> None:
        self._views = views
        self.released = False

    def release(self) -> None:
        """Give the buffers back. Idempotent."""
        views, self._views = self._views, []
        self.released = True
        for view in views:
            view.release()


def export_buffers(rows: Sequence[Any], writable: bool, addresses: Data, sizes: Data, /) -> Exports:
    """Take a C-contiguous buffer export of every object of `rows` and fill in where they lie.

    Parameters
    ----------
    rows
        Objects with the buffer protocol, n of them.
    writable
        Whether each must be writable.
    addresses, sizes
        uint64, shape (n,), writable; filled in. Sizes are in bytes.

    Raises
    ------
    TypeError, BufferError
        An object cannot be exported; ``args`` are its index and the reason. Nothing stays exported then.
    ValueError
        `addresses` or `sizes` has another length than `rows`.
    """
    where = array_of(addresses, np.uint64, "addresses", writable=True)
    lengths = array_of(sizes, np.uint64, "sizes", writable=True)
    if len(where) != len(rows) or len(lengths) != len(rows):
        raise ValueError(f"{len(rows)} rows, but {len(where)} addresses and {len(lengths)} sizes")
    exports = Exports([])
    try:
        for i, row in enumerate(rows):
            view = _export(i, row, writable)
            exports._views.append(view)
            lengths[i] = view.nbytes
            where[i] = address_of(view) if view.nbytes else 0
    except (TypeError, BufferError):
        exports.release()
        raise
    return exports


def _export(index: int, row: Any, writable: bool) -> memoryview:
    try:
        view = memoryview(row)
    except TypeError:
        raise TypeError(index, f"{type(row).__name__} has no buffer protocol") from None
    except ValueError as error:  # a memoryview that was released
        raise BufferError(index, str(error)) from None
    reason = "read-only" if writable and view.readonly else "not C-contiguous" if not view.c_contiguous else ""
    if reason:
        view.release()
        raise BufferError(index, reason)
    return view
