"""The Cache stage: hot blocks in memory that all processes of a host share, above a stage that stores them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar, Final

import numpy as np

from ...abc import Batch, Lent, Lower, OnProgress, SmallLoad, Stage
from ...config import StoreConfig
from ...engines.pool import make_pool
from ...errors import StoreError
from ...types import U8, Bools
from .admission import Admission
from .behind import WriteBehind
from .below import Below
from .bypass import Bypass
from .dump_queue import DumpQueue
from .fetch import Fetcher
from .fills import Filler
from .lease import Leases
from .load_queue import LoadQueue
from .moves import Mover
from .naming import Naming
from .shard_dumps import ShardDumps
from .transbuffer import TransBuffer
from .waiting import Waiting

__all__ = ["CacheStage"]

_log = logging.getLogger("ucm_async.cache")

POOL_THREADS: Final = 2
"""Of each lane. Two processors copy a third more than one; a third adds nothing."""

LOOKUP_IDS_MAX: Final = 2048
"""So many ids are looked up before the loop gets a turn: about 50 µs."""


class CacheStage(Stage):
    """Keeps whole blocks in slots; what it is made of is told in docs/design/cache.md.

    Configuration: ``cache_buffer_capacity_gb``, ``share_buffer_enable``, ``unique_id``, ``cache_policy``,
    ``dump_behind_bytes``, ``staging_buffer_gb``, ``partial_blocks_max``, ``cache_shared_queue``, and the geometry and
    namespace of the store.
    """

    name: ClassVar[str] = "Cache"
    needs_lower: ClassVar[bool | None] = True
    short_way_bytes_max = 1 << 20  # one copy of that takes some 80 µs

    def __init__(self, config: StoreConfig, lower: Lower | None) -> None:
        super().__init__(config, lower)
        assert lower is not None
        self._below: Lower = lower
        self._counts: Counter[str] = Counter()
        self._opened: AsyncExitStack | None = None

    # ---- life

    async def open(self) -> None:
        """Join the shared memory, or make it, and start the threads.

        Raises
        ------
        ConfigError
            The memory cannot be had, or is used by others in another way; or the extension is missing.
        """
        async with AsyncExitStack() as opened:
            await self._make(opened)
            self._opened = opened.pop_all()

    async def _make(self, opened: AsyncExitStack) -> None:
        """Make the parts, each with what undoes it: they are closed backwards."""
        config, counts, lower = self.config, self._counts, self._below
        self._buffer = buffer = await TransBuffer.open(config, _Told(self.on_progress))
        opened.push_async_callback(buffer.aclose)
        self._waiting = waiting = Waiting(buffer)
        opened.push_async_callback(waiting.aclose)
        self._admission = admission = Admission(buffer.slots)
        staging = int(config.staging_buffer_gb * (1 << 30))
        self._movers: list[Mover] = []
        self._bypasses: list[Bypass] = []
        for lane in ("load", "dump"):
            mover = Mover(make_pool(POOL_THREADS, f"ucm-cache-{lane}"), POOL_THREADS)
            opened.push_async_callback(mover.aclose)
            bypass = await Bypass.create(buffer.slot_bytes, staging, lower, mover)
            opened.callback(bypass.close)
            self._movers.append(mover)
            self._bypasses.append(bypass)
        (load_mover, dump_mover), (load_bypass, dump_bypass) = self._movers, self._bypasses
        if config.cache_shared_queue:
            dump_mover = load_mover
        below = Below(buffer, lower)
        filler = Filler(buffer, below, waiting, counts)
        self._loads = LoadQueue(buffer, waiting, filler, load_mover, load_bypass, admission.loads, counts)
        behind_bytes = config.dump_behind_bytes or buffer.slots * buffer.slot_bytes // 4
        self._behind = behind = WriteBehind(buffer, below, lower, behind_bytes, counts)
        naming = Naming(buffer, below, waiting, behind)
        self._shard_dumps = ShardDumps(
            buffer, below, lower, dump_mover, dump_bypass, behind, naming, admission.partial_dumps,
            config.partial_blocks_max, counts,
        )  # fmt: skip
        opened.callback(self._shard_dumps.close)
        opened.push_async_callback(behind.aclose)
        self._dumps = DumpQueue(buffer, below, waiting, dump_mover, dump_bypass, behind, self._shard_dumps, counts)
        self._fetcher = Fetcher(buffer, waiting, filler, admission.prefetches, counts)
        opened.push_async_callback(self._fetcher.aclose)
        self._leases = Leases(buffer, lower, self._fetcher)
        opened.push_async_callback(self._leases.aclose)
        self._one_queue = asyncio.Semaphore(config.queue_number) if config.cache_shared_queue else None

    async def aclose(self) -> None:
        """Write what is owed to the stage below, or log that it could not be; then leave the memory. Idempotent."""
        opened, self._opened = self._opened, None
        if opened is None:
            return
        try:
            await opened.aclose()
        finally:  # the memory goes with the last reference to it, not when the collector of cycles comes by
            del self._buffer, self._waiting, self._movers, self._bypasses, self._loads, self._dumps
            del self._behind, self._shard_dumps, self._fetcher, self._leases

    # ---- the lanes

    async def load(self, batch: Batch) -> None:
        """See `ucm_async.abc.Stage.load`."""
        async with self._turn():
            await self._loads.load(batch)

    def begin_load(self, one: SmallLoad, otherwise: Callable[[], None]) -> bool:
        """See `ucm_async.abc.Stage.begin_load`: hits are copied out right here."""
        return self._one_queue is None and self._loads.begin(one)

    async def dump(self, batch: Batch) -> None:
        """See `ucm_async.abc.Stage.dump`."""
        async with self._turn():
            await self._dumps.dump(batch)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for a turn in the one queue of ``cache_shared_queue``; without it there is always one."""
        if self._one_queue is None:
            yield
            return
        async with self._one_queue:
            yield

    # ---- what is stored

    async def lookup(self, ids: U8) -> Bools:
        """See `ucm_async.abc.Stage.lookup`: what is not in the index is asked for below."""
        found = np.zeros(len(ids), dtype=np.bool_)
        for part in _parts(len(ids)):
            if part.start:
                await asyncio.sleep(0)
            self._buffer.table.probe(ids[part], found[part].view(np.uint8))
        unknown = np.flatnonzero(~found)
        if len(unknown):
            found[unknown] = await self._below.lookup(np.ascontiguousarray(ids[unknown]))
        return found

    async def lookup_on_prefix(self, ids: U8) -> int:
        """See `ucm_async.abc.Stage.lookup_on_prefix`: goes on below where the index ends, and here where that ends."""
        at = 0
        while True:
            here = await self._prefix_here(ids, at)
            at += here
            if at == len(ids) or (not here and at):  # the second: the stage below has nothing from there on either
                return at - 1
            below = await self._below.lookup_on_prefix(ids[at:]) + 1
            at += below
            if not below or at == len(ids):
                return at - 1

    async def _prefix_here(self, ids: U8, start: int) -> int:
        """Return how many blocks from `start` on are in the index, one after another."""
        at = start
        for part in _parts(len(ids), start):
            if part.start > start:
                await asyncio.sleep(0)
            at += self._buffer.table.prefix(ids[part])
            if at < part.stop:
                break
        return at - start

    async def prefetch(self, ids: U8) -> None:
        """See `ucm_async.abc.Stage.prefetch`: starts filling slots, as many as are free or can be evicted."""
        self._fetcher.prefetch(ids)

    async def lease(self, ids: U8, deadline: float) -> Lent:
        """See `ucm_async.abc.Stage.lease`."""
        return await self._leases.lease(ids, deadline)

    async def delete(self, ids: U8) -> None:
        """See `ucm_async.abc.Stage.delete`.

        Dropped before and after: a block that is written behind must not come back below when it is done there, and one
        that is read meanwhile must not come back here.
        """
        table = self._buffer.table
        self._shard_dumps.forget(ids)
        table.drop(ids)
        await self._behind.settle(ids)
        await self._below.delete(ids)
        table.drop(ids)

    async def flush(self) -> Mapping[bytes, StoreError]:
        """See `ucm_async.abc.Stage.flush`."""
        failures = await self._behind.flush()
        return {**await self._below.flush(), **failures}

    # ---- what happened

    def statistics(self) -> Mapping[str, Any]:
        """See `ucm_async.abc.Stage.statistics`."""
        return {
            "buffer": dict(self._buffer.statistics()),
            "counts": dict(self._counts),
            "admission": self._admission.statistics(),
            "behind": dict(self._behind.statistics()),
            "partial_blocks": len(self._shard_dumps),
            "lent": len(self._leases),
            "waiting": len(self._waiting),
            "load": {"pool": dict(self._movers[0].statistics()), "bypass": self._bypasses[0].statistics()},
            "dump": {"pool": dict(self._movers[1].statistics()), "bypass": self._bypasses[1].statistics()},
        }


class _Told:
    """Says how far the memory is faulted in, also in the log if that takes long enough to be asked about."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._next = LOG_EVERY_BYTES
        self._on_progress = on_progress

    def __call__(self, done: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress("bytes of the cache made", done, total)
        if done >= self._next and total > LOG_EVERY_BYTES:
            _log.info("the cache's memory: %d of %d MiB are there", done >> 20, total >> 20)
            self._next = done + LOG_EVERY_BYTES


LOG_EVERY_BYTES: Final = 8 << 30


def _parts(count: int, start: int = 0) -> Iterator[slice]:
    return (slice(at, min(at + LOOKUP_IDS_MAX, count)) for at in range(start, count, LOOKUP_IDS_MAX))
