"""System calls that fail: the right status for the right rows, nothing leaked, and the next dump of the block works.

What is told here is what the failing calls themselves do, so nobody collects; `tests/space` has that.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

import ucm_async as ucm
from ucm_async import Status
from ucm_async.engines import requests as rq
from ucm_async.space import SpaceManager
from ucm_async.testing.faults import Fault, Plan, seeded

from .conftest import Opener
from .support import (
    ENGINES,
    READS,
    SHARD,
    SHARDS,
    WRITES,
    Array,
    Faults,
    assert_rows,
    by_shard,
    check_blocks,
    content,
    file_fails,
    files_below,
    home,
    inject,
    page_aligned,
    poisoned,
    quarantined,
    quiet,
    stage_of,
    statuses,
    strike,
    temporary,
    until,
)

IDS = ucm.block_ids(range(12))


@pytest.fixture(autouse=True)
def nobody_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpaceManager, "no_space", lambda self, place: None)


@pytest_asyncio.fixture(params=ENGINES)
async def on_engines(open_store: Opener, request: pytest.FixtureRequest) -> ucm.Store:
    store: ucm.Store = await open_store(io_engine=request.param)
    return store


async def stored(store: ucm.Store, ids: Array = IDS) -> Faults:
    """Store `ids`, then put the injectors in."""
    assert (await store.dump(ids, None, content(ids))).ok.all()
    return inject(store)


def everywhere(faults: Faults, plan: Plan) -> None:
    """A stage may do a file operation in its engine or in its thread pool: that is its business."""
    faults.load.plan = faults.load_files.plan = plan
    faults.dump.plan = faults.dump_files.plan = plan


# ---- loads


async def test_eio_on_one_read(on_engines: ucm.Store) -> None:
    faults = await stored(on_engines)
    faults.load.plan = file_fails(errno.EIO, *READS, skip=4, times=1)
    out = poisoned(len(IDS))
    result = await on_engines.load(IDS, None, out)
    assert faults.injected() == {"error": 1}
    assert_rows(result, out, content(IDS))
    (row,) = result.failures
    error = result.failures[row]
    assert statuses(result)[row] == Status.IO_ERROR
    assert isinstance(error, ucm.BackendIOError) and error.errno == errno.EIO
    assert quarantined(home(on_engines)) == []  # the disk failed, the file may be fine
    await check_blocks(on_engines, IDS)
    await quiet(on_engines)


async def test_eio_on_every_read(on_engines: ucm.Store) -> None:
    faults = await stored(on_engines)
    faults.load.plan = file_fails(errno.EIO, *READS)
    assert await check_blocks(on_engines, IDS, allowed=(Status.IO_ERROR,)) == {Status.IO_ERROR: len(IDS)}
    assert faults.injected()["error"] >= len(IDS)
    faults.stop()
    await check_blocks(on_engines, IDS)
    await quiet(on_engines)


async def test_eio_on_one_shard_of_a_block(open_store: Opener) -> None:
    """A bad place on the disk costs the shards that lie there."""
    store = await open_store(block_size=1 << 20, shard_size=64 << 10)
    ids, bad_place = IDS[:3], 4096 + (15 << 16)
    assert (await store.dump(ids, None, content(ids, 1 << 20))).ok.all()
    faults = inject(store)
    eio = file_fails(errno.EIO, *READS)
    faults.load.plan = lambda number, request: (
        eio(number, request) if request["offset"] + request["length"] > bad_place else None
    )
    rows, shards = np.repeat(ids, 3, axis=0), [0, 7, 15] * 3
    out = poisoned(9, 64 << 10)
    result = await store.load(rows, shards, out)
    assert faults.injected()["error"] >= 3
    assert_rows(result, out, content(ids, 1 << 20).reshape(3, 16, -1)[:, [0, 7, 15]].reshape(9, -1))
    assert statuses(result) == [Status.OK, Status.OK, Status.IO_ERROR] * 3
    await quiet(store)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ENFILE])
async def test_an_open_that_fails(store: ucm.Store, number: int) -> None:
    faults = await stored(store)
    everywhere(faults, file_fails(number, rq.OP_OPEN, skip=4, times=1))
    out = poisoned(len(IDS))
    result = await store.load(IDS, None, out)
    assert faults.injected() == {"error": 1}
    assert_rows(result, out, content(IDS))
    (row,) = result.failures
    assert statuses(result)[row] == Status.IO_ERROR
    assert isinstance(result.failures[row], ucm.BackendIOError)
    await check_blocks(store, IDS)


async def test_short_once_is_read_again(on_engines: ucm.Store) -> None:
    faults = await stored(on_engines)
    faults.load.plan = strike(Fault("short"), *READS, skip=4, times=1)
    await check_blocks(on_engines, IDS)
    assert faults.injected() == {"short": 1}
    assert quarantined(home(on_engines)) == []
    await quiet(on_engines)


async def test_short_once_while_another_read_is_late(on_engines: ucm.Store) -> None:
    """What is in is handed on before a straggler arrives: that must not cost a short read its second chance."""
    faults = await stored(on_engines)
    short = strike(Fault("short"), *READS, skip=4, times=1)
    late = strike(Fault("hang"), *READS, skip=9, times=1)
    faults.load.plan = lambda number, request: late(number, request) or short(number, request)
    result = await on_engines.load(IDS, None, poisoned(len(IDS)), timeout=0.2)
    assert faults.injected() == {"short": 1, "hang": 1}
    assert Status.CORRUPT not in statuses(result)
    assert statuses(result).count(Status.OK) >= len(IDS) - 2
    faults.stop()
    assert quarantined(home(on_engines)) == []
    await check_blocks(on_engines, IDS)
    await quiet(on_engines)


async def test_short_always_is_corrupt(on_engines: ucm.Store) -> None:
    """The engine says that the file ends here, and says it again."""
    faults = await stored(on_engines)
    faults.load.plan = strike(Fault("short"), *READS)
    result = await on_engines.load(IDS[:1], None, poisoned(1))
    assert faults.injected()["short"] >= 2
    assert statuses(result) == [Status.CORRUPT]
    assert "truncated" in result.failures[0].reason
    faults.stop()
    assert not (await on_engines.lookup(IDS[:1])).any()
    assert (await on_engines.dump(IDS[:1], None, content(IDS[:1]))).ok.all()
    await check_blocks(on_engines, IDS)
    await quiet(on_engines)


@pytest.mark.parametrize("fault", [Fault("error", errno.EIO), Fault("short")])
async def test_registered_memory(on_engines: ucm.Store, fault: Fault) -> None:
    """The same where the kernel reads into the caller's memory itself."""
    faults = await stored(on_engines)
    faults.load.plan = strike(fault, *READS, skip=4, times=1)
    out = page_aligned(len(IDS))
    with on_engines.register(out):
        result = await on_engines.load(IDS, None, out)
    assert result.settled
    assert_rows(result, out, content(IDS))
    assert faults.injected() == {fault.kind: 1}
    assert len(result.failures) == (1 if fault.kind == "error" else 0)
    await quiet(on_engines)


# ---- dumps


@pytest.mark.parametrize(
    ("number", "status", "error"),
    [
        (errno.EIO, Status.IO_ERROR, ucm.BackendIOError),
        (errno.EROFS, Status.IO_ERROR, ucm.BackendIOError),
        (errno.ENOSPC, Status.NO_SPACE, ucm.NoSpaceError),
        (errno.EDQUOT, Status.NO_SPACE, ucm.NoSpaceError),
    ],
)
@pytest.mark.parametrize("codes", [WRITES, (rq.OP_OPEN,)], ids=["write", "create"])
async def test_a_dump_that_fails(
    store: ucm.Store, codes: tuple[int, ...], number: int, status: Status, error: type[ucm.StoreError]
) -> None:
    faults = inject(store)
    everywhere(faults, file_fails(number, *codes, skip=4, times=1))
    result = await store.dump(IDS, None, content(IDS))
    assert faults.injected() == {"error": 1}
    (row,) = result.failures
    assert statuses(result)[row] == status
    assert isinstance(result.failures[row], error)
    await expect_all_but(store, row)


async def expect_all_but(store: ucm.Store, row: int) -> None:
    """One block is missing and left nothing; dumped again it is there."""
    await quiet(store)
    assert (~await store.lookup(IDS)).nonzero()[0].tolist() == [row]
    assert len(files_below(home(store))) == len(IDS) - 1
    bad = np.ascontiguousarray(IDS[row : row + 1])
    await check_blocks(store, bad, allowed=(Status.MISS,))
    assert (await store.dump(bad, None, content(bad))).ok.all()
    assert (await store.lookup(IDS)).all()
    await check_blocks(store, IDS)
    await quiet(store)


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_write_that_fails_on_each_engine(open_store: Opener, engine: str) -> None:
    store = await open_store(io_engine=engine)
    faults = inject(store)
    faults.dump.plan = file_fails(errno.ENOSPC, *WRITES, skip=4, times=1)
    result = await store.dump(IDS, None, content(IDS))
    assert faults.injected() == {"error": 1}
    (row,) = result.failures
    assert statuses(result)[row] == Status.NO_SPACE
    await expect_all_but(store, row)


async def test_a_write_that_comes_back_short(store: ucm.Store) -> None:
    """A write that stops in the middle without an error met the end of the space."""
    faults = inject(store)
    faults.dump.plan = strike(Fault("short"), *WRITES, skip=4, times=1)
    result = await store.dump(IDS, None, content(IDS))
    assert faults.injected() == {"short": 1}
    (row,) = result.failures
    assert statuses(result)[row] == Status.NO_SPACE
    await expect_all_but(store, row)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_a_rename_that_fails(store: ucm.Store, number: int) -> None:
    faults = inject(store)
    everywhere(faults, file_fails(number, rq.OP_RENAME, skip=4, times=1))
    result = await store.dump(IDS, None, content(IDS))
    assert faults.injected() == {"error": 1}
    (row,) = result.failures
    assert statuses(result)[row] == (Status.NO_SPACE if number == errno.ENOSPC else Status.IO_ERROR)
    await expect_all_but(store, row)


async def test_a_directory_that_cannot_be_made(store: ucm.Store) -> None:
    """The first block of a directory makes it; a full disk may refuse that, too."""
    faults = inject(store)
    everywhere(faults, file_fails(errno.ENOSPC, rq.OP_MKDIR, skip=4, times=1))
    result = await store.dump(IDS, None, content(IDS))
    assert faults.injected() == {"error": 1}
    (row,) = result.failures
    assert statuses(result)[row] == Status.NO_SPACE
    await expect_all_but(store, row)


async def test_an_unlink_that_fails(open_store: Opener) -> None:
    """What could not be removed is in nobody's way, and goes when the store is closed."""
    store = await open_store()
    faults = inject(store)
    faults.dump.plan = file_fails(errno.ENOSPC, *WRITES, skip=4, times=1)
    faults.dump_files.plan = file_fails(errno.EIO, rq.OP_UNLINK)
    result = await store.dump(IDS, None, content(IDS))
    assert faults.dump_files.statistics()["injected"] == {"error": 1}
    assert len(result.failures) == 1
    root = home(store)
    assert len(temporary(root)) == 1
    assert (await store.dump(IDS, None, content(IDS))).ok.all()
    await check_blocks(store, IDS)
    faults.dump.plan = file_fails(errno.ENOSPC, *WRITES, times=1)
    late = ucm.block_ids([99])
    assert not (await store.dump(late, None, content(late))).ok.any()
    await store.aclose()
    assert temporary(root) == []


async def test_fdatasync_that_fails(store: ucm.Store) -> None:
    """What may not be on the medium gets no name: a later "synced" dump would find it and trust it."""
    faults = inject(store)
    everywhere(faults, file_fails(errno.EIO, rq.OP_FDATASYNC, skip=4, times=1))
    result = await store.dump(IDS, None, content(IDS), durability="synced")
    assert faults.injected() == {"error": 1}
    (row,) = result.failures
    assert statuses(result)[row] == Status.IO_ERROR
    await expect_all_but(store, row)


async def test_fsync_of_the_directory_that_fails(store: ucm.Store) -> None:
    """The block has its name, but nobody may promise that a power cut leaves it."""
    faults = inject(store)
    everywhere(faults, file_fails(errno.EIO, rq.OP_FSYNC, times=1))
    result = await store.dump(IDS[:1], None, content(IDS[:1]), durability="synced")
    assert faults.injected() == {"error": 1}
    assert statuses(result) == [Status.IO_ERROR]
    faults.stop()
    assert (await store.dump(IDS[:1], None, content(IDS[:1]), durability="synced")).ok.all()
    await check_blocks(store, IDS[:1])
    await quiet(store)


async def test_synced_means_synced_for_what_is_stored_already(store: ucm.Store) -> None:
    """ "stored" may live in the page cache only; asked for "synced", the store must see to it, and say if it cannot."""
    faults = await stored(store)
    everywhere(faults, file_fails(errno.EIO, rq.OP_FDATASYNC))
    result = await store.dump(IDS, None, content(IDS), durability="synced")
    assert faults.injected()["error"] >= 1
    assert set(statuses(result)) == {Status.IO_ERROR}
    faults.stop()
    assert (await store.dump(IDS, None, content(IDS), durability="synced")).ok.all()


# ---- shards of one block, from several tasks


@pytest.mark.parametrize("codes", [WRITES, (rq.OP_OPEN,), (rq.OP_RENAME,)], ids=["write", "create", "rename"])
async def test_the_last_shard_fails_and_is_dumped_again(store: ucm.Store, codes: tuple[int, ...]) -> None:
    """The shards that were OK before are in: the block is there as soon as the last one is."""
    rows, shards, data = by_shard(IDS)
    before, last = shards != 1, shards == 1
    assert (await store.dump(rows[before], shards[before], data[before])).ok.all()
    faults = inject(store)
    everywhere(faults, file_fails(errno.ENOSPC, *codes))
    result = await store.dump(rows[last], shards[last], data[last])
    assert faults.injected()["error"] >= len(IDS)
    assert set(statuses(result)) == {Status.NO_SPACE}
    assert not (await store.lookup(IDS)).any()
    faults.stop()
    assert (await store.dump(rows[last], shards[last], data[last])).ok.all()
    assert (await store.lookup(IDS)).all()
    await check_blocks(store, IDS)
    await quiet(store)


async def test_a_shard_fails_while_another_of_its_block_is_written(store: ucm.Store) -> None:
    """They share a file: the one that fails must not take it away from the other."""
    faults = inject(store)
    rows, shards, data = by_shard(IDS[:1])
    plans = iter([Fault("delay", delay_s=0.2), Fault("error", errno.ENOSPC)])
    faults.dump.plan = lambda _, request: next(plans, None) if int(request["opcode"]) & rq.OP_MASK in WRITES else None
    slow = store.dump(rows[:1], shards[:1], data[:1])
    await until(lambda: files_below(home(store)))  # its shard is in the file, and it does not know yet
    failed = await store.dump(rows[1:2], shards[1:2], data[1:2])
    assert faults.injected() == {"delay": 1, "error": 1}
    assert statuses(failed) == [Status.NO_SPACE]
    assert not store.check(slow)
    assert (await slow).ok.all()
    assert (await store.dump(rows[1:], shards[1:], data[1:])).ok.all()
    assert (await store.lookup(IDS[:1])).all()
    await check_blocks(store, IDS[:1])


async def test_two_shards_of_a_block_fail_together(store: ucm.Store) -> None:
    """Each still sees the other at it; the last to give up takes their file away."""
    faults = inject(store)
    rows, shards, data = by_shard(IDS[:3])
    one, other = [0, SHARDS], [1, 2 * SHARDS]  # a shard of the first block each, and one of a block of their own
    faults.dump.plan = strike(Fault("error", errno.EIO), *WRITES)
    faults.dump_files.plan = strike(Fault("delay", delay_s=0.1), rq.OP_UNLINK)
    first = store.dump(rows[one], shards[one], data[one])
    second = store.dump(rows[other], shards[other], data[other], durability="synced")  # a batch of its own
    assert not (await first).ok.any()
    assert not (await second).ok.any()
    assert faults.injected()["error"] == 4
    await quiet(store)
    faults.stop()
    await finish(store, IDS[:3])


async def test_a_shard_that_comes_too_late(store: ucm.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others store its block while it is about to begin: what it writes is of no use, and does not stay."""
    dumper = stage_of(store)._dumper
    look, go = dumper.find_stored, asyncio.Event()
    looked = False

    async def late(ids: Array) -> Any:
        nonlocal looked
        found = await look(ids)
        if not looked:
            looked = True
            await go.wait()
        return found

    monkeypatch.setattr(dumper, "find_stored", late)
    rows, shards, data = by_shard(IDS[:1])
    shard = store.dump(rows[:1], shards[:1], data[:1])
    await until(lambda: looked)
    assert (await store.dump(IDS[:1], None, content(IDS[:1]))).ok.all()
    go.set()
    assert (await shard).ok.all()
    await quiet(store)
    await check_blocks(store, IDS[:1])


@pytest.mark.parametrize("seed", range(6))
async def test_random_errors_everywhere(open_store: Opener, seed: int) -> None:
    """Every system call of every kind fails now and then; what the store says is true all along."""
    store = await open_store(io_engine=ENGINES[seed % len(ENGINES)])
    faults = inject(store)
    rates = {Fault("error", errno.EIO): 0.02, Fault("error", errno.ENOSPC): 0.02, Fault("error", errno.EINTR): 0.01}
    faults.load.plan, faults.dump.plan = system_calls(seeded(seed, rates)), system_calls(seeded(seed + 100, rates))
    faults.load_files.plan = system_calls(seeded(seed + 200, rates))
    faults.dump_files.plan = system_calls(seeded(seed + 300, rates))
    generator = np.random.default_rng(seed)
    ids = ucm.block_ids(range(60))
    allowed = (Status.OK, Status.MISS, Status.IO_ERROR, Status.NO_SPACE)
    for _ in range(6):
        order = generator.permutation(len(ids) * SHARDS)
        rows, shards, data = by_shard(ids, order)
        half = len(order) // 2
        parts = (slice(half), slice(half, None))
        dumps = [store.dump(rows[part], shards[part], data[part]) for part in parts]
        loaded = check_blocks(store, ids, allowed)
        for result in (await asyncio.gather(*dumps, loaded))[:2]:
            assert set(statuses(result)) <= set(allowed)
        out = poisoned(len(order), SHARD)
        assert_rows(await store.load(rows, shards, out), out, data)
    assert faults.injected()["error"] > 100
    faults.stop()
    await finish(store, ids)


def system_calls(plan: Plan) -> Plan:
    """Spare copies and checksums, which cannot fail, and what only tidies up: closes and unlinks."""
    spared = (rq.OP_NOP, rq.OP_COPY, rq.OP_CHECKSUM, rq.OP_CLOSE, rq.OP_UNLINK)
    return lambda number, request: None if int(request["opcode"]) & rq.OP_MASK in spared else plan(number, request)


async def finish(store: ucm.Store, ids: Array) -> None:
    """Without faults everything can be stored, is right, and nothing is left."""
    rows, shards, data = by_shard(ids)
    result = await store.dump(rows, shards, data)
    assert result.ok.all(), result.failures
    assert (await store.lookup(ids)).all()
    await check_blocks(store, ids)
    await quiet(store)
    names = [name for name in files_below(home(store)) if not name.startswith("quarantine")]
    assert len(names) == len(ids)


async def test_rows_that_are_read_again_keep_their_places(store: ucm.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order it was noted that they are to be read again."""
    assert (await store.dump(IDS[1:2], None, content(IDS[1:2]))).ok.all()
    loader = stage_of(store)._loader
    really = loader._load_rows

    async def spoilt_at_first(batch: Any, rows: Any, arena: Any, *, apart: bool = False) -> list[int]:
        return await really(batch, rows, arena, apart=True) if apart else rows[::-1].tolist()

    monkeypatch.setattr(loader, "_load_rows", spoilt_at_first)
    out = poisoned(2)
    result = await store.load(IDS[:2], None, out)
    assert statuses(result) == [Status.MISS, Status.OK]
    assert (out[1] == content(IDS[1:2])[0]).all()
