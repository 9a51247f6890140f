"""KV blocks to store and to compare: real KV bytes, every 4 KiB page stamped, so that no two pages are ever equal.

A byte that is wrong, shifted, from another block or left over from an earlier load is found, because a loaded block is
compared with what its id says it must be, every byte of it.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Final

import numpy as np

from ..types import BLOCK_ID_BYTES, I64, U8, Bools, as_block_ids

__all__ = ["BLOCK_BYTES_MULTIPLE", "PAGE_BYTES", "SAMPLE_BLOCK_BYTES", "BlockMaker", "make_blocks", "verify"]

PAGE_BYTES: Final = 4096
BLOCK_BYTES_MULTIPLE: Final = 32
"""Sizes of blocks are multiples of this; so the last page, too, has room for its stamp."""
SAMPLE_BLOCK_BYTES: Final = 368_640
"""Bytes of one block of the samples: 16 tokens of SmolLM2-135M in bf16."""

_STAMP: Final = np.dtype([("id", np.uint8, BLOCK_ID_BYTES), ("page", "<u8")])
# One head's vector of one token. Blocks begin at one, so that they keep the grain of real KV.
_VECTOR_BYTES: Final = 128


@lru_cache(maxsize=1)
def _samples() -> U8:
    """Shipped KV bytes, uint8, shape (2_949_120,), read-only."""
    with resources.as_file(resources.files(__package__) / "data" / "kv_smollm2_bf16.npy") as path:
        flat: U8 = np.load(path).reshape(-1).view(np.uint8)
    flat.flags.writeable = False
    return flat


class BlockMaker:
    """Makes and compares blocks of one size. Thread-safe: it holds nothing but read-only bytes.

    Parameters
    ----------
    block_bytes
        A positive multiple of `BLOCK_BYTES_MULTIPLE`.

    Raises
    ------
    ValueError
        `block_bytes` is not such a number.
    """

    def __init__(self, block_bytes: int) -> None:
        if block_bytes <= 0 or block_bytes % BLOCK_BYTES_MULTIPLE:
            raise ValueError(f"block_bytes: {block_bytes}, must be a positive multiple of {BLOCK_BYTES_MULTIPLE}")
        self.block_bytes = block_bytes
        samples = _samples()
        self._starts = len(samples) // _VECTOR_BYTES
        # Every start has a whole block behind it.
        copies = -(-block_bytes // len(samples)) + 1
        self._tape = np.tile(samples, copies)[: len(samples) + block_bytes]
        self._pages = np.arange(-(-block_bytes // PAGE_BYTES), dtype="<u8")

    def make(self, ids: U8, out: U8 | None = None) -> U8:
        """Return the blocks of `ids`.

        Parameters
        ----------
        ids
            uint8, shape (n, 16).
        out
            uint8, shape (n, block_bytes), C-contiguous, filled and returned; allocated if None.

        Raises
        ------
        ValueError
            `out` has another shape or layout.
        """
        ids = as_block_ids(ids)
        if out is None:
            out = np.empty((len(ids), self.block_bytes), np.uint8)
        self._check("out", out, ids)
        for row, start, block_id in zip(out, self._start_bytes(ids), ids, strict=True):
            row[:] = self._tape[start : start + self.block_bytes]
            stamps = self._stamps_of(row)
            stamps["id"] = block_id
            stamps["page"] = self._pages
        return out

    def wrong_bytes(self, blocks: U8, ids: U8) -> I64:
        """Compare every byte with a fresh expectation; returns the bytes that differ in each block, int64, shape (n,).

        Parameters
        ----------
        blocks
            uint8, shape (n, block_bytes), C-contiguous. Only read.
        ids
            uint8, shape (n, 16): what the blocks should be.

        Raises
        ------
        ValueError
            `blocks` has another shape or layout.
        """
        ids = as_block_ids(ids)
        self._check("blocks", blocks, ids)
        wrong = np.zeros(len(ids), np.int64)
        expected = np.empty((1, self.block_bytes), np.uint8)  # one row, so that it stays in the processor's cache
        for i in range(len(ids)):
            self.make(ids[i : i + 1], expected)
            if not np.array_equal(blocks[i].view(np.uint64), expected[0].view(np.uint64)):
                wrong[i] = np.count_nonzero(blocks[i] != expected[0])
        return wrong

    def _start_bytes(self, ids: U8) -> list[int]:
        # Ids are digests: where a block begins in the samples is as good as random.
        words = np.ascontiguousarray(ids).view("<u8")
        mixed: list[int] = ((words[:, 0] ^ words[:, 1]) % np.uint64(self._starts)).tolist()
        return [one * _VECTOR_BYTES for one in mixed]

    def _stamps_of(self, row: U8) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        """Return a view of the first 24 bytes of every page of a block, the last, shorter one included."""
        return np.ndarray((len(self._pages),), _STAMP, buffer=row, strides=(PAGE_BYTES,))

    def _check(self, name: str, blocks: U8, ids: U8) -> None:
        if blocks.dtype != np.uint8 or blocks.shape != (len(ids), self.block_bytes):
            need = (len(ids), self.block_bytes)
            raise ValueError(f"{name}: {blocks.dtype} of shape {blocks.shape}, must be uint8 of shape {need}")
        if not blocks.flags.c_contiguous:
            raise ValueError(f"{name}: the array is not C-contiguous")


_maker = lru_cache(maxsize=4)(BlockMaker)


def make_blocks(ids: U8, block_bytes: int) -> U8:
    """Return new blocks of `ids`, uint8, shape (n, block_bytes). See `BlockMaker.make`, which can reuse memory."""
    return _maker(block_bytes).make(ids)


def verify(blocks: U8, ids: U8) -> Bools:
    """Bool, shape (n,): which of `blocks`, uint8, shape (n, block_bytes), are byte by byte what `ids` say."""
    right: Bools = _maker(blocks.shape[1]).wrong_bytes(blocks, ids) == 0
    return right
