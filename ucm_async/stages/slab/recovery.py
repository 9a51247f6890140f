"""Filling the table of slots when a directory is opened: from the checkpoint, or from the header of every slot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ...abc import OnProgress
from ...blocks.encoded_header import check_encoded_headers
from ...blocks.header import CHECKSUM_FROM, HEADER, used_bytes
from ...blocks.layout import BlockLayout
from ...blocks.transfer import Transfer
from ...blocks.verify import verify_block
from ...engines import requests as rq
from ...engines.arena import Arena
from ...engines.waits import completed
from ...native import SlotTable
from ...types import I64, U8, Bools
from .layout import GONE, SlabGeometry

__all__ = ["Headers", "OpenSegment", "drop_bad_twins", "fill", "name_bad", "read_headers"]

_log = logging.getLogger("ucm_async.slab")

BATCH_SLOTS: Final = 256
"""Headers that are read with one submit; two such batches are under way, so that the device always has some."""

ATTEMPTS_MAX: Final = 6
ATTEMPT_PAUSE_S: Final = 0.002
"""So often, and with so much more time before each, headers are read again that could not be read."""

NAMED_MAX: Final = 10
"""So many bad headers are named in the log; the rest are only counted."""


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A segment that is read: its number, the class of its slots, and an open descriptor."""

    number: int
    kind: int
    fd: int


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
    unreadable
        int64, shape (m,): slots that could not be read.
    lost
        int64, shape (k,): those of `slots` with blocks that a failed sync may have lost.
    """

    slots: I64
    ids: U8
    bad: dict[int, str] = field(default_factory=dict)
    unreadable: I64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    lost: I64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


async def read_headers(
    segments: Sequence[OpenSegment],
    geometry: SlabGeometry,
    layout: BlockLayout,
    namespace: bytes,
    transfer: Transfer,
    on_progress: OnProgress | None = None,
) -> Headers:
    """Read the header of every slot.

    Parameters
    ----------
    segments
        By number, in ascending order.
    geometry, layout, namespace
        What is expected.
    transfer
        Who reads.
    on_progress
        Told how many slots of how many are read.
    """
    total = len(segments) * geometry.slots
    work = [
        (segment, geometry.first(segment.number) + np.arange(start, min(start + BATCH_SLOTS, geometry.slots)))
        for segment in segments
        for start in range(0, geometry.slots, BATCH_SLOTS)
    ]
    found: list[Headers | None] = [None] * len(work)
    turns = iter(enumerate(work))
    done = 0

    async def read_some() -> None:
        nonlocal done
        for turn, (segment, slots) in turns:
            found[turn] = await _read_batch(segment, slots, geometry, layout, namespace, transfer)
            done += len(slots)
            if on_progress is not None:
                on_progress("slots read", done, total)

    await asyncio.gather(read_some(), read_some())
    parts = [part for part in found if part is not None]
    bad: dict[int, str] = {}
    for part in parts:
        bad |= part.bad
    if not parts:
        return Headers(np.zeros(0, dtype=np.int64), np.zeros((0, 16), dtype=np.uint8))
    columns = [np.concatenate([getattr(part, name) for part in parts]) for name in ("slots", "ids", "unreadable")]
    return Headers(columns[0], columns[1], bad, columns[2])


async def _read_batch(
    segment: OpenSegment,
    slots: I64,
    geometry: SlabGeometry,
    layout: BlockLayout,
    namespace: bytes,
    transfer: Transfer,
) -> Headers:
    heads = await transfer.heads.lease(len(slots))
    try:
        table = rq.new_requests(2 * len(slots)).reshape(-1, 2)
        reads, sums = table.T
        reads["opcode"] = rq.OP_READ
        reads["fd"] = segment.fd
        reads["offset"] = geometry.offset(slots, segment.kind)
        reads["address"] = transfer.heads.address(heads)
        reads["length"] = layout.header_bytes
        sums["opcode"] = rq.OP_CHECKSUM | rq.FLAG_IF_WELL
        sums["address"] = reads["address"] + np.uint64(CHECKSUM_FROM)
        sums["length"] = used_bytes(layout.shards) - CHECKSUM_FROM
        await completed(transfer.engine.submit(table.reshape(-1), 2))
        for attempt in range(ATTEMPTS_MAX):  # a device may have a bad moment, and what is not read is not found
            again = np.flatnonzero(reads["result"] != layout.header_bytes)
            if not len(again):
                break
            await asyncio.sleep(ATTEMPT_PAUSE_S * attempt)
            part = np.ascontiguousarray(table[again])
            await completed(transfer.engine.submit(part.reshape(-1), 2))
            table[again] = part
        got = reads["result"]
        pages = transfer.heads.view()[heads, : used_bytes(layout.shards)]
        read = got >= 0
        whole, room = got[read] == layout.header_bytes, geometry.sizes[segment.kind]
        found = _judge(pages[read], slots[read], whole, sums["result"][read], room, layout, namespace)
        found.unreadable = slots[~read]
        return found
    finally:
        transfer.heads.release(heads)


async def drop_bad_twins(
    found: Headers, segments: Sequence[OpenSegment], geometry: SlabGeometry, namespace: bytes, transfer: Transfer
) -> None:
    """Of blocks that several slots claim to hold, leave out the copies that are damaged. Such blocks are few.

    One may have been taken from a cold block and not have been written again, or its data may not have reached the
    medium, while another was synced.
    """
    twins = await asyncio.to_thread(_find_twins, found.ids)
    if not len(twins):
        return
    keep = np.ones(len(found.ids), dtype=np.bool_)
    by_number = {segment.number: segment for segment in segments}
    arena = await Arena.create(geometry.sizes[-1], 1)
    try:
        for at in twins.tolist():
            slots = found.slots[at : at + 1]
            segment = by_number[int(slots[0]) // geometry.slots]
            read = rq.new_requests(1)
            read["opcode"], read["fd"] = rq.OP_READ, segment.fd
            read["offset"], read["length"] = geometry.offset(slots, segment.kind), geometry.sizes[segment.kind]
            read["address"] = arena.base
            await completed(transfer.engine.submit(read, 1))
            content = arena.view()[0, : max(0, int(read["result"][0]))]
            keep[at] = not await asyncio.to_thread(verify_block, content, found.ids[at].tobytes(), namespace)
    finally:
        arena.close()
    found.slots, found.ids = found.slots[keep], found.ids[keep]


def _find_twins(ids: U8) -> I64:
    """Return the places of ids, uint8 (n, 16), that occur more than once. Takes a second for a million."""
    halves = ids.view(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    same = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    twins = np.zeros(len(ids), dtype=np.bool_)
    twins[order[1:][same]] = twins[order[:-1][same]] = True
    return np.flatnonzero(twins)


def _judge(
    pages: U8, slots: I64, whole: Bools, sums: I64, slot_bytes: int, layout: BlockLayout, namespace: bytes
) -> Headers:
    """Tell slots that hold a block from those that hold none, and from those that hold something else."""
    head = pages[:, : HEADER.itemsize].view(HEADER)[:, 0]
    ids = np.ascontiguousarray(head["block_id"])
    room = np.full(len(ids), slot_bytes)
    check = check_encoded_headers(layout, pages, ids, namespace, sums, room)  # which takes plain ones, too
    good = check.good & whole
    empty = (head["magic"] == GONE) | ~pages.any(axis=1)
    bad = {int(slots[i]): check.why.get(i, "it is cut short") for i in np.flatnonzero(~good & ~empty).tolist()}
    return Headers(slots[good], ids[good], bad)


def name_bad(found: Headers, where: str) -> str:
    """Return a line about slots with bad headers, for people."""
    bad = found.bad
    first = "; ".join(f"slot {slot}: {why}" for slot, why in sorted(bad.items())[:NAMED_MAX])
    more = f"; and {len(bad) - NAMED_MAX} more" if len(bad) > NAMED_MAX else ""
    unread = f", and {len(found.unreadable)} cannot be read" if len(found.unreadable) else ""
    return f"{where}: {len(bad)} slots hold no block and are not empty ({first}{more}){unread}"


def fill(table: SlotTable, geometry: SlabGeometry, kinds: dict[int, int], found: Headers) -> int:
    """Enter segments, by number and class, and what is stored in them, into a table that has neither.

    Blocks; returns the blocks.

    Of two slots with one block, the lower one counts. What cannot be read is not used.
    """
    slots, ids, stored = found.slots, found.ids, 0
    for segment, kind in kinds.items():
        first = geometry.first(segment)
        table.add(first, geometry.slots, kind)
        table.seize(first, geometry.slots)
        part = slice(*np.searchsorted(slots, (first, first + geometry.slots)).tolist())
        mine = np.ascontiguousarray(slots[part])
        results = np.ones(len(mine), dtype=np.uint8)
        table.publish(mine, np.ascontiguousarray(ids[part]), results)
        free = np.ones(geometry.slots, dtype=np.bool_)
        free[mine[results == 0] - first] = False
        unreadable = found.unreadable[(found.unreadable >= first) & (found.unreadable < first + geometry.slots)]
        free[unreadable - first] = False
        table.spoil(unreadable)
        table.give(first + np.flatnonzero(free))
        stored += int((results == 0).sum())
    for slot in found.lost.tolist():
        table.distrust(slot, 1)
    return stored
