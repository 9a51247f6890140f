"""Store suite, first part: bytes go in and come back, whatever memory they lie in."""

from __future__ import annotations

import array
import ctypes
import mmap
from typing import Any

import numpy as np
import pytest

from ..store import Store
from ._store_case import (
    BLOCK_BYTES,
    SHARD_BYTES,
    SHARDS,
    Opener,
    StoreCase,
    all_ok,
    make_blocks,
    statuses,
    to_shards,
)

__all__ = ["BytesTests"]

TENSORS = (8 << 10, 4 << 10, 3 << 10, 1 << 10)
"""An uneven cut of a shard."""


def _mmap(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size)


def _view(size: int) -> memoryview:
    return memoryview(bytearray(size))


def _words(size: int) -> array.array[int]:
    return array.array("q", bytes(size))


def _raw(size: int) -> Any:
    return (ctypes.c_char * size)()


def _cut(row: Any, sizes: tuple[int, ...]) -> list[memoryview]:
    """Return `row` in pieces, each with a gap of its own before it in memory."""
    ends = np.cumsum(sizes).tolist()
    whole = memoryview(row)
    pieces = [bytearray(7 + size) for size in sizes]
    for piece, size, end in zip(pieces, sizes, ends, strict=True):
        piece[7:] = whole[end - size : end]
    return [memoryview(piece)[7:] for piece in pieces]


class BytesTests(StoreCase):
    """Part of `ucm_async.testing.stores.StoreSuite`."""

    async def test_whole_blocks_come_back(self, store: Store) -> None:
        """What was dumped is what is loaded, row by row."""
        ids, data = make_blocks(20)
        assert all_ok(await store.dump(ids, None, data))
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()

    async def test_ids_may_be_a_list_of_bytes(self, store: Store) -> None:
        """The two kinds of ids name the same blocks."""
        ids, data = make_blocks(5)
        names = [one.tobytes() for one in ids]
        assert all_ok(await store.dump(names, None, data))
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids[::-1].copy(), None, back))
        assert (back == data[::-1]).all()
        assert (await store.lookup(names)).all()

    async def test_shards_come_back_in_any_order(self, store: Store) -> None:
        """Shards are dumped in one random order and loaded in another."""
        ids, shards, rows = to_shards(*make_blocks(10))
        order = np.random.default_rng(1).permutation(len(ids))
        assert all_ok(await store.dump(ids[order], shards[order], rows[order]))
        order = np.random.default_rng(2).permutation(len(ids))
        back = np.zeros_like(rows)
        assert all_ok(await store.load(ids[order], shards[order], back))
        assert (back == rows[order]).all()

    async def test_reverse_order(self, store: Store) -> None:
        """The shard with the largest index is no sign that a block is whole."""
        ids, shards, rows = to_shards(*make_blocks(3))
        for shard in reversed(range(SHARDS)):
            assert not (await store.lookup(ids)).any()
            chosen = shards == shard
            assert all_ok(await store.dump(ids[chosen], shards[chosen], rows[chosen]))
        back = np.zeros_like(rows)
        assert all_ok(await store.load(ids, shards, back))
        assert (back == rows).all()

    async def test_blocks_and_shards_are_the_same_bytes(self, store: Store) -> None:
        """A whole block can be loaded shard by shard, and shards as a whole block."""
        ids, data = make_blocks(4)
        shard_ids, shards, rows = to_shards(ids, data)
        assert all_ok(await store.dump(ids[:2], None, data[:2]))
        assert all_ok(await store.dump(shard_ids[2 * SHARDS :], shards[2 * SHARDS :], rows[2 * SHARDS :]))
        as_shards, as_blocks = np.zeros_like(rows), np.zeros_like(data)
        assert all_ok(await store.load(shard_ids, shards, as_shards))
        assert all_ok(await store.load(ids, None, as_blocks))
        assert (as_shards == rows).all()
        assert (as_blocks == data).all()

    async def test_a_few_shards_of_many_blocks(self, store: Store) -> None:
        """One layer of every block, as a layer-wise loader asks for it."""
        ids, data = make_blocks(30)
        assert all_ok(await store.dump(ids, None, data))
        for shard in range(SHARDS):
            back = np.zeros((30, SHARD_BYTES), dtype=np.uint8)
            assert all_ok(await store.load(ids, [shard] * 30, back))
            assert (back == data[:, shard * SHARD_BYTES : (shard + 1) * SHARD_BYTES]).all()

    async def test_repeated_ids_in_a_load(self, store: Store) -> None:
        """One block may be wanted in several places at once, side by side or apart."""
        ids, data = make_blocks(3)
        assert all_ok(await store.dump(ids, None, data))
        order = np.array([0, 0, 1, 2, 0, 2, 2])
        back = np.zeros((len(order), BLOCK_BYTES), dtype=np.uint8)
        assert all_ok(await store.load(ids[order], None, back))
        assert (back == data[order]).all()

    async def test_repeated_shards_in_a_load(self, store: Store) -> None:
        """The same for shards."""
        ids, shards, rows = to_shards(*make_blocks(2))
        assert all_ok(await store.dump(ids, shards, rows))
        order = np.array([5, 5, 1, 6, 5, 0, 1])
        back = np.zeros((len(order), SHARD_BYTES), dtype=np.uint8)
        assert all_ok(await store.load(ids[order], shards[order], back))
        assert (back == rows[order]).all()

    async def test_more_than_the_staging_memory_holds(self, store: Store) -> None:
        """A task may be larger than the memory between callers and disk."""
        ids, data = make_blocks(100)
        assert all_ok(await store.dump(ids, None, data))
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()

    async def test_tasks_side_by_side(self, store: Store) -> None:
        """Loads and dumps under way at the same time do not mix their bytes."""
        ids, data = make_blocks(40)
        dumps = [store.dump(ids[i : i + 4], None, data[i : i + 4]) for i in range(0, 40, 4)]
        backs, loads = [], []
        for i, dump in enumerate(dumps):
            assert all_ok(await dump)
            backs.append(np.zeros((4, BLOCK_BYTES), dtype=np.uint8))
            loads.append(store.load(ids[4 * i : 4 * i + 4], None, backs[-1]))
        for load in loads:
            assert all_ok(await load)
        assert (np.concatenate(backs) == data).all()

    async def test_nothing_is_a_task_too(self, store: Store) -> None:
        """No rows: done, without failures."""
        for task in (store.load([], None, []), store.dump([], [], None), store.load([], None, np.zeros((0, 4)))):
            result = await task
            assert len(result.status) == 0
            assert result.loaded_prefix == 0
        assert (await store.lookup([])).shape == (0,)
        assert await store.lookup_on_prefix([]) == -1
        await store.delete([])
        await store.prefetch([])

    # ---- kinds of memory

    @pytest.mark.parametrize("make", [bytearray, _view, _mmap, _words, _raw], ids=lambda make: make.__name__)
    async def test_a_buffer_a_row(self, store: Store, make: Any) -> None:
        """Whatever has the buffer protocol is memory."""
        ids, data = make_blocks(4)
        source = [make(BLOCK_BYTES) for _ in ids]
        for row, octets in zip(source, data, strict=True):
            memoryview(row).cast("B")[:] = octets
        assert all_ok(await store.dump(ids, None, source))
        back = [make(BLOCK_BYTES) for _ in ids]
        assert all_ok(await store.load(ids, None, tuple(back)))
        assert [bytes(memoryview(row).cast("B")) for row in back] == [octets.tobytes() for octets in data]

    async def test_a_dump_may_be_read_only(self, store: Store) -> None:
        """The source of a dump is only read: bytes will do."""
        ids, data = make_blocks(2)
        assert all_ok(await store.dump(ids, None, [octets.tobytes() for octets in data]))
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()

    @pytest.mark.parametrize("dtype", ["float16", "int64", "complex128"])
    async def test_an_array_of_another_dtype(self, store: Store, dtype: str) -> None:
        """Bytes are bytes; the shape beyond the first axis does not matter."""
        ids, data = make_blocks(4)
        assert all_ok(await store.dump(ids, None, data.view(dtype)))
        back = np.zeros_like(data).view(dtype).reshape(4, 2, -1)
        assert all_ok(await store.load(ids, None, back))
        assert (back.reshape(4, -1).view(np.uint8) == data).all()

    async def test_one_buffer_for_all_rows(self, store: Store) -> None:
        """One flat buffer, the rows one after another; and one row without a list around it."""
        ids, data = make_blocks(3)
        assert all_ok(await store.dump(ids, None, data.tobytes()))
        flat = bytearray(3 * BLOCK_BYTES)
        assert all_ok(await store.load(ids, None, flat))
        assert flat == data.tobytes()
        one = np.zeros(BLOCK_BYTES, dtype=np.uint8)
        assert all_ok(await store.load(ids[1:2], None, one))
        assert (one == data[1]).all()

    async def test_memory_at_odd_addresses(self, store: Store) -> None:
        """Alignment is no concern of the caller's, and nothing beside its memory changes."""
        ids, data = make_blocks(4)
        step = BLOCK_BYTES + 13
        source, back = bytearray(5 + 4 * step), bytearray(b"\xee" * (5 + 4 * step))
        places = [slice(5 + i * step, 5 + i * step + BLOCK_BYTES) for i in range(4)]
        for place, octets in zip(places, data, strict=True):
            source[place] = octets.tobytes()
        assert all_ok(await store.dump(ids, None, [memoryview(source)[place] for place in places]))
        assert all_ok(await store.load(ids, None, [memoryview(back)[place] for place in places]))
        for place, octets in zip(places, data, strict=True):
            assert back[place] == octets.tobytes()
            back[place] = b"\xee" * BLOCK_BYTES
        assert set(back) == {0xEE}

    async def test_rows_as_lists_of_tensors(self, opener: Opener) -> None:
        """A shard is a row of equal tensors that lie apart."""
        ids, shards, rows = to_shards(*make_blocks(3))
        sizes = (SHARD_BYTES // 8,) * 8
        async with opener(tensor_size=sizes[0]) as store:
            assert all_ok(await store.dump(ids, shards, [_cut(row, sizes) for row in rows]))
            back = [[bytearray(size) for size in sizes] for _ in rows]
            assert all_ok(await store.load(ids, shards, back))
        assert [b"".join(row) for row in back] == [row.tobytes() for row in rows]

    async def test_rows_as_lists_of_uneven_tensors(self, opener: Opener) -> None:
        """The same for tensors of different sizes."""
        ids, shards, rows = to_shards(*make_blocks(3))
        async with opener(tensor_size_list=TENSORS) as store:
            assert all_ok(await store.dump(ids, shards, [_cut(row, TENSORS) for row in rows]))
            back = [tuple(bytearray(size) for size in TENSORS) for _ in rows]
            assert all_ok(await store.load(ids, shards, back))
        assert [b"".join(row) for row in back] == [row.tobytes() for row in rows]

    async def test_whole_blocks_as_lists_of_tensors(self, opener: Opener) -> None:
        """The tensors of every shard of a block, in order; the cut of a dump need not be that of the load."""
        ids, data = make_blocks(3)
        sizes = TENSORS * SHARDS
        async with opener(tensor_size_list=TENSORS) as store:
            assert all_ok(await store.dump(ids, None, [_cut(row, sizes) for row in data]))
            back = [[bytearray(size) for size in sizes] for _ in ids]
            assert all_ok(await store.load(ids, None, back))
            halves = [[bytearray(BLOCK_BYTES // 2) for _ in range(2)] for _ in ids]
            assert all_ok(await store.load(ids, None, halves))
        assert [b"".join(row) for row in back] == [row.tobytes() for row in data]
        assert [b"".join(row) for row in halves] == [row.tobytes() for row in data]

    async def test_raw_addresses(self, opener: Opener) -> None:
        """One address a row, or one a tensor."""
        ids, shards, rows = to_shards(*make_blocks(3))
        starts = np.concatenate(([0], np.cumsum(TENSORS)[:-1])).astype(np.uint64)
        steps = np.arange(len(rows), dtype=np.uint64) * np.uint64(SHARD_BYTES)
        back = np.zeros_like(rows)
        async with opener(tensor_size_list=TENSORS) as store:
            source = (np.uint64(rows.ctypes.data) + steps).reshape(-1, 1)
            assert all_ok(await store.dump_data(ids, shards, source))
            target = np.uint64(back.ctypes.data) + steps[:, None] + starts[None, :]
            assert all_ok(await store.load_data(ids, shards, target))
        assert (back == rows).all()

    async def test_registered_memory(self, store: Store) -> None:
        """Aligned or not, registered memory gets the same bytes."""
        ids, data = make_blocks(6)
        memory = _mmap(16 * BLOCK_BYTES)
        rows = np.frombuffer(memory, dtype=np.uint8).reshape(16, BLOCK_BYTES)
        rows[:6] = data
        odd = np.frombuffer(memory, dtype=np.uint8, count=2 * BLOCK_BYTES, offset=13 * BLOCK_BYTES + 100)
        with store.register(memory):
            assert all_ok(await store.dump(ids, None, rows[:6]))
            result = await store.load(ids, None, rows[6:12])
            assert all_ok(result)
            assert result.settled
            assert all_ok(await store.load(ids[:2], None, odd.reshape(2, -1)))
        assert (rows[6:12] == data).all()
        assert (odd == data[:2].reshape(-1)).all()

    async def test_shards_in_registered_memory(self, store: Store) -> None:
        """Shards too, in any order, some rows aligned and some blocks without their first shard."""
        ids, shards, rows = to_shards(*make_blocks(6))
        memory = np.frombuffer(_mmap(2 * rows.nbytes), dtype=np.uint8).reshape(2, *rows.shape)
        order = np.random.default_rng(3).permutation(len(ids))
        memory[0] = rows[order]
        with store.register(memory):
            half = len(order) // 2
            first = store.dump(ids[order[:half]], shards[order[:half]], memory[0, :half])
            second = store.dump(ids[order[half:]], shards[order[half:]], memory[0, half:])
            assert all_ok(await first)
            assert all_ok(await second)
            wanted = order[shards[order] != 0]
            assert all_ok(await store.load(ids[wanted], shards[wanted], memory[1, : len(wanted)]))
        assert (memory[1, : len(wanted)] == rows[wanted]).all()

    async def test_one_buffer_for_several_rows(self, store: Store) -> None:
        """Nobody can say what is in it then; no stored block suffers from it, registered memory or not."""
        ids, data = make_blocks(20)
        assert all_ok(await store.dump(ids, None, data))
        memory = _mmap(BLOCK_BYTES)
        assert all_ok(await store.load(ids, None, [memory] * 20))
        with store.register(memory):
            assert all_ok(await store.load(ids, None, [memory] * 20))
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()

    async def test_the_rows_that_fail_do_not_spoil_the_others(self, store: Store) -> None:
        """Forty-nine of fifty rows are delivered when one is not stored."""
        ids, data = make_blocks(50)
        stored = np.arange(50) != 23
        assert all_ok(await store.dump(ids[stored], None, data[stored]))
        back = np.zeros_like(data)
        result = await store.load(ids, None, back)
        assert (result.ok == stored).all()
        assert (back[stored] == data[stored]).all()
        assert statuses(result)[23].name == "MISS"
