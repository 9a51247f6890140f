"""What lies on the disk is not what was written: CORRUPT once with a reason, set aside, a miss from then on.

Covered by checksums: the header as far as it says something, and every shard. Not covered: the padding behind the
header and behind the last shard, which nobody is ever given; a flipped bit there changes nothing.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

import ucm_async as ucm
from ucm_async import Status
from ucm_async.blocks.header import used_bytes
from ucm_async.blocks.layout import BlockLayout

from .conftest import Opener
from .support import (
    BLOCK,
    ENGINES,
    SHARD,
    SHARDS,
    Array,
    assert_rows,
    by_shard,
    check_blocks,
    content,
    flip,
    home,
    path_of,
    poisoned,
    quarantined,
    quiet,
    spread,
)

IDS = ucm.block_ids(range(12))
LAYOUT = BlockLayout.of(BLOCK, SHARD)
COVERED_HEADER = used_bytes(SHARDS)


@pytest_asyncio.fixture
async def stored(open_store: Opener) -> ucm.Store:
    """A store with every block of `IDS`."""
    store: ucm.Store = await open_store()
    assert (await store.dump(IDS, None, content(IDS))).ok.all()
    return store


async def expect_corrupt_once(store: ucm.Store, bad: Array, reason: str = "") -> None:
    """Load all blocks: `bad` is CORRUPT once, then a miss, and can be stored again; the others are fine all along."""
    is_bad = (bad == IDS).all(axis=1)
    out = poisoned(len(IDS))
    result = await store.load(IDS, None, out)
    assert_rows(result, out, content(IDS))
    assert result.status.tolist() == np.where(is_bad, Status.CORRUPT, Status.OK).tolist(), result.failures
    (row,) = result.failures
    error = result.failures[row]
    assert isinstance(error, ucm.CorruptError)
    assert error.block_id == bad.tobytes()
    assert reason in error.reason and error.reason
    assert quarantined(home(store)) == [f"quarantine/{bad.tobytes().hex()}"]
    await expect_miss_and_new_dump(store, is_bad)


async def expect_miss_and_new_dump(store: ucm.Store, is_bad: Array) -> None:
    bad = np.ascontiguousarray(IDS[is_bad])
    assert (await store.lookup(IDS)).tolist() == (~is_bad).tolist()
    assert await store.lookup_on_prefix(IDS) == int(is_bad.argmax()) - 1
    await check_blocks(store, bad, allowed=(Status.MISS,))
    assert (await store.dump(bad, None, content(bad))).ok.all()
    assert (await store.lookup(IDS)).all()
    await check_blocks(store, IDS)
    await quiet(store)


@pytest.mark.parametrize("shard", range(SHARDS))
async def test_a_flipped_bit_in_a_shard(stored: ucm.Store, shard: int) -> None:
    flip(path_of(home(stored), IDS[3]), LAYOUT.header_bytes + shard * SHARD + 5, bit=3)
    await expect_corrupt_once(stored, IDS[3], f"shard {shard}")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("damage", ["flip", "cut", "one by one"])
async def test_on_each_engine(open_store: Opener, engine: str, damage: str) -> None:
    """Whoever reads it; and on the short way that a load of one small block may take."""
    store = await open_store(io_engine=engine)
    assert (await store.dump(IDS, None, content(IDS))).ok.all()
    path = path_of(home(store), IDS[3])
    if damage == "cut":
        os.truncate(path, LAYOUT.file_bytes // 2)
    else:
        flip(path, LAYOUT.header_bytes + SHARD)
    if damage == "one by one":
        for i in range(len(IDS)):
            allowed = (Status.CORRUPT,) if i == 3 else (Status.OK,)
            await check_blocks(store, IDS[i : i + 1], allowed)
        await expect_miss_and_new_dump(store, (IDS[3] == IDS).all(axis=1))
    else:
        await expect_corrupt_once(store, IDS[3])


@pytest.mark.parametrize("offset", [0, 7, 8, 11, 12, COVERED_HEADER - 1])
async def test_a_flipped_bit_in_the_header(stored: ucm.Store, offset: int) -> None:
    flip(path_of(home(stored), IDS[3]), offset)
    await expect_corrupt_once(stored, IDS[3], "header")


async def test_the_padding_is_not_covered(open_store: Opener) -> None:
    """Nothing reads it. 5000-byte shards leave some at the end, too."""
    store = await open_store(block_size=20_000, shard_size=5_000)
    assert (await store.dump(IDS, None, content(IDS, 20_000))).ok.all()
    path = path_of(home(store), IDS[3])
    layout = BlockLayout.of(20_000, 5_000)
    for offset in (used_bytes(4), layout.header_bytes - 1, layout.header_bytes + 20_000, layout.file_bytes - 1):
        flip(path, offset)
    out = poisoned(len(IDS), 20_000)
    result = await store.load(IDS, None, out)
    assert result.ok.all()
    assert_rows(result, out, content(IDS, 20_000))


async def test_a_bad_shard_leaves_the_others_of_its_block_usable(stored: ucm.Store) -> None:
    """Rows whose own checksum is right are delivered, in the load that finds the damage, too."""
    flip(path_of(home(stored), IDS[3]), LAYOUT.header_bytes + 2 * SHARD)
    rows, shards, data = by_shard(IDS[3:4])
    out = poisoned(SHARDS, SHARD)
    result = await stored.load(rows[:2], shards[:2], out[:2])
    assert result.ok.all()  # it was not asked for, and nobody looked at it
    result = await stored.load(rows, shards, out)
    assert_rows(result, out, data)
    assert result.status.tolist() == [Status.OK, Status.OK, Status.CORRUPT, Status.OK]
    await expect_miss_and_new_dump(stored, (IDS[3] == IDS).all(axis=1))


@pytest.mark.parametrize(
    "length", [0, 1, 11, COVERED_HEADER, 4095, 4096, 4097, 4096 + SHARD, 4096 + 2 * SHARD + 1, LAYOUT.file_bytes - 1]
)
async def test_a_truncated_file(stored: ucm.Store, length: int) -> None:
    os.truncate(path_of(home(stored), IDS[3]), length)
    await expect_corrupt_once(stored, IDS[3], "truncated")


async def test_a_truncated_file_is_no_block_for_others(stored: ucm.Store, open_store: Opener) -> None:
    """A store that has not seen it whole does not take it for a block, and a dump puts a whole one there."""
    os.truncate(path_of(home(stored), IDS[3]), LAYOUT.file_bytes // 2)
    other = await open_store()
    assert (await other.lookup(IDS)).tolist() == [i != 3 for i in range(len(IDS))]
    assert await other.lookup_on_prefix(IDS) == 2
    assert (await other.dump(IDS[3:4], None, content(IDS[3:4]))).ok.all()
    await check_blocks(other, IDS)
    await check_blocks(stored, IDS)


async def test_another_block_under_this_name(stored: ucm.Store) -> None:
    root = home(stored)
    shutil.copyfile(path_of(root, IDS[4]), path_of(root, IDS[3]))
    await expect_corrupt_once(stored, IDS[3], "another block")


async def test_a_file_of_another_namespace(stored: ucm.Store, open_store: Opener) -> None:
    other = await open_store(namespace="somebody else's")
    assert (await other.dump(IDS, None, content(IDS) ^ 0xFF)).ok.all()
    await check_blocks(stored, IDS)  # side by side they never meet
    shutil.copyfile(path_of(home(other), IDS[3]), path_of(home(stored), IDS[3]))
    await expect_corrupt_once(stored, IDS[3], "another namespace")


async def test_a_file_of_zeros(stored: ucm.Store) -> None:
    path_of(home(stored), IDS[3]).write_bytes(bytes(LAYOUT.file_bytes))
    await expect_corrupt_once(stored, IDS[3], "no block header")


async def test_two_blocks_swapped(stored: ucm.Store) -> None:
    root = home(stored)
    first, second = path_of(root, IDS[3]), path_of(root, IDS[4])
    aside = root / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    counts = await check_blocks(stored, IDS, allowed=(Status.OK, Status.CORRUPT))
    assert counts == {Status.OK: len(IDS) - 2, Status.CORRUPT: 2}
    assert (~await stored.lookup(IDS)).nonzero()[0].tolist() == [3, 4]


@pytest.mark.parametrize("write", [0, 1, 2])
async def test_a_lost_page_of_a_write(stored: ucm.Store, write: int) -> None:
    """A disk that said yes and did not write: the page has what was there before, here zeros."""
    with path_of(home(stored), IDS[3]).open("r+b") as file:
        file.seek(LAYOUT.header_bytes + write * SHARD)
        file.write(bytes(4096))
    await expect_corrupt_once(stored, IDS[3], f"shard {write}")


@pytest.mark.parametrize("seed", range(3))
async def test_sweep_of_flipped_bits(open_store: Opener, seed: int) -> None:
    """One bit in each of 128 blocks, spread over the whole file."""
    ids = ucm.block_ids(range(128))
    store = await open_store()
    assert (await store.dump(ids, None, content(ids))).ok.all()
    generator = np.random.default_rng(seed)
    expected = []
    for block_id, offset in zip(ids, spread(generator, LAYOUT.file_bytes, len(ids)), strict=True):
        flip(path_of(home(store), block_id), offset, bit=int(generator.integers(8)))
        padding = COVERED_HEADER <= offset < LAYOUT.header_bytes
        expected.append(Status.OK if padding else Status.CORRUPT)
    out = poisoned(len(ids))
    result = await store.load(ids, None, out)
    assert_rows(result, out, content(ids))
    assert result.status.tolist() == expected
    await expect_gone(store, ids, np.array(expected) == Status.CORRUPT)


@pytest.mark.parametrize("seed", range(2))
async def test_sweep_of_lengths(open_store: Opener, seed: int) -> None:
    ids = ucm.block_ids(range(128))
    store = await open_store()
    assert (await store.dump(ids, None, content(ids))).ok.all()
    for block_id, length in zip(ids, spread(np.random.default_rng(seed), LAYOUT.file_bytes, len(ids)), strict=True):
        os.truncate(path_of(home(store), block_id), length)
    await check_blocks(store, ids, allowed=(Status.CORRUPT,))
    await expect_gone(store, ids, np.ones(len(ids), dtype=np.bool_))


@pytest.mark.parametrize("seed", range(2))
async def test_sweep_of_torn_files(open_store: Opener, seed: int) -> None:
    """Some sectors of each file come from another block: what a torn or misdirected write leaves."""
    ids, others = ucm.block_ids(range(64)), ucm.block_ids(range(1000, 1064))
    store = await open_store()
    for some in (ids, others):
        assert (await store.dump(some, None, content(some))).ok.all()
    root, generator = home(store), np.random.default_rng(seed)
    for block_id, other in zip(ids, others, strict=True):
        tear(path_of(root, block_id), path_of(root, other), generator)
    counts = await check_blocks(store, ids, allowed=(Status.CORRUPT,))
    assert counts == Counter({Status.CORRUPT: len(ids)})
    await check_blocks(store, others)


def tear(path: Path, other: Path, generator: np.random.Generator) -> None:
    sectors = LAYOUT.file_bytes // 512
    stale = generator.random(sectors) < 0.2
    stale[LAYOUT.header_bytes // 512 + int(generator.integers(SHARD // 512))] = True  # at least one that is covered
    mine = np.fromfile(path, dtype=np.uint8).reshape(sectors, 512)
    mine[stale] = np.fromfile(other, dtype=np.uint8).reshape(sectors, 512)[stale]
    mine.tofile(path)


async def expect_gone(store: ucm.Store, ids: Array, gone: Array) -> None:
    """Each corrupt block is in quarantine, a miss, and can be stored again."""
    assert len(quarantined(home(store))) == int(gone.sum())
    assert (await store.lookup(ids)).tolist() == (~gone).tolist()
    bad = np.ascontiguousarray(ids[gone])
    await check_blocks(store, bad, allowed=(Status.MISS,))
    assert (await store.dump(ids, None, content(ids))).ok.all()
    assert (await store.lookup(ids)).all()
    await check_blocks(store, ids)
    await quiet(store)


async def test_found_by_two_loads_at_once(stored: ucm.Store) -> None:
    """Both say so; the file is set aside once, and the next dump is not taken for the damaged one."""
    flip(path_of(home(stored), IDS[3]), LAYOUT.header_bytes)
    outs = [poisoned(1) for _ in range(6)]
    tasks = [stored.load(IDS[3:4], None, out) for out in outs]
    found = {Status(int((await task).status[0])) for task in tasks}
    assert Status.CORRUPT in found and found <= {Status.CORRUPT, Status.MISS}
    await expect_miss_and_new_dump(stored, (IDS[3] == IDS).all(axis=1))


async def test_quarantine_that_fails_says_so(open_store: Opener) -> None:
    """It stays CORRUPT then, load after load; never OK."""
    store = await open_store()
    assert (await store.dump(IDS, None, content(IDS))).ok.all()
    flip(path_of(home(store), IDS[3]), LAYOUT.header_bytes)
    shutil.rmtree(home(store) / "quarantine")
    (home(store) / "quarantine").write_text("in the way")
    for _ in range(2):
        result = await store.load(IDS[3:4], None, poisoned(1))
        assert result.status.tolist() == [Status.CORRUPT]
        assert "could not be set aside" in result.failures[0].reason
