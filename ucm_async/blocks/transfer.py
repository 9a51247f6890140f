"""What one lane works with, and the steps that loads and dumps share."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from ..abc import Batch, Engine
from ..engines.arena import Arena
from ..types import I64, U64, Status

__all__ = ["DIRECT_ALIGN", "Transfer", "can_go_direct", "status_of_errno"]

DIRECT_ALIGN: Final = 4096
"""What O_DIRECT asks of addresses, offsets and lengths. Many devices ask for less; no file system asks for more."""


@dataclass(slots=True)
class Transfer:
    """The means of one lane. Loads and dumps have one each, so that neither waits for the other.

    Attributes
    ----------
    pool
        Threads for file operations, copies and checksums.
    engine
        Moves the data.
    arena
        Slots; a slot mirrors a block's file: what lies at an offset of the file lies there in the slot.
    heads
        Slots that have room for the header only, for blocks whose data the kernel moves to or from the caller's memory.
    counts
        Plain counters, by name.
    """

    pool: Engine
    engine: Engine
    arena: Arena
    heads: Arena
    counts: Counter[str] = field(default_factory=Counter)

    def slots_for(self, batch: Batch, row_bytes_min: int = 0) -> Arena:
        """Return where a batch gets its slots.

        From `heads` if the kernel can reach the memory of the caller itself, and rows have `row_bytes_min` at least; so
        it can that of encoded rows.
        """
        if batch.encoded is not None:
            return self.heads
        direct = batch.direct and int(batch.piece_sizes.sum()) >= row_bytes_min
        return self.heads if direct and can_go_direct(batch.addresses, batch.piece_sizes) else self.arena


def can_go_direct(addresses: U64, piece_sizes: I64) -> bool:
    """Tell whether O_DIRECT can read into, or write from, these pieces as they lie."""
    return not ((addresses % DIRECT_ALIGN).any() or (piece_sizes % DIRECT_ALIGN).any())


def status_of_errno(number: int) -> Status:
    """Return what a failed system call means for a row."""
    if number == errno.ENOENT:
        return Status.MISS
    if number in (errno.ENOSPC, errno.EDQUOT):
        return Status.NO_SPACE
    return Status.IO_ERROR
