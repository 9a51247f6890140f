"""What a worker does that shares a cache with others: anything, at random, on keys that all have in common."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import ucm_async as ucm
from tests.faults.support import BLOCK, SHARD, SHARDS, Array, content, page_aligned, poisoned
from ucm_async import Status

from .support import shard_rows

__all__ = ["KEPT", "KEYS", "SLOW_S", "Workload"]

KEYS = 96
KEPT = 64
"""Keys below this are never deleted: what was once said to be stored must be there in the end."""

CONTENT = content(ucm.block_ids(range(KEYS)))
SLOW_S = 0.2
"""Calls that take longer are reported."""

GIVEN_UP = {Status.TIMEOUT, Status.CANCELLED}


class Workload:
    """Calls on one store, `tasks` at a time. Whatever is OK must have the bytes of its id.

    Attributes
    ----------
    slow
        Calls that took longer than `SLOW_S`: (beginning, end, name), in seconds of the monotonic clock, which is
        the same for all processes.
    stored
        Keys whose dump was said to be stored, since somebody asked last.
    """

    def __init__(self, store: ucm.Store, seed: int, tasks: int) -> None:
        self.store = store
        self.generator = np.random.default_rng(seed)
        self.tasks = tasks
        self.counts: Counter[str] = Counter()
        self.slow: list[tuple[float, float, str]] = []
        self.stored: list[int] = []
        self.paused = False
        self.in_parts: Counter[int] = Counter()
        self.going: Counter[int] = Counter()

    async def run(self) -> None:
        """Work until paused."""
        self.paused = False
        async with asyncio.TaskGroup() as group:
            for _ in range(self.tasks):
                group.create_task(self._work())

    async def _work(self) -> None:
        verbs = {
            self.load: 30, self.load_shards: 12, self.load_registered: 6, self.load_and_give_up: 12, self.lease: 12,
            self.dump_cached: 12, self.dump_stored: 8, self.dump_shards: 6, self.delete: 4, self.look: 6,
        }  # fmt: skip
        weights = np.array(list(verbs.values()))
        while not self.paused:
            verb = list(verbs)[self.generator.choice(len(weights), p=weights / weights.sum())]
            self.counts[verb.__name__] += 1
            await verb()
            await asyncio.sleep(0)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        end = time.monotonic()
        if end - start > SLOW_S:
            self.slow.append((start, end, name))

    # ---- keys and bytes

    def some(self, most: int, first: int = 0) -> list[int]:
        """Several keys; the lower ones come more often."""
        count = int(self.generator.integers(1, most + 1))
        drawn = first + (KEYS - first) * self.generator.random(3 * count) ** 2
        return list(dict.fromkeys(drawn.astype(int).tolist()))[:count]

    def check(self, result: ucm.TaskResult, out: Array, expected: Array, allowed: set[Status]) -> None:
        found = {Status(int(one)) for one in result.status}
        assert found <= allowed, (found, dict(result.failures))
        for row in result.ok.nonzero()[0].tolist():
            assert np.array_equal(out[row], expected[row]), f"row {row} is OK and has other bytes"
        self.counts["rows"] += int(result.ok.sum())

    def promise(self, result: ucm.TaskResult, numbers: list[int]) -> None:
        assert set(map(int, result.status)) == {int(Status.OK)}, dict(result.failures)
        self.stored += [number for number in numbers if number < KEPT]

    # ---- calls

    async def load(self) -> None:
        numbers = self.some(8)
        out = poisoned(len(numbers))
        with self.timed("load"):
            result = await self.store.load(ucm.block_ids(numbers), None, out)
        self.check(result, out, CONTENT[numbers], {Status.OK, Status.MISS})

    async def load_shards(self) -> None:
        numbers = self.some(6)
        shards = self.generator.integers(0, SHARDS, len(numbers))
        out = poisoned(len(numbers), SHARD)
        with self.timed("load of shards"):
            result = await self.store.load(ucm.block_ids(numbers), shards, out)
        expected = CONTENT.reshape(KEYS, SHARDS, SHARD)[numbers, shards]
        self.check(result, out, expected, {Status.OK, Status.MISS})

    async def load_registered(self) -> None:
        numbers = self.some(4)
        out = page_aligned(len(numbers))
        with self.store.register(out), self.timed("load into registered memory"):
            task = self.store.load(ucm.block_ids(numbers), None, out)
            result = await task
            await task.settled()
        self.check(result, out, CONTENT[numbers], {Status.OK, Status.MISS})

    async def load_and_give_up(self) -> None:
        """The caller's memory is the caller's again when the load has ended, however early."""
        numbers = self.some(8)
        out = poisoned(len(numbers))
        task = self.store.load(ucm.block_ids(numbers), None, out, timeout=float(self.generator.uniform(0, 0.005)))
        if self.generator.random() < 0.5:
            await asyncio.sleep(float(self.generator.uniform(0, 0.003)))
            task.cancel()
        result = await task
        self.check(result, out, CONTENT[numbers], {Status.OK, Status.MISS} | GIVEN_UP)
        after = out.copy()
        await asyncio.sleep(float(self.generator.uniform(0, 0.004)))
        assert np.array_equal(out, after), "written to after the end"

    async def lease(self) -> None:
        numbers = self.some(3)
        with self.timed("lease"):
            lease = self.store.lease(ucm.block_ids(numbers))
            views = await lease.__aenter__()
        try:
            for _ in range(2):  # nothing is evicted that is lent
                for view, number in zip(views, numbers, strict=True):
                    assert view is None or view == CONTENT[number].data, f"a view of {number} has other bytes"
                await asyncio.sleep(float(self.generator.uniform(0, 0.01)))
        finally:
            await lease.__aexit__(None, None, None)

    async def dump_cached(self) -> None:
        numbers = self.some(4)
        with self.timed("dump, cached"):
            result = await self.store.dump(ucm.block_ids(numbers), None, CONTENT[numbers], durability="cached")
        assert result.ok.all(), dict(result.failures)

    async def dump_stored(self) -> None:
        numbers = self.some(4)
        with self.timed("dump, stored"):
            result = await self.store.dump(ucm.block_ids(numbers), None, CONTENT[numbers])
        self.promise(result, numbers)

    async def dump_shards(self) -> None:
        """Two tasks, each some of the shards of all blocks.

        None that is being deleted: what comes after that would be half a block, and wait for the rest for long.
        """
        numbers = [number for number in self.some(3) if not self.going[number]]
        if numbers:
            self.in_parts.update(numbers)
            await self._dump_in_parts(numbers)
            self.in_parts.subtract(numbers)

    async def _dump_in_parts(self, numbers: list[int]) -> None:
        rows, shards = shard_rows(ucm.block_ids(numbers), self.generator)
        place = (rows[:, None] == ucm.block_ids(numbers)[None]).all(axis=2).argmax(axis=1)
        data = CONTENT[numbers].reshape(len(numbers), SHARDS, SHARD)[place, shards]
        half = len(rows) // 2
        durability: Any = ("cached", "stored")[int(self.generator.integers(2))]
        with self.timed(f"dump of shards, {durability}"):
            results = await asyncio.gather(
                *(
                    self.store.dump(rows[part], shards[part], data[part], durability=durability)
                    for part in (slice(half), slice(half, None))
                )
            )
        for result in results:
            assert result.ok.all(), dict(result.failures)

    async def delete(self) -> None:
        numbers = [number for number in self.some(3, KEPT) if not self.in_parts[number]]
        if numbers:
            self.going.update(numbers)
            with self.timed("delete"):
                await self.store.delete(ucm.block_ids(numbers))
            self.going.subtract(numbers)

    async def look(self) -> None:
        ids = ucm.block_ids(self.some(20))
        with self.timed("lookup, prefix, prefetch"):
            await self.store.lookup(ids)
            await self.store.lookup_on_prefix(ids)
            await self.store.prefetch(ids)


assert CONTENT.shape == (KEYS, BLOCK)
