"""The Fake stage: blocks in a dictionary of this process. For tests and for frontends without a disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..abc import Batch, Lower, Stage
from ..config import StoreConfig
from ..engines import requests as rq
from ..native import execute
from ..tasks import cut_row
from ..types import U8, Bools, Status

__all__ = ["FakeStage"]


class FakeStage(Stage):
    """Keeps raw blocks in memory, at most ``stage_options["Fake"]["blocks_max"]`` (default 4096); the oldest go first.

    A block is visible when all of its shards are in, as everywhere. Copies run on the loop: this is no stage for speed.
    """

    name: ClassVar[str] = "Fake"

    def __init__(self, config: StoreConfig, lower: Lower | None) -> None:
        super().__init__(config, lower)
        self._blocks_max = int(config.stage_options.get("Fake", {}).get("blocks_max", 4096))
        self._blocks: OrderedDict[bytes, tuple[U8, set[int]]] = OrderedDict()
        self._shards = config.block_size // config.shard_size

    async def open(self) -> None:
        """Nothing to get ready."""

    async def aclose(self) -> None:
        """Forget everything."""
        self._blocks.clear()

    async def load(self, batch: Batch) -> None:
        """Copy from the dictionary."""
        for row in np.flatnonzero(batch.live()).tolist():
            block = self._whole(batch.ids[row].tobytes())
            if block is None:
                batch.report(np.array([row]), Status.MISS)
            else:
                batch.report(
                    np.array([row]), Status.OK if self._copy(batch, row, block, store=False) else Status.CANCELLED
                )

    async def dump(self, batch: Batch) -> None:
        """Copy into the dictionary."""
        for row in np.flatnonzero(batch.live()).tolist():
            key = batch.ids[row].tobytes()
            if self._whole(key) is None:
                empty = (np.empty(self.config.block_size, dtype=np.uint8), set[int]())
                block, shards = self._blocks.setdefault(key, empty)
                if not self._copy(batch, row, block, store=True):
                    batch.report(np.array([row]), Status.CANCELLED)
                    continue
                shard = int(batch.shards[row])
                shards.update(range(self._shards) if shard < 0 else (shard,))
                while len(self._blocks) > self._blocks_max:
                    self._blocks.popitem(last=False)
            batch.report(np.array([row]), Status.OK)

    def _whole(self, key: bytes) -> U8 | None:
        found = self._blocks.get(key)
        return found[0] if found is not None and len(found[1]) == self._shards else None

    def _copy(self, batch: Batch, row: int, block: U8, *, store: bool) -> bool:
        """Copy one row between the caller and `block`; False if its task settled first."""
        cuts = cut_row(tuple(batch.piece_sizes.tolist()), self.config.shard_size)
        base = block.ctypes.data + max(int(batch.shards[row]), 0) * self.config.shard_size
        own = np.uint64(base) + cuts.offset.astype(np.uint64)
        caller = batch.addresses[row][cuts.piece] + cuts.piece_offset.astype(np.uint64)
        requests = rq.new_requests(len(cuts))
        requests["opcode"] = rq.OP_COPY
        requests["address"], requests["offset"] = (own, caller) if store else (caller, own)
        requests["length"] = cuts.length
        requests["gate"] = batch.gates[row]
        execute(requests)
        return bool((requests["result"] >= 0).all())

    async def lookup(self, ids: U8) -> Bools:
        """Look into the dictionary."""
        return np.array([self._whole(one.tobytes()) is not None for one in ids], dtype=np.bool_)

    async def delete(self, ids: U8) -> None:
        """Forget blocks."""
        for one in ids:
            self._blocks.pop(one.tobytes(), None)

    def statistics(self) -> Mapping[str, Any]:
        """Count blocks."""
        return {"blocks": len(self._blocks), "blocks_max": self._blocks_max}
