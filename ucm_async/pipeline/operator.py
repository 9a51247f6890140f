"""An operator: a stage between its two lanes. What the stage above sees of it is `ucm_async.abc.Lower`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from anyio.abc import TaskGroup

from ..abc import Lent, Stage
from ..coding import EncodedRows
from ..config import StoreConfig
from ..engines.waits import completed
from ..errors import StoreError
from ..tasks import (
    WHOLE_BLOCK,
    FailureSet,
    LaneName,
    Memory,
    Slice,
    SliceBatch,
    Task,
    TaskResult,
    cut_slices,
)
from ..types import I64, U8, U64, Bools, Durability, Reasons, Status
from .lane import Lane

__all__ = ["Operator"]

_T = TypeVar("_T")


class Operator:
    """Drives one stage. Loads and dumps have a lane each, so that loads never queue behind dumps.

    The stage can be replaced while the store runs: batches that are in the old one finish there, the next ones enter
    the new one.
    """

    def __init__(self, stage: Stage, config: StoreConfig) -> None:
        self.stage = stage
        self._config = config
        self._users: dict[int, int] = {}  # id(stage) -> batches and lookups inside it
        self._left: dict[int, asyncio.Future[None]] = {}  # id(stage) -> done when the last of them has left it
        self._next_queue = 0
        queues, depth, batch_bytes = config.queue_number, config.queue_depth, config.slice_bytes
        self.load_lane = Lane(
            f"{stage.name}-load",
            self._load_batch,
            queues=queues,
            depth=depth,
            batch_bytes=batch_bytes,
            begin=self._begin_load,
        )
        self.dump_lane = Lane(
            f"{stage.name}-dump", self._dump_batch, queues=queues, depth=depth, batch_bytes=batch_bytes
        )
        self._fit_lanes(stage)

    def start(self, group: TaskGroup) -> None:
        """Start the workers of both lanes."""
        self.load_lane.start(group)
        self.dump_lane.start(group)

    def _fit_lanes(self, stage: Stage) -> None:
        self.load_lane.short_way_bytes_max = stage.short_way_bytes_max
        self.load_lane.whole_blocks = self.dump_lane.whole_blocks = stage.encodes

    # ---- driving the stage

    def _begin_load(self, one: Slice, otherwise: Callable[[], None]) -> bool:
        return self.stage.begin_load(one, otherwise)

    async def _load_batch(self, batch: SliceBatch) -> None:
        await self._inside(lambda stage: stage.load(batch))

    async def _dump_batch(self, batch: SliceBatch) -> None:
        await self._inside(lambda stage: stage.dump(batch))

    async def _inside(self, verb: Callable[[Stage], Awaitable[_T]]) -> _T:
        """Run `verb` in the present stage, which is not closed before it has ended."""
        stage = self._enter()
        try:
            return await verb(stage)
        finally:
            self._leave(stage)

    def _enter(self) -> Stage:
        stage = self.stage
        self._users[id(stage)] = self._users.get(id(stage), 0) + 1
        return stage

    def _leave(self, stage: Stage) -> None:
        self._users[id(stage)] -= 1
        if self._users[id(stage)] == 0:
            del self._users[id(stage)]
            left = self._left.pop(id(stage), None)
            if left is not None:
                left.set_result(None)

    async def replace(self, stage: Stage) -> None:
        """Put an opened `stage` in the place of the present one, and close that when its last batch has left."""
        old, self.stage = self.stage, stage
        self._fit_lanes(stage)
        if id(old) in self._users:
            left = self._left[id(old)] = asyncio.get_running_loop().create_future()
            await left
        await old.aclose()

    async def lease(self, ids: U8, deadline: float) -> Lent | None:
        """See `ucm_async.abc.Stage.lease`. The stage is not closed before what it lends is released."""
        stage = self._enter()
        try:
            lent = await stage.lease(ids, deadline)
        except BaseException:
            self._leave(stage)
            raise
        if lent is None:
            self._leave(stage)
            return None
        return _Lent(lent, self, stage)

    # ---- ucm_async.abc.Lower

    async def load(self, ids: U8, shards: I64, addresses: U64, piece_sizes: I64) -> tuple[U8, Reasons]:
        """See `ucm_async.abc.Lower.load`."""
        result = await self._send("load", ids, shards, addresses, tuple(piece_sizes.tolist()))
        return result.status, result.failures.told

    async def dump(
        self, ids: U8, shards: I64, addresses: U64, piece_sizes: I64, durability: Durability
    ) -> tuple[U8, Reasons]:
        """See `ucm_async.abc.Lower.dump`."""
        result = await self._send("dump", ids, shards, addresses, tuple(piece_sizes.tolist()), durability)
        return result.status, result.failures.told

    async def load_encoded(self, ids: U8, addresses: U64, row_bytes: int) -> tuple[U8, EncodedRows, Reasons]:
        """See `ucm_async.abc.Lower.load_encoded`."""
        whole = np.full(len(ids), WHOLE_BLOCK, dtype=np.int64)
        encoded = EncodedRows.zeros(len(ids), self._config.shards_per_block)
        result = await self._send("load", ids, whole, addresses, (row_bytes,), encoded=encoded)
        return result.status, encoded, result.failures.told

    async def dump_encoded(
        self, ids: U8, shards: I64, addresses: U64, row_bytes: int, encoded: EncodedRows, durability: Durability
    ) -> tuple[U8, Reasons]:
        """See `ucm_async.abc.Lower.dump_encoded`."""
        result = await self._send("dump", ids, shards, addresses, (row_bytes,), durability, encoded)
        return result.status, result.failures.told

    async def _send(
        self,
        name: LaneName,
        ids: U8,
        shards: I64,
        addresses: U64,
        piece_sizes: tuple[int, ...],
        durability: Durability = "stored",
        encoded: EncodedRows | None = None,
    ) -> TaskResult:
        if not len(ids):
            nothing = np.zeros(0, dtype=np.uint8)
            return TaskResult(nothing, FailureSet(nothing, {}, ids, shards), settled=True)
        lane = self.load_lane if name == "load" else self.dump_lane
        memory = Memory(addresses, piece_sizes, direct=True)
        loop = asyncio.get_running_loop()
        task = Task(name, ids, shards, memory, durability=durability, encoded=encoded, loop=loop, on_finished=_nothing)
        # To one queue: the stage above cuts as it sees fit, and parts of one call would wait for the slowest worker.
        cuts = cut_slices(ids, memory.row_bytes, slice_bytes=self._config.slice_bytes, queues=1)
        task.expect_slices(len(cuts))
        unsent = deque(Slice(task, start, stop) for start, stop in cuts)
        try:
            while unsent:
                self._next_queue = (self._next_queue + 1) % lane.queues
                await lane.put(unsent[0], self._next_queue)
                unsent.popleft()
            return await task
        except asyncio.CancelledError:
            task.cancel()
            for one in unsent:
                one.report_rest(Status.CANCELLED)
            await completed(asyncio.ensure_future(task.settled()))
            raise

    async def lookup(self, ids: U8) -> Bools:
        """See `ucm_async.abc.Stage.lookup`."""
        return await self._inside(lambda stage: stage.lookup(ids))

    async def holds(self, ids: U8) -> Bools:
        """See `ucm_async.abc.Stage.holds`."""
        return await self._inside(lambda stage: stage.holds(ids))

    async def lookup_on_prefix(self, ids: U8) -> int:
        """See `ucm_async.abc.Stage.lookup_on_prefix`."""
        return await self._inside(lambda stage: stage.lookup_on_prefix(ids))

    async def prefetch(self, ids: U8) -> None:
        """See `ucm_async.abc.Stage.prefetch`."""
        await self._inside(lambda stage: stage.prefetch(ids))

    async def delete(self, ids: U8) -> None:
        """See `ucm_async.abc.Stage.delete`."""
        await self._inside(lambda stage: stage.delete(ids))

    async def set_aside(self, ids: U8) -> None:
        """See `ucm_async.abc.Stage.set_aside`."""
        await self._inside(lambda stage: stage.set_aside(ids))

    async def flush(self) -> Mapping[bytes, StoreError]:
        """See `ucm_async.abc.Stage.flush`."""
        return await self._inside(lambda stage: stage.flush())

    def statistics(self) -> dict[str, Any]:
        """Return what the lanes and the stage count."""
        return {
            "load_lane": self.load_lane.statistics(),
            "dump_lane": self.dump_lane.statistics(),
            "stage": dict(self.stage.statistics()),
        }


class _Lent:
    """What a stage lends, and the stage, which it keeps open."""

    __slots__ = ("_lent", "_operator", "_stage", "views")

    def __init__(self, lent: Lent, operator: Operator, stage: Stage) -> None:
        self.views = lent.views
        self._lent = lent
        self._operator = operator
        self._stage = stage

    def release(self) -> None:
        """See `ucm_async.abc.Lent.release`."""
        try:
            self._lent.release()
        finally:
            self._operator._leave(self._stage)


def _nothing(task: Task) -> None:
    """Nobody counts the tasks between two stages: the stage above awaits each."""
