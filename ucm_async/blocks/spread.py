"""Which of several backends a block belongs to. Pure."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np

from .. import native
from ..types import I64, U8, U64

__all__ = ["backend_seeds", "choose_backend", "mix"]

_LOW: Final = np.uint64(0x9E3779B97F4A7C15)  # odd constants; any would do, but they are part of the format
_HIGH: Final = np.uint64(0xC2B2AE3D27D4EB4F)


def mix(ids: U8) -> U64:
    """Return 64 well-mixed bits of each id: ids may be consecutive numbers, or share most of their bytes."""
    mixed = np.empty(len(ids), dtype=np.uint64)
    native.mix_ids(ids, mixed)
    return mixed


def backend_seeds(paths: tuple[str, ...]) -> U64:
    """Return a 64-bit seed for each backend: the first 8 bytes of BLAKE2b of its path."""
    digests = b"".join(hashlib.blake2b(path.encode(), digest_size=8).digest() for path in paths)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def choose_backend(ids: U8, seeds: U64) -> I64:
    """Spread blocks over backends by rendezvous hashing (Thaler and Ravishankar, 1998).

    A block goes to the backend whose seed, mixed with the id, gives the largest number: adding or removing a backend
    moves only the blocks that go to it or were on it, and the order of the backends does not matter.

    Returns
    -------
    numpy.ndarray
        int64, shape (n,): position in `seeds`.
    """
    if len(seeds) == 1:
        return np.zeros(len(ids), dtype=np.int64)
    score = (mix(ids)[:, None] ^ seeds[None, :]) * _HIGH
    score ^= score >> np.uint64(31)
    score *= _LOW
    best: I64 = np.argmax(score, axis=1).astype(np.int64)
    return best
