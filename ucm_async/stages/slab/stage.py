"""The Slab stage: preallocated segments with slots, on one or several backends."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import numpy as np

from ...abc import Batch, Lower, SmallLoad, Stage
from ...blocks.layout import BlockLayout
from ...blocks.spread import backend_seeds
from ...blocks.transfer import DIRECT_ALIGN, Transfer, close_transfers, make_transfer, switch_engines
from ...blocks.writes import BlockWrites
from ...config import StoreConfig
from ...errors import ConfigError
from ...native import NATIVE, WHY
from ...space import WEIGHT_LOOKUP, SpaceLimits, SpaceManager, SpacePlace
from ...types import U8, Bools
from .backend import SlabBackend, open_backend
from .dump import Dumper
from .express import ExpressLoads
from .load import Loader
from .room import Room
from .slab import Slab
from .slabs import Slabs, stamp_now
from .space import SlabSpace

__all__ = ["SlabStage"]

_log = logging.getLogger("ucm_async.slab")

LOAD_POOL_THREADS: Final = 2
DUMP_POOL_THREADS: Final = 2
LOOKUP_AT_ONCE: Final = 1024
"""Ids that are looked up in one turn of the loop: some 50 µs."""

PARTIAL_SHARE: Final = 4
"""Incomplete blocks may hold one slot in so many: nobody but their writer can evict them."""

LOOK_S: Final = 0.5
"""How often a store looks for others that died."""


class SlabStage(Stage):
    """Keeps blocks in the slots of preallocated segments; the format is told in docs/design/slab_format.md.

    Configuration: as `ucm_async.stages.posix.PosixStage`, without ``known_blocks_max``. Needs the extension.
    """

    name: ClassVar[str] = "Slab"
    needs_lower: ClassVar[bool | None] = False
    takes_encoded: ClassVar[bool] = True

    def __init__(self, config: StoreConfig, lower: Lower | None) -> None:
        super().__init__(config, lower)
        self._layout = BlockLayout.of(config.block_size, config.shard_size)
        self._writes: BlockWrites
        self._backends: list[SlabBackend] = []
        self._open_slabs: list[Slab] = []
        self._transfers: list[Transfer] = []
        self._slabs: Slabs | None = None
        self._express: ExpressLoads | None = None
        self._watching: asyncio.Task[None] | None = None

    # ---- life

    async def open(self) -> None:
        """Open the backends, make engines, pools and slots, and find out what is stored.

        Raises
        ------
        ConfigError
            No backend can be used, or ``recover`` is "strict" and something is damaged. One backend of several that
            cannot be used is logged, and its blocks are IO_ERROR until the store is opened again.
        """
        if not NATIVE:
            raise ConfigError(f"store_pipeline: Slab needs the extension ({WHY}); Posix does without")
        if not self.config.storage_backends:
            raise ConfigError("storage_backends: empty, Slab needs at least one directory")
        opening = asyncio.ensure_future(self._open())
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:  # what threads have begun cannot be stopped: let it come, then undo it
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await self.aclose()
            raise

    async def _open(self) -> None:
        try:
            await self._open_backends()
            slabs = [await self._open_slab(backend) for backend in self._backends]
            await self._open_space(slabs)
        except BaseException:
            await self._close()
            raise

    async def _open_backends(self) -> None:
        # A relative path needs the file system to be resolved.
        paths = await asyncio.to_thread(lambda: tuple(map(os.path.abspath, self.config.storage_backends)))
        self._seeds = backend_seeds(paths)
        self._backends = await asyncio.gather(*(asyncio.to_thread(self._open_one, path) for path in paths))
        if all(backend.error for backend in self._backends):
            raise ConfigError(self._backends[0].error)
        self._direct = all(backend.direct for backend in self._backends if not backend.error)
        for lane, threads in (("load", LOAD_POOL_THREADS), ("dump", DUMP_POOL_THREADS)):
            made = await make_transfer(self.config, self._layout, lane, threads, direct=self._direct)
            self._transfers.append(made)

    def _open_one(self, path: str) -> SlabBackend:
        try:
            return open_backend(path, self.config)
        except ConfigError as error:
            if len(self.config.storage_backends) > 1:
                _log.error("backend left out: %s", error)
            return SlabBackend(path, root=None, error=str(error))  # type: ignore[arg-type]  # nobody asks a dead one

    async def _open_slab(self, backend: SlabBackend) -> Slab | None:
        if backend.error:
            return None
        slab = Slab(backend, self.config, self._layout, encoded=self.above_encodes)
        try:
            await slab.open(self._transfers[0], self.on_progress)
        except OSError as error:
            raise ConfigError(f"storage_backends: {backend.path!r}: {error.strerror or error}") from error
        self._open_slabs.append(slab)
        return slab

    async def _open_space(self, slabs: list[Slab | None]) -> None:
        config, (load, dump) = self.config, self._transfers
        namespace = config.namespace_fingerprint()
        self._slabs = found = Slabs(slabs, self._seeds, buffered=config.shard_size % DIRECT_ALIGN != 0)
        await found.open()
        places = np.where(found.dead, -1, np.cumsum(~found.dead) - 1).tolist()
        self._space = space = SlabSpace(found, places, dump)
        limits = SpaceLimits.of(config).with_marks(1.0, 1.0)
        there = [SpacePlace(one.root.parent, one.root, one.owner, one.fresh) for one in self._backends if not one.error]
        self._manager = space.manager = manager = SpaceManager(limits, there, namespace, space, config.hot_blocks_max)
        slots = sum(slab.whole_slots for slab in self._open_slabs)  # which incomplete blocks take
        partial_max = min(config.partial_blocks_max, max(1, slots // PARTIAL_SHARE))
        self._writes = BlockWrites(self._layout.shards, partial_max)
        self._room = space.room = Room(found, manager, places, dump, space.drop)
        self._loader = Loader(self._layout, namespace, found, manager.touch, space.set_aside, load)
        self._dumper = Dumper(
            self._layout, namespace, found, manager.touch, self._room.take, space.set_aside, dump, self._writes
        )
        if ExpressLoads.serves(self._layout) and not self.above_encodes:
            self._express = ExpressLoads(self._layout, namespace, found, manager.touch, load)
        await manager.open()
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        """Look for stores that died, and give back what they had taken."""
        while True:
            for slab in self._open_slabs:
                try:
                    await asyncio.to_thread(slab.see_to_the_dead)
                except OSError as error:  # the next look may go better
                    _log.warning("%s: cannot look for stores that died: %s", slab.backend.home, error)
            await asyncio.sleep(LOOK_S)

    async def setup(self, config: StoreConfig) -> None:
        """Switch the engines: what the old ones have, they finish; what comes goes to the new ones."""
        before = self.config
        await super().setup(config)
        await switch_engines(self._transfers, before, config, direct=self._direct)

    async def aclose(self) -> None:
        """Finish late completions, then free everything; the last store of a directory writes its checkpoint."""
        watching, self._watching = self._watching, None
        if watching is None:
            return
        watching.cancel()
        await asyncio.wait([watching])
        await self._manager.stop()
        await self._close()

    async def _close(self) -> None:
        transfers, self._transfers = self._transfers, []
        slabs, self._open_slabs = self._open_slabs, []
        backends, self._backends = self._backends, []
        await close_transfers(transfers)
        if self._express is not None:
            self._express.close()
            self._express = None
        if self._slabs is not None:
            await self._slabs.aclose()
        for slab in slabs:
            await slab.aclose()
        if hasattr(self, "_manager"):
            await self._manager.aclose()
        await asyncio.gather(*(asyncio.to_thread(backend.close) for backend in backends))

    # ---- the lanes

    async def load(self, batch: Batch) -> None:
        """See `ucm_async.abc.Stage.load`."""
        await (self._loader.load(batch) if batch.encoded is None else self._loader.load_encoded(batch))

    def begin_load(self, one: SmallLoad, otherwise: Callable[[], None]) -> bool:
        """See `ucm_async.abc.Stage.begin_load`: one whole small block goes the short way."""
        return self._express is not None and self._express.begin(one, otherwise)

    async def dump(self, batch: Batch) -> None:
        """See `ucm_async.abc.Stage.dump`."""
        await self._dumper.dump(batch)

    # ---- what is stored

    @property
    def _found(self) -> Slabs:
        assert self._slabs is not None, "the stage is not open"
        return self._slabs

    async def lookup(self, ids: U8) -> Bools:
        """See `ucm_async.abc.Stage.lookup`: a look at the table that all processes share, without a system call."""
        found = np.empty(len(ids), dtype=np.bool_)
        for start in range(0, len(ids), LOOKUP_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            part = np.ascontiguousarray(ids[start : start + LOOKUP_AT_ONCE])
            found[start : start + len(part)] = self._found.find(part, self._found.choose(part), stamp_now())[0] >= 0
        self._manager.touch(ids[found], WEIGHT_LOOKUP)
        return found

    async def holds(self, ids: U8) -> Bools:
        """See `ucm_async.abc.Stage.holds`."""
        return await self._dumper.holds(ids)

    async def lookup_on_prefix(self, ids: U8) -> int:
        """See `ucm_async.abc.Stage.lookup_on_prefix`."""
        at = 0
        while at < len(ids):
            part = np.ascontiguousarray(ids[at : at + LOOKUP_AT_ONCE])
            length = self._found.prefix(part)
            at += length
            if length < len(part):
                break
            await asyncio.sleep(0)
        self._manager.touch(ids[:at], WEIGHT_LOOKUP)
        return at - 1

    async def delete(self, ids: U8) -> None:
        """See `ucm_async.abc.Stage.delete`. Loads that are under way may miss."""
        if not len(ids):
            return
        await self._space.remove_blocks(ids)
        await self._dumper.discard_partial(ids)
        self._manager.forget(ids)

    # ---- what happened

    def statistics(self) -> Mapping[str, Any]:
        """See `ucm_async.abc.Stage.statistics`."""
        return {
            "backends": [
                {
                    "path": backend.path,
                    "direct": backend.direct,
                    "direct_reason": backend.direct_reason,
                    "error": backend.error,
                }
                for backend in self._backends
            ],
            "slabs": [
                {
                    "recovered": slab.recovered,
                    "dropped_headers": slab.dropped,
                    "segment_slots": slab.geometry.slots,
                    "segments": slab.segments_by_size(),
                    "segments_max": slab.memory.segments_max,
                    "slots": slab.table.counts(),
                }
                for slab in self._open_slabs
            ],
            "space": self._manager.statistics(),
            "evicted": self._room.evicted,
            "segments_made": self._room.grown,
            "segments_dropped": self._space.dropped,
            "segments_exchanged": self._room.exchanged,
            "partial_blocks": len(self._writes),
            "load": self._loader.transfer.statistics(),
            "dump": self._dumper.transfer.statistics(),
        }
