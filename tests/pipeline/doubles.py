"""Stages that wait for the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from ucm_async.abc import Batch, Lower, SmallLoad, Stage
from ucm_async.config import StoreConfig
from ucm_async.types import U8, Bools, Status


class SlowStage(Stage):
    """Holds every batch, and every lookup, until ``gate`` is set; counts what happens to it."""

    name: ClassVar[str] = "Slow"
    made: ClassVar[list[SlowStage]] = []

    def __init__(self, config: StoreConfig, lower: Lower | None) -> None:
        super().__init__(config, lower)
        self.gate = asyncio.Event()
        self.batches: list[Batch] = []
        self.inside = 0
        self.opened = self.closed = False
        type(self).made.append(self)

    async def open(self) -> None:
        self.opened = True

    async def aclose(self) -> None:
        assert self.inside == 0, "closed with work inside"
        self.closed = True

    async def _serve(self) -> None:
        assert not self.closed, "used after it was closed"
        self.inside += 1
        try:
            await self.gate.wait()
        finally:
            self.inside -= 1

    async def load(self, batch: Batch) -> None:
        self.batches.append(batch)
        await self._serve()
        batch.report(np.arange(len(batch)), Status.OK)

    async def dump(self, batch: Batch) -> None:
        await self.load(batch)

    async def lookup(self, ids: U8) -> Bools:
        await self._serve()
        return np.ones(len(ids), dtype=np.bool_)

    async def delete(self, ids: U8) -> None:
        await self._serve()

    def statistics(self) -> Mapping[str, Any]:
        return {"batches": len(self.batches)}


class OpenStage(SlowStage):
    """The same with its gate open from the start."""

    name: ClassVar[str] = "Open"

    async def open(self) -> None:
        await super().open()
        self.gate.set()


class ImmediateStage(OpenStage):
    """Serves every small load inside of its submit."""

    name: ClassVar[str] = "Immediate"

    def begin_load(self, one: SmallLoad, otherwise: Callable[[], None]) -> bool:
        one.succeed()
        return True
