"""Store suite, second part: what is stored, who sees it, and when."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ..store import Store
from ..types import DURABILITIES, Durability
from ._store_case import SHARDS, StoreCase, all_ok, make_blocks, statuses, to_shards

__all__ = ["IndexTests"]


class IndexTests(StoreCase):
    """Part of `ucm_async.testing.stores.StoreSuite`."""

    async def test_lookup_answers_each_id_for_itself(self, store: Store) -> None:
        """Stored and unknown ids, mixed and repeated, in the order that was asked."""
        ids, data = make_blocks(8)
        stored = np.array([1, 0, 0, 1, 1, 0, 1, 0], dtype=np.bool_)
        assert all_ok(await store.dump(ids[stored], None, data[stored]))
        order = np.array([7, 0, 0, 3, 5, 6, 2, 1, 4])
        found = await store.lookup(ids[order])
        assert found.dtype == np.bool_
        assert (found == stored[order]).all()
        assert (await store.lookup(ids[order]) == stored[order]).all()

    async def test_nothing_is_stored_at_first(self, store: Store) -> None:
        """An empty store answers with misses, not with errors."""
        ids, data = make_blocks(3)
        assert not (await store.lookup(ids)).any()
        assert await store.lookup_on_prefix(ids) == -1
        assert {one.name for one in statuses(await store.load(ids, None, data))} == {"MISS"}

    @pytest.mark.parametrize(
        ("count", "hole", "last"), [(1, None, 0), (5, 0, -1), (5, 3, 2), (300, None, 299), (300, 170, 169)]
    )
    async def test_prefix(self, store: Store, count: int, hole: int | None, last: int) -> None:
        """The prefix ends at the first id that is not stored, however many follow."""
        ids, data = make_blocks(count)
        stored = np.arange(count) != (-1 if hole is None else hole)
        assert all_ok(await store.dump(ids[stored], None, data[stored]))
        assert await store.lookup_on_prefix(ids) == last
        assert await store.lookup_on_prefix(ids[:1]) == (0 if stored[0] else -1)

    async def test_a_block_is_visible_when_all_shards_are_in(self, store: Store) -> None:
        """Not with the last-index shard, not with most of them; then at once."""
        ids, shards, rows = to_shards(*make_blocks(1))
        for shard in (3, 1, 0):
            assert all_ok(await store.dump(ids[:1], [shard], rows[shard : shard + 1]))
            assert not (await store.lookup(ids[:1]))[0]
            assert await store.lookup_on_prefix(ids[:1]) == -1
        result = await store.load(ids, shards, np.zeros_like(rows))
        assert {one.name for one in statuses(result)} == {"MISS"}
        assert all_ok(await store.dump(ids[:1], [2], rows[2:3]))
        assert (await store.lookup(ids[:1]))[0]

    async def test_shards_from_many_tasks_at_once(self, store: Store) -> None:
        """Each shard of each block in a task of its own, all under way together."""
        ids, shards, rows = to_shards(*make_blocks(6))
        order = np.random.default_rng(5).permutation(len(ids)).tolist()
        tasks = [store.dump(ids[i : i + 1], [int(shards[i])], rows[i : i + 1]) for i in order]
        for task in tasks:
            assert all_ok(await task)
        assert (await store.lookup(ids)).all()
        back = np.zeros_like(rows)
        assert all_ok(await store.load(ids, shards, back))
        assert (back == rows).all()

    @pytest.mark.parametrize("durability", DURABILITIES)
    async def test_lookup_straight_after_a_dump(self, store: Store, durability: Durability) -> None:
        """A dump that is OK is found, without a pause."""
        ids, data = make_blocks(8)
        for i in range(8):
            assert all_ok(await store.dump(ids[i : i + 1], None, data[i : i + 1], durability=durability))
            assert (await store.lookup(ids)).tolist() == [k <= i for k in range(8)]

    async def test_dumping_a_stored_block_again(self, store: Store) -> None:
        """It is OK and changes nothing: the same id means the same bytes."""
        ids, data = make_blocks(4)
        assert all_ok(await store.dump(ids[:2], None, data[:2]))
        assert all_ok(await store.dump(ids, None, data))
        shard_ids, shards, rows = to_shards(ids, data)
        assert all_ok(await store.dump(shard_ids[1:3], shards[1:3], rows[1:3]))
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()

    async def test_two_dumps_of_one_block_at_once(self, store: Store) -> None:
        """Both are OK, and the block is whole."""
        ids, data = make_blocks(6)
        shard_ids, shards, rows = to_shards(ids, data)
        tasks = [store.dump(ids, None, data), store.dump(ids, None, data), store.dump(shard_ids, shards, rows)]
        for task in tasks:
            assert all_ok(await task)
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()

    async def test_two_shard_dumps_that_overlap(self, store: Store) -> None:
        """Shards 0 … 2 and 1 … 3, under way together, make the block."""
        ids, shards, rows = to_shards(*make_blocks(4))
        first, second = shards < SHARDS - 1, shards > 0
        tasks = [store.dump(ids[chosen], shards[chosen], rows[chosen]) for chosen in (first, second)]
        for task in tasks:
            assert all_ok(await task)
        assert (await store.lookup(ids)).all()
        back = np.zeros_like(rows)
        assert all_ok(await store.load(ids, shards, back))
        assert (back == rows).all()

    async def test_the_source_may_change_after_the_dump(self, store: Store) -> None:
        """From the moment the await has ended the memory is the caller's again."""
        ids, data = make_blocks(8)
        source = data.copy()
        assert all_ok(await store.dump(ids, None, source))
        source[:] = 0
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()

    async def test_delete(self, store: Store) -> None:
        """What was deleted is a miss, the rest stays; it can be dumped again."""
        ids, data = make_blocks(6)
        assert all_ok(await store.dump(ids, None, data))
        await store.delete(ids[1:3])
        assert (await store.lookup(ids)).tolist() == [True, False, False, True, True, True]
        assert await store.lookup_on_prefix(ids) == 0
        result = await store.load(ids, None, np.zeros_like(data))
        assert result.ok.tolist() == [True, False, False, True, True, True]
        assert all_ok(await store.dump(ids[1:3], None, data[1:3]))
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()

    async def test_delete_of_what_is_not_there(self, store: Store) -> None:
        """Unknown and repeated ids are fine."""
        ids, data = make_blocks(2)
        assert all_ok(await store.dump(ids[:1], None, data[:1]))
        await store.delete([ids[0].tobytes(), ids[0].tobytes(), ids[1].tobytes()])
        await store.delete(ids)
        assert not (await store.lookup(ids)).any()

    async def test_delete_forgets_the_shards_of_an_incomplete_block(self, store: Store) -> None:
        """A block that was deleted half-way begins anew."""
        ids, shards, rows = to_shards(*make_blocks(1))
        assert all_ok(await store.dump(ids[:3], shards[:3], rows[:3]))
        await store.delete(ids[:1])
        assert all_ok(await store.dump(ids[3:], shards[3:], rows[3:]))
        assert not (await store.lookup(ids)).any()
        assert all_ok(await store.dump(ids[:3], shards[:3], rows[:3]))
        assert (await store.lookup(ids)).all()

    async def test_what_is_deleted_during_a_load_stays_deleted(self, store: Store) -> None:
        """The load may still get its bytes; no later lookup finds the block."""
        for number in range(12):
            ids, data = make_blocks(4, seed=number)
            assert all_ok(await store.dump(ids, None, data))
            back = np.zeros_like(data)
            load = store.load(ids, None, back)
            await asyncio.sleep(number * 0.0001)
            await store.delete(ids)
            result = await load
            assert (back[result.ok] == data[result.ok]).all()
            assert not (await store.lookup(ids)).any()

    async def test_flush_waits_for_dumps_under_way(self, store: Store) -> None:
        """After it, what was accepted is stored, awaited or not, and nothing failed."""
        ids, data = make_blocks(20)
        tasks = [store.dump(ids[i : i + 5], None, data[i : i + 5], durability="cached") for i in range(0, 20, 5)]
        assert dict(await store.flush()) == {}
        assert all(task.done() for task in tasks)
        assert (await store.lookup(ids)).all()

    async def test_prefetch_is_a_hint(self, store: Store) -> None:
        """Stored or not, it is no error and changes no byte."""
        ids, data = make_blocks(4)
        assert all_ok(await store.dump(ids[:2], None, data[:2]))
        await store.prefetch(ids)
        back = np.zeros_like(data[:2])
        assert all_ok(await store.load(ids[:2], None, back))
        assert (back == data[:2]).all()
        assert (await store.lookup(ids)).tolist() == [True, True, False, False]

    async def test_everything_at_once(self, store: Store) -> None:
        """Lookups, loads, dumps and deletes of other blocks side by side."""
        ids, data = make_blocks(32)
        assert all_ok(await store.dump(ids[:16], None, data[:16]))
        back = np.zeros_like(data[:8])
        load, dump = store.load(ids[:8], None, back), store.dump(ids[16:], None, data[16:])
        found, prefix, _ = await asyncio.gather(
            store.lookup(ids[:8]), store.lookup_on_prefix(ids[:8]), store.delete(ids[8:16])
        )
        assert all_ok(await load)
        assert all_ok(await dump)
        assert found.all()
        assert prefix == 7
        assert (back == data[:8]).all()
        assert (await store.lookup(ids)).tolist() == [not 8 <= i < 16 for i in range(32)]
