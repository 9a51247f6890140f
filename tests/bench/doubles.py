"""A store in memory with the verbs of a replay, and stores that lie or fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from ucm_async.types import Status


class MemoryStore:
    """Keeps blocks in a dict; every verb yields to the loop a few times, so that requests interleave."""

    def __init__(self, turns: int = 3) -> None:
        self.blocks: dict[bytes, bytes] = {}
        self.turns = turns
        self.dumped: list[bytes] = []
        self.loads = 0
        self.registered: list[np.ndarray] = []
        self.settled_waits = 0

    async def lookup_on_prefix(self, ids: np.ndarray) -> int:
        await self._pause()
        hits = 0
        for one in ids:
            if one.tobytes() not in self.blocks:
                break
            hits += 1
        return hits - 1

    def load(self, ids: np.ndarray, shard_index: None, dst: np.ndarray, *, timeout: float | None = None) -> Call:
        assert shard_index is None and len(dst) == len(ids)
        self.loads += 1
        return Call(self, self._load(ids, dst))

    def dump(self, ids: np.ndarray, shard_index: None, src: np.ndarray, *, durability: str = "stored") -> Call:
        assert shard_index is None and len(src) == len(ids)
        assert len({one.tobytes() for one in ids}) == len(ids), "a block twice in one dump"
        return Call(self, self._dump(ids, src))

    @contextmanager
    def register(self, memory: np.ndarray) -> Iterator[None]:
        self.registered.append(memory)
        yield

    async def _load(self, ids: np.ndarray, dst: np.ndarray) -> np.ndarray:
        await self._pause()
        return np.array([self.load_row(one.tobytes(), row) for one, row in zip(ids, dst, strict=True)], np.uint8)

    async def _dump(self, ids: np.ndarray, src: np.ndarray) -> np.ndarray:
        await self._pause()
        return np.array([self.dump_row(one.tobytes(), row) for one, row in zip(ids, src, strict=True)], np.uint8)

    def load_row(self, block_id: bytes, row: np.ndarray) -> Status:
        if block_id not in self.blocks:
            return Status.MISS
        row[:] = np.frombuffer(self.blocks[block_id], np.uint8)
        return Status.OK

    def dump_row(self, block_id: bytes, row: np.ndarray) -> Status:
        self.blocks[block_id] = row.tobytes()
        self.dumped.append(block_id)
        return Status.OK

    async def _pause(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)


class Call:
    """What a submit returns: awaitable, and settled when the store says so."""

    def __init__(self, store: MemoryStore, work: object) -> None:
        self._store = store
        self._task = asyncio.ensure_future(work)  # type: ignore[arg-type]

    def __await__(self):
        status = yield from self._task.__await__()
        return SimpleNamespace(status=status)

    async def settled(self) -> None:
        self._store.settled_waits += 1


class FlippingStore(MemoryStore):
    """Flips one bit of every tenth loaded block and says OK."""

    rows = 0

    def load_row(self, block_id: bytes, row: np.ndarray) -> Status:
        status = super().load_row(block_id, row)
        self.rows += 1
        if self.rows % 10 == 0:
            row[len(row) // 2] ^= 4
        return status


class LazyStore(MemoryStore):
    """Says OK and writes nothing."""

    def load_row(self, block_id: bytes, row: np.ndarray) -> Status:
        return Status.OK


class FailingStore(MemoryStore):
    """The first load of every third block fails, for several reasons in turn; the block is gone then."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[bytes] = []
        self._tried: set[bytes] = set()

    def load_row(self, block_id: bytes, row: np.ndarray) -> Status:
        if block_id not in self._tried:
            self._tried.add(block_id)
            if len(self._tried) % 3 == 0:
                self.failed.append(block_id)
                del self.blocks[block_id]
                return (Status.CORRUPT, Status.IO_ERROR, Status.TIMEOUT)[len(self.failed) % 3]
        return super().load_row(block_id, row)
