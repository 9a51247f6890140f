"""What one lane works with, and the steps that loads and dumps share."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..abc import Batch, Engine
from ..config import StoreConfig
from ..engines.arena import Arena
from ..engines.pool import make_pool
from ..engines.probe import make_engine
from ..errors import ConfigError
from ..types import I64, U64, Status
from .layout import BlockLayout

__all__ = [
    "DIRECT_ALIGN",
    "Transfer",
    "can_go_direct",
    "close_transfers",
    "make_transfer",
    "status_of_errno",
    "switch_engines",
]

DIRECT_ALIGN: Final = 4096
"""What O_DIRECT asks of addresses, offsets and lengths. Many devices ask for less; no file system asks for more."""

IN_FLIGHT_BYTES: Final = 16 << 20
"""With the kernel, a lane. More does not make a disk faster, but when its queue is full, whoever gives it more is held
up until there is room: of 200 reads of 1 MiB at a depth of 128, the first was back after 34 ms, at this bound after 7,
and all of them after 80 and 81. What comes later, from the other lane or another process, waits behind less."""

HEAD_SLOTS: Final = 1024
"""Blocks of registered memory that a lane has under way."""

SLOTS_MIN: Final = 8
"""Even for blocks larger than the staging buffer: fewer slots would leave the disk idle between two blocks."""


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

    def statistics(self) -> dict[str, Any]:
        """Return plain, JSON-ready counters of it all."""
        return {
            "counts": dict(self.counts),
            "engine": dict(self.engine.statistics()),
            "pool": dict(self.pool.statistics()),
            "arena": self.arena.statistics(),
        }


async def make_transfer(config: StoreConfig, layout: BlockLayout, lane: str, threads: int, *, direct: bool) -> Transfer:
    """Make the means of a lane, which its name tells from others, with `threads` for file operations and copies.

    Raises
    ------
    ConfigError
        There is no memory for the slots.
    """
    slot = layout.file_bytes
    slots = max(SLOTS_MIN, int(config.staging_buffer_gb * (1 << 30)) // layout.block_size)
    try:
        arena, heads = await asyncio.gather(Arena.create(slot, slots), Arena.create(layout.header_bytes, HEAD_SLOTS))
    except (OSError, MemoryError) as error:
        given = config.staging_buffer_gb
        raise ConfigError(f"staging_buffer_gb: {given}, no memory for {slots} slots of {slot} bytes") from error
    engine = _make_engine(config, arena, direct=direct)
    try:
        return Transfer(make_pool(threads, f"ucm-{lane}"), engine, arena, heads)
    except BaseException:
        await engine.aclose()
        raise


def _make_engine(config: StoreConfig, arena: Arena, *, direct: bool) -> Engine:
    return make_engine(
        config.io_engine,
        direct=direct,
        depth=config.io_depth,
        max_bytes=IN_FLIGHT_BYTES,
        threads=config.io_threads,
        memory=arena,
    )


async def switch_engines(
    transfers: Sequence[Transfer], before: StoreConfig, after: StoreConfig, *, direct: bool
) -> None:
    """Switch the engines where the configuration asks for others: what the old ones have, they finish."""
    if all(getattr(before, key) == getattr(after, key) for key in ("io_engine", "io_depth", "io_threads")):
        return
    old: list[Engine] = []
    for transfer in transfers:
        new = _make_engine(after, transfer.arena, direct=direct)
        old.append(transfer.engine)
        transfer.engine = new
    for engine in old:
        await engine.aclose()


async def close_transfers(transfers: Sequence[Transfer]) -> None:
    """Close what was made, side by side: freeing the kernel's contexts and joining threads takes its time."""
    await asyncio.gather(*(one.aclose() for transfer in transfers for one in (transfer.engine, transfer.pool)))
    for transfer in transfers:
        transfer.arena.close()
        transfer.heads.close()


def can_go_direct(addresses: U64, piece_sizes: I64) -> bool:
    """Tell whether O_DIRECT can read into, or write from, these pieces as they lie."""
    return not ((addresses % DIRECT_ALIGN).any() or (piece_sizes % DIRECT_ALIGN).any())


def status_of_errno(number: int) -> Status:
    """Return what a failed system call means for a row."""
    if number == errno.ENOENT:
        return Status.MISS
    if number in (errno.ENOSPC, errno.EDQUOT):
        return Status.NO_SPACE
    if number == errno.EBUSY:
        return Status.BUSY
    return Status.IO_ERROR
