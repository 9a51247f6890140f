"""The TransBuffer: slots for whole blocks, and a table of what is in them, shared by the processes of a host."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...config import StoreConfig
from ...engines.arena import SLOT_ALIGNMENT
from ...errors import ConfigError
from ...native import CLAIM_BUSY, CLAIM_HIT, CLAIM_MINE, CLAIM_NONE, NATIVE, WHY, BlockTable
from ...types import I64, U8, U64, Status
from .segment import Geometry, Progress, Segment, make_private, open_segment, reap_dead, segment_name

__all__ = ["BUSY_NAPS_S", "SLOTS_MIN", "Claim", "TransBuffer", "geometry_of"]

SLOTS_MIN: Final = 4
"""Fewer slots are no cache: one to fill, one to read, one to write and one to evict."""

SLOTS_MAX: Final = 1 << 28
"""Of a `BlockTable`."""

BUSY_NAPS_S: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01)
"""The table is locked for microseconds, unless who has it was put off the processor: then it takes a time slice."""


REAP_EVERY_S: Final = 0.1
"""A claim that finds no slot starts a look for dead processes; not more often than this."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What became of ids that were claimed, by id.

    Attributes
    ----------
    slots
        int64: leased (HIT), to be filled (MINE), watched (THEIRS), or -1.
    states
        uint8: one of the ``CLAIM_`` constants.
    generations
        uint32: for ``BlockTable.watch``.
    """

    slots: I64
    states: U8
    generations: npt.NDArray[np.uint32]


class TransBuffer:
    """A segment, as one store uses it. Belongs to one loop; the table itself can be used from any thread.

    Attributes
    ----------
    table
        See `ucm_async.native.BlockTable`.
    slots, slot_bytes
        How many slots there are, and the bytes of each: `block_size` rounded up to whole pages.
    block_size, shard_size
        Of the store.
    """

    def __init__(self, segment: Segment, shard_size: int) -> None:
        self._segment = segment
        self.table: BlockTable = segment.table
        self.slots = segment.geometry.slots
        self.slot_bytes = segment.geometry.slot_bytes
        self.block_size = segment.geometry.block_size
        self.shard_size = shard_size
        self._reaping: asyncio.Task[None] | None = None
        self._reaped_at = -math.inf
        self.busy = 0
        self.reaped = 0

    @classmethod
    async def open(cls, config: StoreConfig, progress: Progress | None = None) -> TransBuffer:
        """Join the segment of `config`, or make it, or make one for this store alone.

        Parameters
        ----------
        config
            Its keys `cache_buffer_capacity_gb`, `share_buffer_enable`, `unique_id` and `cache_policy`, and the geometry
            and namespace of the store.
        progress
            Called from a thread while memory is faulted in, with the bytes that are, and all.

        Raises
        ------
        ConfigError
            See `open_segment`; the capacity is below `SLOTS_MIN` blocks; or the extension is missing.
        """
        geometry = geometry_of(config)
        opening = asyncio.ensure_future(asyncio.to_thread(_open, config, geometry, progress))
        try:
            return cls(await asyncio.shield(opening), config.shard_size)
        except asyncio.CancelledError:  # a thread cannot be stopped: let it end, then undo it
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await asyncio.to_thread(opening.result().close)
            raise

    def addresses(self, slots: I64) -> U64:
        """Return where slots begin: uint64, the shape of `slots`."""
        return np.uint64(self._segment.base) + slots.astype(np.uint64) * np.uint64(self.slot_bytes)

    def places(self, slots: I64, shards: I64) -> U64:
        """Return where rows lie in their slots: uint64, shape (n,); shard -1 is the whole block."""
        return self.addresses(slots) + np.maximum(shards, 0).astype(np.uint64) * np.uint64(self.shard_size)

    def views(self, slots: I64) -> list[memoryview | None]:
        """Return read-only views of the blocks in leased slots, None for -1."""
        arena, step, size = self._segment.arena, self.slot_bytes, self.block_size
        return [arena[slot * step : slot * step + size] if slot >= 0 else None for slot in slots.tolist()]

    async def claim(self, ids: U8) -> Claim:
        """Claim blocks; see `BlockTable.claim`. Those that found the table locked are tried again for a while."""
        count = len(ids)
        claim = Claim(
            np.empty(count, dtype=np.int64), np.empty(count, dtype=np.uint8), np.empty(count, dtype=np.uint32)
        )
        self.table.claim(ids, claim.slots, claim.states, claim.generations)
        if (claim.states == CLAIM_NONE).any():
            self._reap_soon()
        for nap in BUSY_NAPS_S:
            again = np.flatnonzero(claim.states == CLAIM_BUSY)
            if not len(again):
                break
            self.busy += len(again)
            await self._claim_again(ids, claim, again, nap)
        return claim

    async def _claim_again(self, ids: U8, claim: Claim, again: I64, nap: float) -> None:
        slots, states, generations = claim.slots[again], claim.states[again], claim.generations[again]
        try:
            await asyncio.sleep(nap)
        except asyncio.CancelledError:
            self.give_back(claim)
            raise
        self.table.claim(np.ascontiguousarray(ids[again]), slots, states, generations)
        claim.slots[again], claim.states[again], claim.generations[again] = slots, states, generations

    def give_back(self, claim: Claim) -> None:
        """Give up what a claim brought."""
        self.table.release(claim.slots[claim.states == CLAIM_HIT])
        self.table.fail(claim.slots[claim.states == CLAIM_MINE], int(Status.CANCELLED))

    async def reap(self) -> None:
        """Take back what dead processes hold; those that call at the same time share one look."""
        if self._reaping is None or self._reaping.done():
            self._reaping = asyncio.ensure_future(self._reap())
        await asyncio.shield(self._reaping)

    def _reap_soon(self) -> None:
        """Start a look for dead processes, which may hold what nobody can get; but not all the time."""
        now = asyncio.get_running_loop().time()
        if now - self._reaped_at > REAP_EVERY_S and (self._reaping is None or self._reaping.done()):
            self._reaped_at = now
            self._reaping = asyncio.ensure_future(self._reap())

    async def _reap(self) -> None:
        reaped = await asyncio.to_thread(reap_dead, self.table)
        self.reaped += reaped  # not in one line, which would read the count before it waits

    async def aclose(self) -> None:
        """Leave the segment. Nothing of it may be in use any more. Idempotent."""
        if self._reaping is not None:
            await asyncio.wait([self._reaping])
        await asyncio.to_thread(self._segment.close)

    def statistics(self) -> Mapping[str, Any]:
        """Return plain counters: those of the table, and what this store makes of it."""
        return {
            **self.table.statistics(),
            "slot_bytes": self.slot_bytes,
            "shared": self._segment.name,
            "policy": self.table.policy,
            "page_mode": self._segment.page_mode,
            "busy_retries": self.busy,
            "reaped": self.reaped,
        }


def geometry_of(config: StoreConfig) -> Geometry:
    """Return the geometry of the segment that `config` asks for."""
    slot_bytes = -(-config.block_size // SLOT_ALIGNMENT) * SLOT_ALIGNMENT
    slots = int(config.cache_buffer_capacity_gb * (1 << 30)) // slot_bytes
    if slots < SLOTS_MIN:
        raise ConfigError(
            f"cache_buffer_capacity_gb: {config.cache_buffer_capacity_gb}, must hold at least {SLOTS_MIN} blocks of "
            f"{slot_bytes} bytes"
        )
    if slots > SLOTS_MAX:
        raise ConfigError(
            f"cache_buffer_capacity_gb: {config.cache_buffer_capacity_gb}, must hold at most {SLOTS_MAX} blocks of "
            f"{slot_bytes} bytes"
        )
    return Geometry(slots, slot_bytes, config.block_size, config.cache_policy, config.namespace_fingerprint())


def _open(config: StoreConfig, geometry: Geometry, progress: Progress | None) -> Segment:
    if not NATIVE:
        raise ConfigError(f"store_pipeline: the Cache stage needs the extension ({WHY})")
    if not config.share_buffer_enable:
        return make_private(geometry, progress)
    return open_segment(segment_name(config.unique_id, geometry.fingerprint), geometry, progress)
