"""The walk: does what a plan says, to real stores on a simulated machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any, Final

from ...engines.system import use_system
from ...types import Status
from .calls import Calls
from .disk import SimulatedDisk
from .faults import Faults
from .model import Model, Violation
from .plan import Plan, Step
from .process import SimulatedProcess
from .store_under_test import BACKEND, StoreUnderTest
from .trace import Trace

__all__ = ["Walk"]

PATIENCE_S: Final = 60.0
"""What is under way after the last call comes back within this: more than any fault lasts."""

RETRY_S: Final = 0.05
NO_LIMIT: Final = 1 << 40


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
        tight = setting.bounded or setting.capacity_bytes < NO_LIMIT  # there, slabs keep few incomplete blocks
        self._model = Model(
            setting.blocks,
            setting.shards,
            self.disk,
            self._loop.time,
            keeps_shards=setting.partial_blocks_max >= setting.blocks and not (tight and "Slab" in pipeline),
            bounded=setting.bounded,
            grows="Slab" in pipeline,
            caches="Cache" in pipeline,
        )
        self._calls = Calls(setting, self._model, self.trace, self._idle, self._at_rest, coded="Compress" in pipeline)
        self._stores: list[StoreUnderTest] = []
        self._data_bytes_max = 0
        if setting.bounded:
            self.disk.on_growth = self._measure
        self.steps_done = 0

    async def run(self) -> None:
        """Do everything; Violation if a promise is broken."""
        for number in range(self._plan.setting.processes):
            self._stores.append(await self._start(number))
        self._faults.rates = self._plan.setting.rates
        for step in self._plan.steps:
            self.steps_done += 1
            self.trace.note("step", self.steps_done, step)
            await self._do(step)
            await asyncio.sleep(step.pause_s)
            await self._look_after_stores()
        await self._end()

    async def _look_after_stores(self) -> None:
        """Raise what calls have raised, and replace the processes that have died."""
        for number, store in enumerate(self._stores):
            store.look()
            if store.process.dead:
                await self._restart(number)
        self._see_bound()

    def _see_bound(self) -> None:
        bound = max(self._plan.setting.cap_bytes, self._plan.setting.quota_bytes)
        if self._data_bytes_max > bound:
            raise Violation(f"{self._data_bytes_max} bytes were on the disk, and the cap is {bound}")

    def _measure(self) -> None:
        """Note how much there is once a file has grown; what a power cut brings back is nobody's fault."""
        self._data_bytes_max = max(self._data_bytes_max, self.disk.data_bytes())

    async def _do(self, step: Step) -> None:
        store = self._stores[step.process]
        if step.verb in self._calls.verbs:
            store.client(self._calls.verbs[step.verb](store, step))
        elif step.verb == "join":
            await store.join()
        elif step.verb == "reopen":
            await self._reopen(step.process)
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

    # ---- stores come and go

    async def _start(self, number: int) -> StoreUnderTest:
        """Open a store in a new process, and in another one as often as that dies meanwhile."""
        while True:
            process = SimulatedProcess(self.disk, f"process {number}", self.trace)
            store = StoreUnderTest(number, process, self._plan.setting, self._pipeline)
            if await store.open():
                self._model.started(number)
                process.on_death = lambda: self._model.died(number)
                process.on_collecting = self._calls.collecting
                return store

    async def _restart(self, number: int) -> None:
        """Bury a dead process and start another in its place."""
        await self._stores[number].bury()
        self._stores[number] = await self._start(number)

    async def _reopen(self, number: int) -> None:
        store = self._stores[number]
        await store.join()
        await store.quiet(PATIENCE_S)
        closing = self._model.flushes(number)
        self._model.ended(number)
        await store.close()
        self._model.closed(closing)
        self._stores[number] = await self._start(number)

    async def _kill_all(self, *, power: bool) -> None:
        """Kill every process, together with the machine if its power is cut, and start others."""
        for store in self._stores:
            store.process.kill()
        if power:
            self.disk.cut_power()
            self._model.power_was_cut()
        for number in range(len(self._stores)):
            await self._restart(number)

    async def _cut_power(self) -> None:
        await self._kill_all(power=True)

    def _idle(self) -> bool:
        return all(store.process.dead or store.idle() for store in self._stores)

    def _at_rest(self, but: StoreUnderTest | None = None) -> bool:
        return all(store.process.dead or store is but or store.at_rest() for store in self._stores)

    # ---- the end

    async def _end(self) -> None:
        """End as the plan says, and see that what was promised is there, and that nothing is left over."""
        last = self._plan.setting.last
        if last != "close":
            await self._kill_all(power=last == "power cut")
        self._faults.calm()
        full = self._plan.setting.bounded or self.disk.capacity_bytes < NO_LIMIT
        for number, store in enumerate(self._stores):
            await store.join()
            if store.process.dead:
                await self._restart(number)
            elif full or (last == "close" and number == 0):
                await self._reopen(number)
        if full:
            await self._see_dumps_resume()
        self.disk.capacity_bytes = NO_LIMIT
        everything = tuple(range(self._plan.setting.blocks))
        for verb in ("lookup", "load", "lookup"):
            for number, store in enumerate(self._stores):
                await self._do(Step(verb, number, everything))
                await store.join()
        await self._see_usage()
        for store in self._stores:
            await store.quiet(PATIENCE_S)
            await store.close()
        self._see_bound()
        if self.disk.named and not any(store.process.dead for store in self._stores):  # one may die as it closes
            raise Violation(f"shared memory is left: {', '.join(self.disk.named)}")
        self._calls.check_settled()
        left = len(asyncio.all_tasks()) - 1
        if left:
            raise Violation(f"{left} tasks are left")

    async def _see_dumps_resume(self) -> None:
        """However full it was: there is room for one block, and so a dump of one that is missing succeeds by itself."""
        store = self._stores[0]
        with use_system(store.process):
            stored = await store.store.lookup(self._calls.ids)
            if stored.all():
                return
            step = Step("dump", 0, (int(stored.argmin()),))
            until_s = self._loop.time() + PATIENCE_S
            while await self._calls.dump(store, step) != [Status.OK] and not store.process.dead:
                if self._loop.time() > until_s:
                    raise Violation(f"block {step.blocks[0]} is refused, and has been for {PATIENCE_S:g} s")
                await asyncio.sleep(RETRY_S)

    async def _see_usage(self) -> None:
        """What the stores say they use is what is on the disk."""
        for store in self._stores:
            until_s = self._loop.time() + PATIENCE_S
            while not store.process.dead and (space := store.space()) is not None and not self._is_right(space):
                if self._loop.time() > until_s:
                    raise Violation(f"{self.disk.data_bytes()} bytes are on the disk, and the store says {space}")
                await asyncio.sleep(RETRY_S)

    def _is_right(self, space: Mapping[str, Any]) -> bool:
        """Tell whether usage is right; a file that could not be removed may keep its room, gone or not."""
        used, data = space["used_bytes"], self.disk.data_bytes()
        if self._faults.count(("file_error",)):
            return bool(space["exact"] and used <= data <= used + space["reserved_bytes"])
        return bool(space["exact"] and used + space["reserved_bytes"] == data)
