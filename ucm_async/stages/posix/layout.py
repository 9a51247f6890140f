"""Where a block lies: backend and path. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np

from ... import native
from ...blocks.spread import backend_seeds, choose_backend, mix
from ...types import U8

__all__ = [
    "PATH_BYTES",
    "backend_seeds",
    "block_paths",
    "choose_backend",
    "paths_below",
    "subdirectories",
]

_HEX: Final = np.frombuffer(b"".join(b"%02x" % i for i in range(256)), dtype=np.uint8).reshape(256, 2)
PATH_BYTES: Final = 36


def subdirectories(ids: U8) -> U8:
    """Return the number, 0 … 255, of the directory that each block's file lies in."""
    return (mix(ids) >> np.uint64(56)).astype(np.uint8)


def block_paths(ids: U8) -> U8:
    """Return the path of each block's file: ``xx/<32 hex digits>``, NUL-terminated, shape (n, 36)."""
    out = np.empty((len(ids), PATH_BYTES), dtype=np.uint8)
    native.block_paths(ids, out)
    return out


def paths_below(directory: str, ids: U8) -> U8:
    """Return ``directory/<32 hex digits>`` for each id, NUL-terminated, one path a row."""
    prefix = np.frombuffer(directory.encode() + b"/", dtype=np.uint8)
    out = np.zeros((len(ids), len(prefix) + 33), dtype=np.uint8)
    out[:, : len(prefix)] = prefix
    out[:, len(prefix) : -1] = _HEX[ids].reshape(len(ids), 32)
    return out
