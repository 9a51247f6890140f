"""From the stage below into slots: claimed blocks are read there, and published for everybody who waits."""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
import numpy.typing as npt

from ...types import I64, U8, Reasons, Status
from .below import Below
from .transbuffer import TransBuffer
from .waiting import Waiting

__all__ = ["PARTS_AT_A_TIME", "PART_BYTES", "Filler", "cut_parts"]

PART_BYTES: Final = 12 << 20
"""Blocks of a batch are asked for in parts of about so much: what is in can be delivered while the rest is read. With
smaller ones, processes that wait for the same blocks are woken so often that they hold each other up."""

PARTS_AT_A_TIME: Final = 3
"""Parts that a batch has under way: while one is delivered the others keep the disk busy."""


class Filler:
    """Reads whole blocks from the stage below. Whoever claimed the slots still owns them, whatever comes of it."""

    def __init__(self, buffer: TransBuffer, below: Below, waiting: Waiting, counts: Counter[str]) -> None:
        self._buffer = buffer
        self._below = below
        self._waiting = waiting
        self._counts = counts

    async def fill(self, ids: U8, slots: I64, generations: npt.NDArray[np.uint32]) -> tuple[U8, Reasons]:
        """Read blocks into slots that are being filled by this process.

        Parameters
        ----------
        ids
            uint8, shape (n, 16).
        slots, generations
            As they were claimed, shape (n,).

        Returns
        -------
        status, reasons
            As of `ucm_async.abc.Lower.load`. Slots of blocks that are OK are published, and leased by the caller; the
            others are given up, and everybody who waits for them knows why.

        Notes
        -----
        If it raises or is cancelled, nothing is published, nothing below touches the slots any more, and they are still
        to be filled, or given up, by the caller.
        """
        status, reasons = await self._below.load(ids, slots)
        ok = status == Status.OK
        self._buffer.table.publish(slots[ok], False, True)
        self._waiting.settle(slots, generations, status, reasons)
        self._counts["blocks_read"] += int(np.count_nonzero(ok))
        self._counts["blocks_not_read"] += int(np.count_nonzero(~ok))
        return status, reasons


def cut_parts(groups: I64, block_size: int) -> list[I64]:
    """Cut `groups` into runs of about `PART_BYTES`, equal ones: a short last one would cost what a long one does."""
    most = max(1, PART_BYTES // block_size)
    parts = -(-len(groups) // most)
    return list(np.array_split(groups, parts)) if parts > 1 else [groups] if parts else []
