"""The walk: does what a plan says, to real stores on a simulated machine, and holds every answer against the model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from functools import lru_cache
from typing import Any, Final

import numpy as np

from ...errors import StoreClosedError
from ...native import crc32c
from ...tasks import Task, TaskResult
from ...types import U8, Status, block_ids
from .disk import SimulatedDisk
from .faults import Faults
from .model import Asked, Model, Violation
from .plan import Plan, Step
from .process import SimulatedProcess
from .store_under_test import BACKEND, StoreUnderTest
from .trace import Trace

__all__ = ["Walk"]

DEFAULT_S: Final = 2.0
"""``timeout_ms`` of the stores."""

PATIENCE_S: Final = 60.0
"""What may still be under way after the last call has come back within this: more than any fault lasts."""

_POISON: Final = 0xEE


@lru_cache(maxsize=32)
def contents(blocks: int, block_bytes: int) -> tuple[U8, U8]:
    """Return the ids and the bytes of all blocks: uint8, shapes (blocks, 16) and (blocks, block_bytes)."""
    data = np.random.default_rng(block_bytes).integers(0, 256, (blocks, block_bytes), dtype=np.uint8)
    ids = block_ids(range(blocks))
    ids.flags.writeable = data.flags.writeable = False
    return ids, data


class Walk:
    """One run of a plan, on the running loop.

    Parameters
    ----------
    plan
        What to do.
    faults
        What goes wrong; its generator has drawn the plan, and goes on.
    pipeline
        Composition of the stores.

    Attributes
    ----------
    steps_done
        How many steps have begun.
    trace
        What happened.
    disk
        The machine's disk.
    """

    def __init__(self, plan: Plan, faults: Faults, pipeline: str) -> None:
        setting = plan.setting
        self._loop = asyncio.get_running_loop()
        self._plan = plan
        self._pipeline = pipeline
        self._faults = faults
        self.trace = Trace()
        self.trace.now_s = self._loop.time
        self.disk = SimulatedDisk(
            faults,
            sector_bytes=setting.sector_bytes,
            capacity_bytes=setting.capacity_bytes,
            direct=setting.direct,
        )
        self.disk.mkdir(self.disk.root, BACKEND)
        self.disk.sync(self.disk.open(self.disk.root, "/", os.O_RDONLY))
        self.model = Model(setting.blocks, setting.shards, self.disk, self._loop.time)
        self.model.weak_partials = setting.partial_blocks_max < setting.blocks
        self.steps_done = 0
        self._ids, self._data = contents(setting.blocks, setting.block_bytes)
        self._stores: list[StoreUnderTest] = []
        self._afterwards: list[tuple[U8, int, str]] = []

    async def run(self) -> None:
        """Do everything; Violation if a promise is broken."""
        for _ in range(self._plan.setting.processes):
            self._stores.append(await self._start(len(self._stores)))
        self._faults.rates = self._plan.setting.rates
        for step in self._plan.steps:
            self.steps_done += 1
            self.trace.note("step", self.steps_done, step)
            await self._do(step)
            await asyncio.sleep(step.pause_s)
            for number, store in enumerate(self._stores):
                store.look()
                if store.process.dead:
                    await self._restart(number)
        await self._end()

    # ---- stores come and go

    async def _start(self, number: int) -> StoreUnderTest:
        while True:
            process = SimulatedProcess(self.disk, f"process {number}", self.trace)
            store = StoreUnderTest(process, self._plan.setting, self._pipeline)
            if await store.open():
                self.model.started(number)
                process.on_death = lambda: self.model.ended(number)
                return store

    async def _restart(self, number: int) -> None:
        """Bury a dead process and start another in its place."""
        await self._stores[number].bury()
        self._stores[number] = await self._start(number)

    async def _reopen(self, number: int) -> None:
        store = self._stores[number]
        await store.join()
        await store.quiet(PATIENCE_S)
        self.model.ended(number)
        await store.close()
        self._stores[number] = await self._start(number)

    async def _cut_power(self) -> None:
        for store in self._stores:
            store.process.kill()
        self.disk.cut_power()
        self.model.power_was_cut()
        for store in self._stores:
            await store.bury()
        for number in range(len(self._stores)):
            self._stores[number] = await self._start(number)

    # ---- steps

    async def _do(self, step: Step) -> None:
        number, store = step.process, self._stores[step.process]
        calls = {"dump": self._dump, "load": self._load, "lookup": self._lookup, "prefix": self._prefix}
        calls |= {"delete": self._delete, "flush": self._flush, "setup": self._setup}
        if step.verb in calls:
            store.client(calls[step.verb](number, store, step))
        elif step.verb == "join":
            await store.join()
        elif step.verb == "reopen":
            await self._reopen(number)
        elif step.verb == "kill":
            store.process.dies_in = int(step.seconds)
        elif step.verb == "power cut":
            await self._cut_power()
        elif step.verb == "hang":
            self.disk.hang(self._loop.time() + step.seconds)
        elif step.verb == "flip":
            self.disk.flip_bit()
        else:
            raise ValueError(f"verb: {step.verb!r}, must be one of those of a plan")

    async def _dump(self, number: int, store: StoreUnderTest, step: Step) -> None:
        rows = self._rows(step)
        with store.lend(*rows.shape) if step.registered else _nothing() as lent:
            source = rows.copy() if lent is None else lent
            source[:] = rows
            asked = self._asks(number, step)
            self.model.dumps(asked)
            statuses = None
            try:
                task = store.store.dump(
                    self._ids[list(step.blocks)],
                    step.shards,
                    source,
                    durability=step.durability,
                    timeout=step.timeout_s,
                )
                result = await self._result(task, asked, step)
                if not store.process.dead:
                    statuses = self._note(result, number, "dump")
                await task.settled()
            finally:
                self.model.dumped(asked, statuses)
            source[:] = _POISON  # whoever reads it now is too late

    async def _load(self, number: int, store: StoreUnderTest, step: Step) -> None:
        rows = self._rows(step)
        with store.lend(*rows.shape) if step.registered else _nothing() as lent:
            target = np.empty_like(rows) if lent is None else lent
            target[:] = _POISON
            asked = self._asks(number, step)
            task = store.store.load(self._ids[list(step.blocks)], step.shards, target, timeout=step.timeout_s)
            result = await self._result(task, asked, step)
            if not store.process.dead:
                right = (target == rows).all(axis=1).tolist()
                self.model.loaded(asked, self._note(result, number, "load"), right)
            if lent is None:
                self._afterwards.append((target, crc32c(target), f"load in step {self.steps_done}"))
            await task.settled()

    def _rows(self, step: Step) -> U8:
        """Return the bytes of the rows of a step."""
        blocks = list(step.blocks)
        if step.shards is None:
            return self._data[blocks]
        setting = self._plan.setting
        return self._data.reshape(-1, setting.shards, setting.shard_bytes)[blocks, list(step.shards)]

    def _asks(self, number: int, step: Step) -> Asked:
        timeout_s = DEFAULT_S if step.timeout_s is None else step.timeout_s
        return self.model.asks(
            number, step.blocks, step.shards, durability=step.durability, timeout_s=timeout_s
        )

    async def _result(self, task: Task, asked: Asked, step: Step) -> TaskResult:
        """Wait for a task, or cancel the wait; it must be over in time."""
        if step.cancel_s is None:
            result = await task
        else:
            waiting = self._loop.create_task(_wait_for(task))
            timer = self._loop.call_later(step.cancel_s, waiting.cancel)
            try:
                await waiting
            except asyncio.CancelledError:
                asked.cancelled = True
            timer.cancel()
            result = task.result()
        if self._loop.time() > asked.until_s + 1e-9:
            raise Violation(f"{step.verb}: over {self._loop.time() - asked.until_s:g} s after its deadline")
        return result

    def _note(self, result: TaskResult, number: int, verb: str) -> list[Status]:
        statuses = [Status(one) for one in result.status.tolist()]
        self.trace.note(f"process {number}", verb, [status.name for status in statuses])
        return statuses

    async def _lookup(self, number: int, store: StoreUnderTest, step: Step) -> None:
        asked = self._asks(number, step)
        found = (await store.store.lookup(self._ids[list(step.blocks)])).tolist()
        self.trace.note(f"process {number}", "lookup", found)
        if not store.process.dead:
            self.model.looked_up(asked, found, "lookup")

    async def _prefix(self, number: int, store: StoreUnderTest, step: Step) -> None:
        asked = self._asks(number, step)
        last = await store.store.lookup_on_prefix(self._ids[list(step.blocks)])
        self.trace.note(f"process {number}", "prefix", last)
        if not store.process.dead:
            self.model.looked_up(asked, [True] * (last + 1) + [False], "prefix")

    async def _delete(self, number: int, store: StoreUnderTest, step: Step) -> None:
        asked = self._asks(number, step)
        self.model.deletes(asked)
        idle = self._idle()
        try:
            await store.store.delete(self._ids[list(step.blocks)])
        finally:
            self.trace.note(f"process {number}", "deleted", step.blocks)
            self.model.deleted(asked, idle=idle and self._idle())

    def _idle(self) -> bool:
        return all(store.process.dead or store.idle() for store in self._stores)

    async def _flush(self, number: int, store: StoreUnderTest, step: Step) -> None:
        failed = await store.store.flush()
        self.trace.note(f"process {number}", "flush", len(failed))

    async def _setup(self, number: int, store: StoreUnderTest, step: Step) -> None:
        depth = store.store.config.io_depth
        await store.store.setup(io_depth=depth % 4 + 1)

    # ---- the end

    async def _end(self) -> None:
        """End as the plan says, and see that what was promised is there."""
        last = self._plan.setting.last
        if last != "close":
            await self._crash(last)
        self._faults.calm()
        self.disk.capacity_bytes = 1 << 40
        for number, store in enumerate(self._stores):
            await store.join()
            if store.process.dead:
                await self._restart(number)
        for number, store in enumerate(self._stores):
            await store.quiet(PATIENCE_S)
            if last == "close" and number == 0:
                await self._reopen(number)
        await self._look_at_everything()
        for store in self._stores:
            await store.quiet(PATIENCE_S)
            await store.close()
        for target, before, what in self._afterwards:
            if crc32c(target) != before:
                raise Violation(f"{what}: its memory was written to after it had settled")
        left = len(asyncio.all_tasks()) - 1
        if left:
            raise Violation(f"{left} tasks are left")

    async def _crash(self, how: str) -> None:
        if how == "power cut":
            await self._cut_power()
            return
        for number, store in enumerate(self._stores):
            store.process.kill()
            await self._restart(number)

    async def _look_at_everything(self) -> None:
        everything = tuple(range(self._plan.setting.blocks))
        for verb in ("lookup", "load", "lookup"):
            for number, store in enumerate(self._stores):
                await self._do(Step(verb, number, everything))
                await store.join()


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


async def _wait_for(task: Task) -> TaskResult:
    return await task


_ = (Coroutine, StoreClosedError)
