"""A store driven by hypothesis against a dictionary: any sequence of verbs, and the two must agree.

::

    class Machine(StoreMachine):
        pipeline = "MyStorage"

        def store_keys(self, directory):
            return {"storage_backends": [directory]}

    TestMyStorage = Machine.TestCase

An example runs on an event loop of its own, in the test's thread.
"""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ..store import Store, open_store
from ..types import DURABILITIES, U8, Status, block_ids
from ._store_case import all_ok, statuses

__all__ = ["StoreMachine"]

BLOCKS = 5
SHARDS = 3
SHARD_BYTES = 4096
IDS = block_ids(range(BLOCKS))
DATA: U8 = np.random.default_rng(0).integers(0, 256, (BLOCKS, SHARDS, SHARD_BYTES), dtype=np.uint8)

_blocks = st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=BLOCKS + 2)
_shards = st.lists(st.tuples(st.integers(0, BLOCKS - 1), st.integers(0, SHARDS - 1)), min_size=1, max_size=8)
_durability = st.sampled_from(DURABILITIES)


class StoreMachine(RuleBasedStateMachine):
    """The model: which blocks are whole, and which shards of the others are in.

    Attributes
    ----------
    pipeline
        The composition under test; override it.
    persistent
        Whether blocks outlive the store.
    """

    pipeline: ClassVar[str]
    persistent: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self._loop = asyncio.Runner()
        self.whole: set[int] = set()
        self.partial: dict[int, set[int]] = {}
        self.store = self._run(self._open())

    def store_keys(self, directory: str) -> dict[str, Any]:
        """Return the configuration keys that the composition needs; `directory` is the example's own."""
        return {}

    def _run(self, coroutine: Any) -> Any:
        return self._loop.run(coroutine)

    async def _open(self) -> Store:
        geometry = {"block_size": SHARDS * SHARD_BYTES, "shard_size": SHARD_BYTES, "staging_buffer_gb": 0.001}
        return await open_store(self.pipeline, **(geometry | self.store_keys(self._directory.name)))

    def teardown(self) -> None:
        """Close the store, the loop and the directory."""
        self._run(self.store.aclose())
        self._loop.close()
        self._directory.cleanup()

    # ---- verbs

    @initialize(blocks=_blocks)
    def begin_with(self, blocks: list[int]) -> None:
        """Have something to load."""
        self.dump_blocks(blocks, "stored")

    @rule(blocks=_blocks, durability=_durability)
    def dump_blocks(self, blocks: list[int], durability: Any) -> None:
        """Dump whole blocks, stored or not."""
        chosen = sorted(set(blocks))
        rows = DATA[chosen].reshape(len(chosen), -1)
        assert all_ok(self._run(self._await(self.store.dump, IDS[chosen], None, rows, durability=durability)))
        for block in chosen:
            self._is_whole(block)

    @rule(shards=_shards, durability=_durability)
    def dump_shards(self, shards: list[tuple[int, int]], durability: Any) -> None:
        """Dump some shards of some blocks, in the order that came."""
        chosen = list(dict.fromkeys(shards))
        blocks, indexes = [block for block, _ in chosen], [shard for _, shard in chosen]
        rows = DATA[blocks, indexes]
        assert all_ok(self._run(self._await(self.store.dump, IDS[blocks], indexes, rows, durability=durability)))
        for block, shard in chosen:
            self._has_shard(block, shard)

    @rule(blocks=_blocks)
    def dump_at_once(self, blocks: list[int]) -> None:
        """Dump one block a task, all under way together; a block that comes twice is dumped twice."""

        async def dump() -> list[Any]:
            rows = DATA.reshape(BLOCKS, -1)
            tasks = [self.store.dump(IDS[block : block + 1], None, rows[block : block + 1]) for block in blocks]
            return [await task for task in tasks]

        assert all(all_ok(result) for result in self._run(dump()))
        for block in blocks:
            self._is_whole(block)

    @rule(blocks=_blocks)
    def load_blocks(self, blocks: list[int]) -> None:
        """Load whole blocks, some of them several times."""
        back = np.zeros((len(blocks), SHARDS * SHARD_BYTES), dtype=np.uint8)
        result = self._run(self._await(self.store.load, IDS[blocks], None, back))
        self._agree(result, blocks)
        assert (back[result.ok] == DATA.reshape(BLOCKS, -1)[blocks][result.ok]).all()

    @rule(shards=_shards)
    def load_shards(self, shards: list[tuple[int, int]]) -> None:
        """Load some shards of some blocks."""
        blocks, indexes = [block for block, _ in shards], [shard for _, shard in shards]
        back = np.zeros((len(shards), SHARD_BYTES), dtype=np.uint8)
        result = self._run(self._await(self.store.load, IDS[blocks], indexes, back))
        self._agree(result, blocks)
        assert (back[result.ok] == DATA[blocks, indexes][result.ok]).all()

    @rule(blocks=_blocks)
    def delete(self, blocks: list[int]) -> None:
        """Delete blocks, there or not, whole or not."""
        self._run(self.store.delete(IDS[blocks]))
        for block in blocks:
            self.whole.discard(block)
            self.partial.pop(block, None)

    @rule(blocks=_blocks)
    def lookup(self, blocks: list[int]) -> None:
        """Ask for blocks one by one, and for their prefix."""
        expected = [block in self.whole for block in blocks]
        assert self._run(self.store.lookup(IDS[blocks])).tolist() == expected
        prefix = expected.index(False) if False in expected else len(expected)
        assert self._run(self.store.lookup_on_prefix(IDS[blocks])) == prefix - 1

    @rule(blocks=_blocks)
    def lease(self, blocks: list[int]) -> None:
        """Look at blocks in place."""

        async def look() -> list[bytes | None]:
            async with self.store.lease(IDS[blocks]) as views:
                return [None if view is None else bytes(view) for view in views]

        assert self._run(look()) == [DATA[block].tobytes() if block in self.whole else None for block in blocks]

    @rule()
    def flush(self) -> None:
        """Nothing failed."""
        assert dict(self._run(self.store.flush())) == {}

    @rule()
    def reopen(self) -> None:
        """Close the store and open it again: incomplete blocks are gone."""
        self._run(self.store.aclose())
        self.store = self._run(self._open())
        self.partial.clear()
        if not self.persistent:
            self.whole.clear()

    @invariant()
    def nothing_is_under_way(self) -> None:
        """Every task that was awaited has let go of everything."""
        told = self._run(self._tasks())
        assert told.submitted == told.settled

    # ---- the model

    async def _tasks(self) -> Any:
        return self.store.statistics().tasks

    @staticmethod
    async def _await(verb: Any, *arguments: Any, **keys: Any) -> Any:
        return await verb(*arguments, **keys)

    def _is_whole(self, block: int) -> None:
        self.whole.add(block)
        self.partial.pop(block, None)

    def _has_shard(self, block: int, shard: int) -> None:
        if block in self.whole:
            return
        self.partial.setdefault(block, set()).add(shard)
        if len(self.partial[block]) == SHARDS:
            self._is_whole(block)

    def _agree(self, result: Any, blocks: list[int]) -> None:
        assert statuses(result) == [Status.OK if block in self.whole else Status.MISS for block in blocks]
