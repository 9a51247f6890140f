"""Filling the table of slots when a directory is opened: from the checkpoint, or from the header of every slot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ...blocks.encoded_header import check_encoded_headers
from ...blocks.header import CHECKSUM_FROM, HEADER, used_bytes
from ...blocks.layout import BlockLayout
from ...blocks.transfer import Transfer
from ...engines import requests as rq
from ...engines.waits import completed
from ...native import SlotTable
from ...types import I64, U8, Bools
from .layout import GONE, SlabGeometry

__all__ = ["Headers", "Progress", "fill", "name_bad", "read_headers"]

_log = logging.getLogger("ucm_async.slab")

Progress = Callable[[int, int], None]
"""Told how much of how much is done."""

BATCH_SLOTS: Final = 256
"""Headers that are read with one submit; two such batches are under way, so that the device always has some."""

NAMED_MAX: Final = 10
"""So many bad headers are named in the log; the rest are only counted."""


@dataclass(slots=True)
class Headers:
    """What the headers of a backend say.

    Attributes
    ----------
    slots
        int64, shape (n,): those that begin with the header of a block, ascending.
    ids
        uint8, shape (n, 16).
    bad
        Slots that begin with something else, and why that is no header.
    """

    slots: I64
    ids: U8
    bad: dict[int, str] = field(default_factory=dict)


async def read_headers(
    segments: Sequence[tuple[int, int]],
    geometry: SlabGeometry,
    layout: BlockLayout,
    namespace: bytes,
    transfer: Transfer,
    progress: Progress | None = None,
) -> Headers:
    """Read the header of every slot.

    Parameters
    ----------
    segments
        Number and open descriptor of each, in ascending order.
    geometry, layout, namespace
        What is expected.
    transfer
        Who reads.
    progress
        Told how many slots of how many are read.

    Raises
    ------
    OSError
        One cannot be read.
    """
    total = len(segments) * geometry.slots
    work = [
        (fd, geometry.first(number) + np.arange(start, min(start + BATCH_SLOTS, geometry.slots)))
        for number, fd in segments
        for start in range(0, geometry.slots, BATCH_SLOTS)
    ]
    found: list[Headers | None] = [None] * len(work)
    turns = iter(enumerate(work))
    done = 0

    async def read_some() -> None:
        nonlocal done
        for turn, (fd, slots) in turns:
            found[turn] = await _read_batch(fd, slots, geometry, layout, namespace, transfer)
            done += len(slots)
            if progress is not None:
                progress(done, total)

    await asyncio.gather(read_some(), read_some())
    parts = [part for part in found if part is not None]
    bad: dict[int, str] = {}
    for part in parts:
        bad |= part.bad
    if not parts:
        return Headers(np.zeros(0, dtype=np.int64), np.zeros((0, 16), dtype=np.uint8))
    return Headers(np.concatenate([part.slots for part in parts]), np.concatenate([part.ids for part in parts]), bad)


async def _read_batch(
    fd: int, slots: I64, geometry: SlabGeometry, layout: BlockLayout, namespace: bytes, transfer: Transfer
) -> Headers:
    heads = await transfer.heads.lease(len(slots))
    try:
        table = rq.new_requests(2 * len(slots)).reshape(-1, 2)
        reads, sums = table.T
        reads["opcode"] = rq.OP_READ
        reads["fd"] = fd
        reads["offset"] = geometry.offset(slots)
        reads["address"] = transfer.heads.address(heads)
        reads["length"] = layout.header_bytes
        sums["opcode"] = rq.OP_CHECKSUM | rq.FLAG_IF_WELL
        sums["address"] = reads["address"] + np.uint64(CHECKSUM_FROM)
        sums["length"] = used_bytes(layout.shards) - CHECKSUM_FROM
        await completed(transfer.engine.submit(table.reshape(-1), 2))
        got = reads["result"]
        if (got < 0).any():
            at = int(np.argmax(got < 0))
            raise OSError(-int(got[at]), f"the header of slot {slots[at]} cannot be read")
        pages = transfer.heads.view()[heads, : used_bytes(layout.shards)]
        return _judge(pages, slots, got == layout.header_bytes, sums["result"], layout, namespace)
    finally:
        transfer.heads.release(heads)


def _judge(pages: U8, slots: I64, whole: Bools, sums: I64, layout: BlockLayout, namespace: bytes) -> Headers:
    """Tell slots that hold a block from those that hold none, and from those that hold something else."""
    head = pages[:, : HEADER.itemsize].view(HEADER)[:, 0]
    ids = np.ascontiguousarray(head["block_id"])
    everything = np.full(len(ids), layout.file_bytes)
    check = check_encoded_headers(layout, pages, ids, namespace, sums, everything)  # which takes plain ones, too
    good = check.good & whole
    empty = (head["magic"] == GONE) | ~pages.any(axis=1)
    bad = {int(slots[i]): check.why.get(i, "it is cut short") for i in np.flatnonzero(~good & ~empty).tolist()}
    return Headers(slots[good], ids[good], bad)


def name_bad(bad: dict[int, str], where: str) -> str:
    """Return a line about slots with bad headers, for people."""
    first = "; ".join(f"slot {slot}: {why}" for slot, why in sorted(bad.items())[:NAMED_MAX])
    more = f"; and {len(bad) - NAMED_MAX} more" if len(bad) > NAMED_MAX else ""
    return f"{where}: {len(bad)} slots hold no block and are not empty ({first}{more})"


def fill(table: SlotTable, geometry: SlabGeometry, segments: Sequence[int], slots: I64, ids: U8) -> int:
    """Enter segments, and what is stored in them, into a table that has neither. Blocks; returns the blocks.

    Of two slots with one block, the lower one counts: both are as good.
    """
    stored = 0
    for segment in segments:
        first = geometry.first(segment)
        table.add(first, geometry.slots)
        table.seize(first, geometry.slots)
        part = slice(*np.searchsorted(slots, (first, first + geometry.slots)).tolist())
        mine = np.ascontiguousarray(slots[part])
        results = np.ones(len(mine), dtype=np.uint8)
        table.publish(mine, np.ascontiguousarray(ids[part]), results)
        free = np.ones(geometry.slots, dtype=np.bool_)
        free[mine[results == 0] - first] = False
        table.give(first + np.flatnonzero(free))
        stored += int((results == 0).sum())
    return stored
