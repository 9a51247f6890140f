"""Store suite, part for stores with a storage behind them: what outlives a store, and what damage does to it."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

import numpy as np

from ..config import StoreConfig
from ..errors import CorruptError
from ..store import Store
from ..types import U8, Status
from ._store_case import BLOCK_BYTES, SHARD_BYTES, Opener, StoreCase, all_ok, make_blocks, statuses, to_shards

__all__ = ["PersistenceTests"]

OTHER_PROCESS: Final = """
import asyncio, json, sys
import numpy as np
import ucm_async
from ucm_async.testing._store_case import make_blocks

async def main():
    async with ucm_async.open_store(json.loads(sys.argv[1])) as store:
        ids, data = make_blocks(6)
        for line in sys.stdin:
            verb = line.strip()
            if verb == "lookup":
                print(json.dumps((await store.lookup(ids)).tolist()), flush=True)
            elif verb == "load":
                back = np.zeros_like(data)
                ok = (await store.load(ids, None, back)).ok
                print(json.dumps([bool(one) for one in ok & (back == data).all(axis=1)]), flush=True)
            elif verb == "dump":
                print(json.dumps((await store.dump(ids[4:], None, data[4:])).status.tolist()), flush=True)

asyncio.run(main())
"""


class _OtherProcess:
    """Another process with a store of the same configuration, asked by words."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, config: StoreConfig) -> _OtherProcess:
        pipe = asyncio.subprocess.PIPE
        keys = json.dumps(config.as_dict())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", OTHER_PROCESS, keys, stdin=pipe, stdout=pipe
        )
        return cls(process)

    async def ask(self, word: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n".encode())
        return json.loads(await self._process.stdout.readline())

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert await self._process.wait() == 0


class PersistenceTests(StoreCase):
    """Part of `ucm_async.testing.stores.PersistentStoreSuite`."""

    def raw_read(self, keys: dict[str, Any], block_id: bytes) -> bytes | None:
        """Return what the storage holds for a block, past the store; None if nothing. `keys` are `store_keys`."""
        raise NotImplementedError

    def raw_write(self, keys: dict[str, Any], block_id: bytes, stored: bytes) -> None:
        """Put `stored` in the place of what the storage holds for a block, past the store."""
        raise NotImplementedError

    # ---- what outlives a store

    async def test_reopening_finds_the_blocks(self, opener: Opener) -> None:
        """A store that was closed and opened again has what it had."""
        ids, data = make_blocks(12)
        async with opener() as store:
            assert all_ok(await store.dump(ids, None, data))
        async with opener() as store:
            assert await store.lookup_on_prefix(ids) == 11
            back = np.zeros_like(data)
            assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()

    async def test_an_incomplete_block_ends_with_its_store(self, opener: Opener) -> None:
        """Shards of a block that never was whole are no part of the next store."""
        ids, shards, rows = to_shards(*make_blocks(1))
        async with opener() as store:
            assert all_ok(await store.dump(ids[:3], shards[:3], rows[:3]))
        async with opener() as store:
            assert all_ok(await store.dump(ids[3:], shards[3:], rows[3:]))
            assert not (await store.lookup(ids)).any()

    async def test_stored_means_stored(self, store: Store, store_keys: dict[str, Any]) -> None:
        """When a dump is OK the storage holds the block; when it is deleted, not any more."""
        ids, data = make_blocks(2)
        key = ids[0].tobytes()
        assert self.raw_read(store_keys, key) is None
        assert all_ok(await store.dump(ids[:1], None, data[:1]))
        assert self.raw_read(store_keys, key) is not None
        assert self.raw_read(store_keys, ids[1].tobytes()) is None
        await store.delete(ids)
        assert self.raw_read(store_keys, key) is None

    async def test_nothing_is_stored_of_an_incomplete_block(self, store: Store, store_keys: dict[str, Any]) -> None:
        """Under the block's name there is all of it, or nothing."""
        ids, shards, rows = to_shards(*make_blocks(1))
        assert all_ok(await store.dump(ids[1:], shards[1:], rows[1:]))
        assert self.raw_read(store_keys, ids[0].tobytes()) is None

    # ---- several stores

    async def test_a_second_store_sees_a_block_at_once(self, store: Store, opener: Opener) -> None:
        """Also where it has looked for it before."""
        ids, data = make_blocks(4)
        async with opener() as other:
            for i in range(4):
                assert (await other.lookup(ids)).tolist() == [k < i for k in range(4)]
                assert all_ok(await store.dump(ids[i : i + 1], None, data[i : i + 1]))
            back = np.zeros_like(data)
            assert all_ok(await other.load(ids, None, back))
        assert (back == data).all()

    async def test_another_process_sees_a_block_at_once(self, store: Store) -> None:
        """And the other way round."""
        ids, data = make_blocks(6)
        other = await _OtherProcess.start(store.config)
        assert await other.ask("lookup") == [False] * 6
        assert all_ok(await store.dump(ids[:4], None, data[:4]))
        assert await other.ask("lookup") == [True] * 4 + [False] * 2
        assert await other.ask("load") == [True] * 4 + [False] * 2
        assert await other.ask("dump") == [Status.OK] * 2
        assert (await store.lookup(ids)).all()
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()
        await other.end()

    async def test_two_stores_write_one_block(self, store: Store, opener: Opener) -> None:
        """Each finishes its own copy, both are OK, the block is whole."""
        ids, data = make_blocks(16)
        async with opener() as other:
            first, second = store.dump(ids, None, data), other.dump(ids, None, data)
            assert all_ok(await first)
            assert all_ok(await second)
            back = np.zeros_like(data)
            assert all_ok(await other.load(ids, None, back))
        assert (back == data).all()

    async def test_two_stores_each_need_all_the_shards(self, store: Store, opener: Opener) -> None:
        """Shards of two writers do not make a block: nobody knows whether they belong together."""
        ids, shards, rows = to_shards(*make_blocks(1))
        async with opener() as other:
            assert all_ok(await store.dump(ids[:2], shards[:2], rows[:2]))
            assert all_ok(await other.dump(ids[2:], shards[2:], rows[2:]))
            assert not (await store.lookup(ids)).any()
            assert all_ok(await other.dump(ids[:2], shards[:2], rows[:2]))
            assert (await store.lookup(ids)).all()

    async def test_a_delete_by_another_store_is_a_miss(self, store: Store, opener: Opener) -> None:
        """What this store remembers is a hint; a load finds out, and the next lookup knows."""
        ids, data = make_blocks(2)
        assert all_ok(await store.dump(ids, None, data))
        async with opener() as other:
            await other.delete(ids[:1])
        assert statuses(await store.load(ids, None, np.zeros_like(data))) == [Status.MISS, Status.OK]
        assert (await store.lookup(ids)).tolist() == [False, True]

    async def test_namespaces_do_not_see_each_other(self, store: Store, opener: Opener) -> None:
        """Not in a lookup, a load, a dump or a delete; another geometry is another namespace."""
        ids, data = make_blocks(3)
        assert all_ok(await store.dump(ids, None, data))
        for changes in ({"namespace": "another"}, {"shard_size": 2 * SHARD_BYTES}, {"block_size": BLOCK_BYTES * 2}):
            async with opener(**changes) as other:
                await self._is_another(other, ids)
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()

    async def _is_another(self, other: Store, ids: U8) -> None:
        """See to it that a store has none of the blocks, and can have blocks of its own under the same ids."""
        theirs = np.full((len(ids), other.config.block_size), 9, dtype=np.uint8)
        assert not (await other.lookup(ids)).any()
        assert set(statuses(await other.load(ids, None, theirs.copy()))) == {Status.MISS}
        await other.delete(ids)
        assert all_ok(await other.dump(ids, None, theirs))
        back = np.zeros_like(theirs)
        assert all_ok(await other.load(ids, None, back))
        assert (back == theirs).all()
        await other.delete(ids)

    # ---- damage

    async def test_a_flipped_bit_is_corrupt_once_then_a_miss(self, store: Store, store_keys: dict[str, Any]) -> None:
        """Nothing wrong is ever returned as good; what is bad is set aside and can be dumped anew."""
        for number, where in enumerate((0.0, 0.002, 0.3, 0.6, 0.97)):
            ids, data = make_blocks(3, seed=number)
            assert all_ok(await store.dump(ids, None, data))
            stored = bytearray(self._stored(store_keys, ids[1]))
            stored[int(where * len(stored))] ^= 0x10
            self.raw_write(store_keys, ids[1].tobytes(), bytes(stored))
            await self._corrupt_once(store, ids, data)

    async def test_what_is_cut_short_is_not_loaded(self, store: Store, store_keys: dict[str, Any]) -> None:
        """Truncated or empty: the same."""
        for number, keep in enumerate((0.0, 0.01, 0.5, 0.999)):
            ids, data = make_blocks(3, seed=number)
            assert all_ok(await store.dump(ids, None, data))
            stored = self._stored(store_keys, ids[1])
            self.raw_write(store_keys, ids[1].tobytes(), stored[: int(keep * len(stored))])
            await self._corrupt_once(store, ids, data)

    def _stored(self, store_keys: dict[str, Any], block_id: U8) -> bytes:
        stored = self.raw_read(store_keys, block_id.tobytes())
        assert stored is not None
        return stored

    async def test_the_bytes_of_another_block(self, store: Store, store_keys: dict[str, Any]) -> None:
        """A block in the place of another one is as bad as a flipped bit."""
        ids, data = make_blocks(3)
        assert all_ok(await store.dump(ids, None, data))
        self.raw_write(store_keys, ids[1].tobytes(), self._stored(store_keys, ids[0]))
        await self._corrupt_once(store, ids, data)

    async def _corrupt_once(self, store: Store, ids: Any, data: Any) -> None:
        """See to it that the middle one of three blocks is found to be damaged, once."""
        back = np.zeros_like(data)
        result = await store.load(ids, None, back)
        assert statuses(result) == [Status.OK, Status.CORRUPT, Status.OK]
        assert isinstance(result.failures[1], CorruptError)
        assert (back[[0, 2]] == data[[0, 2]]).all()
        assert (await store.lookup(ids)).tolist() == [True, False, True]
        assert statuses(await store.load(ids, None, back)) == [Status.OK, Status.MISS, Status.OK]
        assert all_ok(await store.dump(ids, None, data))
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()
