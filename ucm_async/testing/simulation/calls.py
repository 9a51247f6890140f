"""The calls of a walk: each asks a real store for something and holds the answer against the model.

A call runs as a task of its own, so that calls overlap as the plan's pauses let them. What is told about a process that
has died meanwhile is worth nothing; that it is told at all, and in time, is checked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from functools import lru_cache
from typing import Any, Final

import numpy as np

from ...native import crc32c
from ...tasks import Task, TaskResult
from ...types import U8, Status, block_ids
from .model import Asked, Model, Violation
from .plan import Setting, Step
from .store_under_test import TIMEOUT_S, StoreUnderTest
from .trace import Trace

__all__ = ["Calls"]

POISON: Final = 0xEE
_INSTANT_S: Final = 1e-9


@lru_cache(maxsize=32)
def contents(blocks: int, block_bytes: int, *, coded: bool = False) -> tuple[U8, U8]:
    """Return the ids and the bytes of all blocks: uint8, shapes (blocks, 16) and (blocks, block_bytes).

    They are noise; if they are `coded`, of two in three the exponents, taken as bf16, say nothing or little, so that
    blocks have three lengths.
    """
    data = np.random.default_rng(block_bytes).integers(0, 256, (blocks, block_bytes), dtype=np.uint8)
    if coded and block_bytes % 2 == 0:
        for known, bits in (
            (0, 0x80FF),
            (1, 0x83FF),
        ):  # exponents of one bit, and of three
            data[known::3].view("<u2")[...] &= np.uint16(bits)
    ids = block_ids(range(blocks))
    ids.flags.writeable = data.flags.writeable = False
    return ids, data


class Calls:
    """Makes the calls of a run.

    Parameters
    ----------
    setting
        Tells the blocks.
    model
        Knows what may be answered.
    trace
        Where answers are noted.
    idle
        Tells whether no store has any call under way.
    at_rest
        Tells whether none, but for one, owes any block to the stage below either.
    coded
        Whether blocks are such that codecs make them shorter.

    Attributes
    ----------
    ids
        Of all blocks: uint8 (blocks, 16).
    """

    def __init__(
        self,
        setting: Setting,
        model: Model,
        trace: Trace,
        idle: Callable[[], bool],
        at_rest: Callable[..., bool],
        *,
        coded: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._setting = setting
        self._model = model
        self._trace = trace
        self._idle = idle
        self._at_rest = at_rest
        self.ids, self._data = contents(setting.blocks, setting.block_bytes, coded=coded)
        self._settled: list[tuple[U8, int, str]] = []
        self.verbs: dict[str, Callable[[StoreUnderTest, Step], Coroutine[Any, Any, Any]]] = {
            "dump": self.dump,
            "load": self.load,
            "lookup": self.lookup,
            "prefix": self.prefix,
            "delete": self.delete,
            "flush": self.flush,
            "lease": self.lease,
            "prefetch": self.prefetch,
            "setup": self.setup,
        }

    # ---- data

    async def dump(self, store: StoreUnderTest, step: Step) -> list[Status] | None:
        """Dump rows; the source is overwritten as soon as the store may not read it any more.

        Returns what became of them, None if the process died.
        """
        rows = self._rows(step)
        with self._memory(store, step, rows) as source:
            source[:] = rows
            asked = self._asks(store, step)
            self._model.dumps(asked)
            statuses = None
            try:
                task = store.store.dump(
                    self._ids_of(step), step.shards, source, durability=step.durability, timeout=step.timeout_s
                )
                result = await self._result(task, asked, step)
                if not store.process.dead:
                    statuses = self._note(store, step, result)
                await task.settled()
            finally:
                self._model.dumped(asked, statuses)
            source[:] = POISON
        return statuses

    async def load(self, store: StoreUnderTest, step: Step) -> None:
        """Load rows, and compare those that are OK."""
        rows = self._rows(step)
        with self._memory(store, step, rows) as target:
            target[:] = POISON
            asked = self._asks(store, step)
            task = store.store.load(self._ids_of(step), step.shards, target, timeout=step.timeout_s)
            result = await self._result(task, asked, step)
            if not store.process.dead:
                right = (target == rows).all(axis=1).tolist()
                self._model.loaded(asked, self._note(store, step, result), right)
            if not task.memory.direct:
                self._settled.append((target, crc32c(target), f"load of blocks {step.blocks}"))
            await task.settled()

    def collecting(self, ids: U8, begins: bool) -> None:
        """Tell the model what is collected."""
        blocks = self._numbers(ids)
        self._trace.note("collecting" if begins else "collected", blocks)
        (self._model.collects if begins else self._model.collected)(blocks)

    def _numbers(self, ids: U8) -> list[int]:
        return [int((self.ids == one).all(axis=1).argmax()) for one in ids]

    def check_settled(self) -> None:
        """See that no memory was written to after its load had settled."""
        for target, before, what in self._settled:
            if crc32c(target) != before:
                raise Violation(f"{what}: its memory was written to after it had settled")

    @contextlib.contextmanager
    def _memory(self, store: StoreUnderTest, step: Step, rows: U8) -> Iterator[U8]:
        """Give memory for `rows`, registered if the step asks for it and there is some left."""
        with store.lend(*rows.shape) if step.registered else contextlib.nullcontext() as lent:
            yield np.empty_like(rows) if lent is None else lent

    def _rows(self, step: Step) -> U8:
        """Return the bytes of the rows of a step."""
        blocks = list(step.blocks)
        if step.shards is None:
            return self._data[blocks]
        setting = self._setting
        return self._data.reshape(-1, setting.shards, setting.shard_bytes)[blocks, list(step.shards)]

    def _ids_of(self, step: Step) -> U8:
        return self.ids[list(step.blocks)]

    def _asks(self, store: StoreUnderTest, step: Step) -> Asked:
        timeout_s = TIMEOUT_S if step.timeout_s is None else step.timeout_s
        if self._at_rest():
            self._model.rests()
        return self._model.asks(store.number, step.blocks, step.shards, durability=step.durability, timeout_s=timeout_s)

    async def _result(self, task: Task, asked: Asked, step: Step) -> TaskResult:
        """Wait for a task, or cancel the wait; it must be over in time."""
        if step.cancel_s is None:
            await task
        else:
            waiting = self._loop.create_task(_wait_for(task))
            timer = self._loop.call_later(step.cancel_s, waiting.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            timer.cancel()
            asked.cancelled = waiting.cancelled()
        late_s = self._loop.time() - asked.until_s
        if late_s > _INSTANT_S:
            raise Violation(f"{step.verb}: over {late_s:g} s after its deadline")
        return task.result()

    def _note(self, store: StoreUnderTest, step: Step, result: TaskResult) -> list[Status]:
        statuses = [Status(one) for one in result.status.tolist()]
        self._trace.note(store.process.name, step.verb, [status.name for status in statuses])
        return statuses

    # ---- the rest

    async def lookup(self, store: StoreUnderTest, step: Step) -> None:
        """Ask for blocks one by one."""
        asked = self._asks(store, step)
        found = (await store.store.lookup(self._ids_of(step))).tolist()
        self._trace.note(store.process.name, "lookup", found)
        if not store.process.dead:
            self._model.looked_up(asked, found, "lookup")

    async def prefix(self, store: StoreUnderTest, step: Step) -> None:
        """Ask for a prefix: all of it is there, and the next block is not."""
        asked = self._asks(store, step)
        last = await store.store.lookup_on_prefix(self._ids_of(step))
        self._trace.note(store.process.name, "prefix", last)
        if not store.process.dead:
            self._model.looked_up(asked, [True] * (last + 1) + [False], "prefix")

    async def delete(self, store: StoreUnderTest, step: Step) -> None:
        """Delete blocks; those that the store itself owes to the stage below are waited for."""
        asked = self._asks(store, step)
        self._model.deletes(asked)
        idle = self._idle()
        try:
            await store.store.delete(self._ids_of(step))
        finally:
            self._trace.note(store.process.name, "deleted", step.blocks)
            self._model.deleted(asked, idle=idle and self._idle() and self._at_rest(store))

    async def flush(self, store: StoreUnderTest, step: Step) -> None:
        """Wait for every dump that was accepted: those that it does not name are stored."""
        flushing = self._model.flushes(store.number)
        failed = await store.store.flush()
        self._trace.note(store.process.name, "flush", len(failed))
        if not store.process.dead:
            told = np.array([list(one) for one in failed], dtype=np.uint8).reshape(-1, 16)
            blocks = dict(zip(self._numbers(told), failed.values(), strict=True))
            self._model.flushed(flushing, blocks)

    async def lease(self, store: StoreUnderTest, step: Step) -> None:
        """Look at blocks where they lie: nobody changes them before they are given back."""
        asked = self._asks(store, step)
        async with store.store.lease(self._ids_of(step), timeout=step.timeout_s) as views:
            late = self._loop.time() >= asked.until_s
            self._trace.note(store.process.name, "lease", [view is not None for view in views])
            self._see_views(store, asked, views)
            if not store.process.dead and not late:
                self._model.leased(asked, [view is not None for view in views])
            await asyncio.sleep(step.seconds)
            self._see_views(store, asked, views)

    def _see_views(self, store: StoreUnderTest, asked: Asked, views: list[memoryview | None]) -> None:
        for number, view in zip(asked.blocks, views, strict=True):
            if view is not None and not store.process.dead and bytes(view) != self._data[number].tobytes():
                raise Violation(f"lease: block {number}: wrong bytes are lent")

    async def prefetch(self, store: StoreUnderTest, step: Step) -> None:
        """Have blocks brought nearer; nothing is promised."""
        await store.store.prefetch(self._ids_of(step))

    async def setup(self, store: StoreUnderTest, step: Step) -> None:
        """Change what may change while the store runs."""
        await store.store.setup(io_depth=store.store.config.io_depth % 4 + 1)


async def _wait_for(task: Task) -> TaskResult:
    return await task
