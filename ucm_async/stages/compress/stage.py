"""The Compress stage: blocks are smaller below it than above."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from ...abc import Batch, Lower, Stage
from ...config import StoreConfig
from ...engines.arena import Arena
from ...errors import ConfigError, StoreError, UnknownNameError
from ...types import U8, Bools
from .codecs import Codec, Layout, make_codec
from .decoding import Decoder
from .encoding import Encoder
from .lane import DUMP_PART_BYTES_MAX, LOAD_PART_BYTES_MAX, LaneMeans
from .units import Geometry
from .unserved import Unserved
from .workers import Workers, default_threads

__all__ = ["CompressStage"]

SLOTS_MIN: Final = 8
"""Even for blocks larger than the staging buffer: two parts of one block, each with a slot on either side, and more."""

PAGE: Final = 4096


class CompressStage(Stage):
    """Encodes what goes down and decodes what comes up; told in docs/design/compress.md.

    Configuration: ``compress_codec``, ``compress_threads``, ``compress_parts``, ``compress_tokens``,
    ``compress_channels``, ``compress_part_bytes``, ``refuse_lossy``, ``dtype``, ``staging_buffer_gb``, and the geometry
    of the store.
    """

    name: ClassVar[str] = "Compress"
    needs_lower: ClassVar[bool | None] = True
    encodes: ClassVar[bool] = True

    def __init__(self, config: StoreConfig, lower: Lower | None) -> None:
        super().__init__(config, lower)
        assert lower is not None
        self._lower = lower
        self._geometry = Geometry(config.shard_size, config.shards_per_block, -(-config.block_size // PAGE) * PAGE)
        self._threads = config.compress_threads or default_threads()
        self._lanes: list[LaneMeans] = []

    # ---- life

    async def open(self) -> None:
        """Make the codec, threads, contexts and slots.

        Raises
        ------
        ConfigError, UnknownNameError
            There is no such codec, its package is missing, or it cannot take the element type or the layout.
        """
        self.codec = await asyncio.to_thread(_make_codec, self.config)  # it may have to be imported
        if self.config.refuse_lossy and not self.codec.lossless:
            raise ConfigError(f"refuse_lossy: true, must be false with compress_codec {self.config.compress_codec!r}")
        try:
            for lane, part_bytes_max in (("load", LOAD_PART_BYTES_MAX), ("dump", DUMP_PART_BYTES_MAX)):
                self._lanes.append(await self._make_lane(lane, part_bytes_max))
        except BaseException:
            await self.aclose()
            raise
        load, dump = self._lanes
        self._unserved = Unserved(self._lower, dump.slots, refuse_lossy=self.config.refuse_lossy)
        self._decoder = Decoder(load, self._unserved)
        self._encoder = Encoder(dump, self.codec, self._unserved)

    async def _make_lane(self, lane: str, part_bytes_max: int) -> LaneMeans:
        slot = self._geometry.slot_bytes
        count = max(SLOTS_MIN, int(self.config.staging_buffer_gb * (1 << 30)) // slot)
        try:
            slots = await Arena.create(slot, count)
            workers = await Workers.create(f"ucm-compress-{lane}", self._threads, self._geometry.shard_size)
        except (OSError, MemoryError) as error:
            given = self.config.staging_buffer_gb
            raise ConfigError(f"staging_buffer_gb: {given}, no memory for {count} slots of {slot} bytes") from error
        return LaneMeans(self._lower, self._geometry, workers, self._threads, slots, part_bytes_max)

    async def aclose(self) -> None:
        """Free threads and memory. Idempotent."""
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            await lane.aclose()

    # ---- the lanes

    async def load(self, batch: Batch) -> None:
        """See `ucm_async.abc.Stage.load`."""
        await self._decoder.load(batch)

    async def dump(self, batch: Batch) -> None:
        """See `ucm_async.abc.Stage.dump`."""
        await self._encoder.dump(batch)

    # ---- what is stored is the business of the stage below; what cannot be served is as good as not stored

    async def lookup(self, ids: U8) -> Bools:
        """See `ucm_async.abc.Stage.lookup`."""
        return await self._lower.lookup(ids) & ~self._unserved.among(ids)

    async def holds(self, ids: U8) -> Bools:
        """See `ucm_async.abc.Stage.holds`."""
        return await self._lower.holds(ids) & ~self._unserved.among(ids)

    async def lookup_on_prefix(self, ids: U8) -> int:
        """See `ucm_async.abc.Stage.lookup_on_prefix`."""
        last = await self._lower.lookup_on_prefix(ids)
        unserved = self._unserved.among(ids[: last + 1])
        return int(unserved.argmax()) - 1 if unserved.any() else last

    async def prefetch(self, ids: U8) -> None:
        """See `ucm_async.abc.Stage.prefetch`."""
        await self._lower.prefetch(ids)

    async def delete(self, ids: U8) -> None:
        """See `ucm_async.abc.Stage.delete`."""
        await self._lower.delete(ids)
        self._unserved.discard(ids)

    async def set_aside(self, ids: U8) -> None:
        """See `ucm_async.abc.Stage.set_aside`."""
        await self._lower.set_aside(ids)

    async def flush(self) -> Mapping[bytes, StoreError]:
        """See `ucm_async.abc.Stage.flush`."""
        return await self._lower.flush()

    # ---- what happened

    def statistics(self) -> Mapping[str, Any]:
        """See `ucm_async.abc.Stage.statistics`; `ratio` is that of all that was dumped, 1.0 before the first."""
        dumped = self._encoder.means.counts
        return {
            "codec": self.config.compress_codec,
            "lossless": self.codec.lossless,
            "threads": self._threads,
            "unserved_blocks": len(self._unserved),
            "ratio": dumped["raw_bytes"] / dumped["stored_bytes"] if dumped["stored_bytes"] else 1.0,
            "load": dict(self._decoder.means.statistics()),
            "dump": dict(self._encoder.means.statistics()),
        }


def _make_codec(config: StoreConfig) -> Codec:
    parts, part_bytes = config.compress_parts, config.compress_part_bytes
    try:
        layout = Layout(config.dtype, parts, config.compress_tokens, config.compress_channels, part_bytes)
    except ConfigError as error:
        raise ConfigError(f"compress_{error}") from error
    try:
        return make_codec(config.compress_codec, layout)
    except (ConfigError, UnknownNameError) as error:
        raise type(error)(f"compress_codec: {error}") from error
