"""The Posix stage: one file a block, in hashed directories, on one or several backends."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import numpy as np

from ...abc import Batch, Lower, SmallLoad, Stage
from ...blocks.layout import BlockLayout
from ...blocks.transfer import Transfer, close_transfers, make_transfer, switch_engines
from ...blocks.writes import BlockWrites
from ...config import StoreConfig
from ...errors import ConfigError
from ...space import WEIGHT_LOOKUP
from ...types import U8, Bools
from .backend import Backend, open_backend
from .dump import Dumper
from .express import ExpressLoads
from .known import KnownBlocks
from .layout import backend_seeds, choose_backend
from .load import Loader
from .space import BlockSpace
from .survivors import Survivors

__all__ = ["PosixStage"]

_log = logging.getLogger("ucm_async.posix")

LOAD_POOL_THREADS: Final = 2
DUMP_POOL_THREADS: Final = 4
"""Dumps create and rename files, which waits for the journal; loads open and check, which waits for nothing."""

SEGMENT_MIN: Final = 256
SEGMENT_MAX: Final = 2048
"""Ids that a prefix lookup asks for at a time: the first miss is often early, so begin small and double."""


class PosixStage(Stage):
    """Keeps each block in a file of its own; the format is told in docs/design/format.md.

    Configuration: ``storage_backends``, ``io_engine``, ``io_direct``, ``io_depth``, ``io_threads``,
    ``staging_buffer_gb``, ``known_blocks_max``, ``partial_blocks_max``, ``posix_capacity_gb``, ``namespace_quota_gb``,
    ``space_watermark_gb``, ``space_high``, ``space_low``, ``hot_blocks_max``, ``recover``, and the geometry and
    namespace of the store.
    """

    name: ClassVar[str] = "Posix"
    needs_lower: ClassVar[bool | None] = False
    takes_encoded: ClassVar[bool] = True

    def __init__(self, config: StoreConfig, lower: Lower | None) -> None:
        super().__init__(config, lower)
        self._layout = BlockLayout.of(config.block_size, config.shard_size)
        self._writes = BlockWrites(self._layout.shards, config.partial_blocks_max)
        self._backends: list[Backend] = []
        self._retired: set[asyncio.Task[None]] = set()

    # ---- life

    async def open(self) -> None:
        """Open the backends and make engines, pools and slots.

        Raises
        ------
        ConfigError
            No backend can be used. One of several that cannot is logged, and its blocks are IO_ERROR until the store
            is opened again.
        """
        if not self.config.storage_backends:
            raise ConfigError("storage_backends: empty, Posix needs at least one directory")
        opening = asyncio.ensure_future(self._open_backends())
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:  # what threads have begun cannot be stopped: let it come, then undo it
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await self.aclose()
            raise

    async def _open_backends(self) -> None:
        # A relative path needs the file system to be resolved.
        paths = await asyncio.to_thread(lambda: tuple(map(os.path.abspath, self.config.storage_backends)))
        self._seeds = backend_seeds(paths)
        self._backends = await asyncio.gather(
            *(asyncio.to_thread(self._open_one, path) for path in self.config.storage_backends)
        )
        if all(backend.error for backend in self._backends):
            raise ConfigError(self._backends[0].error)
        self._direct = all(backend.direct for backend in self._backends if not backend.error)
        made = (self.config, self._layout)
        loads = asyncio.ensure_future(make_transfer(*made, "load", LOAD_POOL_THREADS, direct=self._direct))
        dumps = asyncio.ensure_future(make_transfer(*made, "dump", DUMP_POOL_THREADS, direct=self._direct))
        known = asyncio.ensure_future(asyncio.to_thread(KnownBlocks, self.config.known_blocks_max))
        making = (loads, dumps, known)
        await asyncio.wait(making)
        error = next(filter(None, (one.exception() for one in making)), None)
        if error is not None:
            await self._free([one.result() for one in (loads, dumps) if one.exception() is None])
            raise error
        self._make_lanes(loads.result(), dumps.result(), known.result())
        try:
            await self._open_space()
        except BaseException:
            await self._close_lanes()
            raise

    async def _open_space(self) -> None:
        """Join those who share the directories."""
        manager = self._space.manager
        await manager.open()
        if self.config.recover == "strict":
            await manager.counted()
            if self._space.damaged:
                await manager.stop()
                raise ConfigError(
                    f"storage_backends: {self._space.damaged} files are no blocks (see the log), and recover is "
                    "'strict'; remove them, or open it with recover='quiet'"
                )

    def _make_lanes(self, load: Transfer, dump: Transfer, known: KnownBlocks) -> None:
        namespace = self.config.namespace_fingerprint()
        self._space = space = BlockSpace(
            self.config,
            self._layout,
            self._backends,
            self._seeds,
            known,
            encoded=self.above_encodes,
            on_progress=self.on_progress,
        )
        self._known = known
        self._files = space.files
        self._loader = Loader(self._layout, namespace, self._seeds, known, space, load)
        self._express = None
        if ExpressLoads.serves(self._layout) and not self.above_encodes:
            touch = space.manager.touch
            self._express = ExpressLoads(self._layout, namespace, self._backends, self._seeds, known, touch, load)
        survivors = Survivors(namespace, self._backends, space.files, dump)
        self._dumper = Dumper(self._layout, namespace, self._seeds, known, space, survivors, dump, self._writes)
        space.transfer = dump
        space.in_transfer = self._in_transfer

    def _in_transfer(self) -> list[U8]:
        express = self._express.in_transfer() if self._express is not None else []
        return self._loader.in_transfer() + express

    def _open_one(self, path: str) -> Backend:
        try:
            return open_backend(path, self.config)
        except ConfigError as error:
            if len(self.config.storage_backends) > 1:
                _log.error("backend left out: %s", error)
            return Backend(path, root=None, error=str(error))  # type: ignore[arg-type]  # nobody asks a dead one

    async def setup(self, config: StoreConfig) -> None:
        """Switch the engines: what the old ones have, they finish; what comes goes to the new ones."""
        before = self.config
        await super().setup(config)
        await switch_engines((self._loader.transfer, self._dumper.transfer), before, config, direct=self._direct)

    async def aclose(self) -> None:
        """Finish late completions, then free everything. Idempotent."""
        if not self._backends:
            return
        await self._space.manager.stop()
        await self._close_lanes()

    async def _close_lanes(self) -> None:
        await self._space.removals_done()
        await self._free([self._loader.transfer, self._dumper.transfer])
        if self._express is not None:
            self._express.close()
        await self._space.manager.aclose()

    async def _free(self, transfers: list[Transfer]) -> None:
        backends, self._backends = self._backends, []
        await close_transfers(transfers)
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

    async def lookup(self, ids: U8) -> Bools:
        """See `ucm_async.abc.Stage.lookup`. What this process knows costs no system call."""
        found = self._known.known(ids)
        unknown = np.flatnonzero(~found)
        if len(unknown):
            found[unknown] = await self._ask(np.ascontiguousarray(ids[unknown]))
        self._space.manager.touch(ids[found] if len(unknown) else ids, WEIGHT_LOOKUP)
        return found

    async def holds(self, ids: U8) -> Bools:
        """See `ucm_async.abc.Stage.holds`."""
        return await self._dumper.holds(ids)

    async def lookup_on_prefix(self, ids: U8) -> int:
        """See `ucm_async.abc.Stage.lookup_on_prefix`. Asks segment by segment, no further than the first miss."""
        at, segment = self._known.prefix(ids), SEGMENT_MIN
        self._space.manager.touch(ids[:at], WEIGHT_LOOKUP)
        while at < len(ids):
            found = await self.lookup(ids[at : at + segment])
            if not found.all():
                return at + int(found.argmin()) - 1
            at += len(found)
            segment = min(segment * 2, SEGMENT_MAX)
        return len(ids) - 1

    async def _ask(self, ids: U8) -> Bools:
        """Ask the file system, and remember what is there. A file of the wrong size is not a block."""
        removals = self._known.removals
        size = await self._files.stat(ids, choose_backend(ids, self._seeds), self._loader.transfer.pool)
        found = self._space.is_block(size)
        self._known.add(ids[found], removals)
        return found

    async def delete(self, ids: U8) -> None:
        """See `ucm_async.abc.Stage.delete`. Loads that are under way still get their bytes."""
        if not len(ids):
            return
        await self._space.remove(ids)
        await self._dumper.discard_partial(ids)
        self._known.removed(ids)
        self._space.manager.forget(ids)

    async def set_aside(self, ids: U8) -> None:
        """See `ucm_async.abc.Stage.set_aside`: their files go to quarantine."""
        await self._loader.set_aside(ids)

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
                    "leftovers_removed": backend.leftovers,
                }
                for backend in self._backends
            ],
            "space": self._space.manager.statistics(),
            "known_blocks": len(self._known),
            "partial_blocks": len(self._writes),
            "load": self._loader.transfer.statistics(),
            "dump": self._dumper.transfer.statistics(),
        }
