"""A stage below the Cache that does as it is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar

import numpy as np

import ucm_async as ucm
from tests.faults.support import content
from ucm_async import Status
from ucm_async.abc import Batch, Lower, Stage
from ucm_async.config import StoreConfig
from ucm_async.stages.fake import FakeStage
from ucm_async.types import U8

__all__ = ["CONTROLLED", "Controlled", "stage_of"]


class Controlled(FakeStage):
    """Has every block, with the bytes of its id, but for those that it is told not to have; takes dumps, or not.

    Options
    -------
    load_delay_s, dump_delay_s
        How long each batch takes; default 0.

    Attributes
    ----------
    loads, dumps
        Clear one, and batches of that kind wait until it is set.
    missing
        Ids that it does not have. What is dumped goes away from here.
    failing
        Id -> what dumps of it become.
    loaded, dumped
        How often each block was asked for, and taken.
    """

    name: ClassVar[str] = "Controlled"

    def __init__(self, config: StoreConfig, lower: Lower | None) -> None:
        super().__init__(config, lower)
        options = config.stage_options.get("Controlled", {})
        self.load_delay_s = float(options.get("load_delay_s", 0))
        self.dump_delay_s = float(options.get("dump_delay_s", 0))
        self.loads = asyncio.Event()
        self.dumps = asyncio.Event()
        self.loads.set()
        self.dumps.set()
        self.missing: set[bytes] = set()
        self.failing: dict[bytes, Status] = {}
        self.loaded: Counter[bytes] = Counter()
        self.dumped: Counter[bytes] = Counter()

    async def load(self, batch: Batch) -> None:
        self.loaded.update(map(bytes, batch.ids))
        await asyncio.sleep(self.load_delay_s)
        await self.loads.wait()
        await super().load(batch)

    async def dump(self, batch: Batch) -> None:
        await asyncio.sleep(self.dump_delay_s)
        await self.dumps.wait()
        status = np.array([self.failing.get(bytes(one), Status.OK) for one in batch.ids], dtype=np.uint8)
        rows = np.flatnonzero(batch.live())
        batch.report(np.flatnonzero(~batch.live()), Status.CANCELLED)
        for one in batch.ids[rows][status[rows] == Status.OK]:
            self.dumped[bytes(one)] += 1
            self.missing.discard(bytes(one))
        batch.report(rows, status[rows])

    async def delete(self, ids: U8) -> None:
        self.missing.update(map(bytes, ids))

    def _whole(self, key: bytes) -> U8 | None:
        if key in self.missing:
            return None
        return np.asarray(content(np.frombuffer(key, dtype=np.uint8).reshape(1, 16), self.config.block_size)[0])


CONTROLLED = f"Cache|{__name__}:Controlled"


def stage_of(store: ucm.Store, kind: type[Stage]) -> Any:
    """The one place where these tests reach inside a store."""
    assert store._pipeline is not None
    (found,) = (one.stage for one in store._pipeline.operators if isinstance(one.stage, kind))
    return found
