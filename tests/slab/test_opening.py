"""How a store finds out what is stored: from memory, a checkpoint, headers, and what crashes leave in each."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status
from ucm_async.errors import ConfigError

from .support import (
    BLOCK,
    GONE,
    PAGE,
    SLOT,
    check,
    content,
    data_files,
    disk_usage,
    dump,
    find_block,
    home,
    keys,
    slot_counts,
    slots_below,
    stage_statistics,
)


def recovered(store: ucm.Store) -> str:
    (slab,) = stage_statistics(store)["slabs"]
    return str(slab["recovered"])


async def filled(directory: Path, count: int = 60, **changes: Any) -> None:
    """A store that was opened, filled, and closed."""
    async with ucm.open_store("Slab", **keys(directory, **changes)) as store:
        assert recovered(store) == "nothing"
        assert (await dump(store, 0, count)).all()


def remove_checkpoint(directory: Path) -> None:
    (home(directory) / "checkpoint").unlink()


async def test_from_the_checkpoint(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert recovered(store) == "checkpoint"
        assert not await asyncio.to_thread((home(tmp_path) / "checkpoint").exists), "it is untrue from now on"
        assert slot_counts(store)["stored"] == 60
        assert (await store.lookup(ucm.block_ids(range(70)))).tolist() == [True] * 60 + [False] * 10
        assert (await check(store, 0, 60)).all()


async def test_from_headers(tmp_path: Path) -> None:
    await filled(tmp_path)
    await asyncio.to_thread(remove_checkpoint, tmp_path)
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert recovered(store) == "headers"
        assert slot_counts(store)["stored"] == 60
        assert (await check(store, 0, 60)).all()
        about = stage_statistics(store)["space"]
        assert about["used_bytes"] == await asyncio.to_thread(disk_usage, tmp_path)
        assert (await dump(store, 100, 60)).all()
        assert (await check(store, 0, 60)).all()


async def test_with_other_stores_open(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with ucm.open_store("Slab", **keys(tmp_path)) as one:
        assert (await dump(one, 60, 10)).all()
        async with ucm.open_store("Slab", **keys(tmp_path, posix_capacity_gb=1)) as two:
            assert recovered(two) == "memory"
            assert (await check(two, 0, 70)).all()
            assert (await dump(two, 70, 10)).all()
        assert (await check(one, 0, 80)).all()
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert recovered(store) == "checkpoint"
        assert (await check(store, 0, 80)).all()


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign", "old"])
async def test_a_checkpoint_that_cannot_be_trusted(tmp_path: Path, damage: str) -> None:
    await filled(tmp_path)

    def change() -> None:
        path = home(tmp_path) / "checkpoint"
        body = path.read_bytes()
        if damage == "flipped":
            body = body[:200] + bytes([body[200] ^ 4]) + body[201:]
        elif damage == "cut":
            body = body[:-1]
        elif damage == "empty":
            body = b""
        elif damage == "foreign":
            body = bytes(len(body))
        else:  # of before a segment came
            page = next(home(tmp_path).glob("*.slab")).read_bytes()
            (home(tmp_path) / "000030.slab").write_bytes(page)
        path.write_bytes(body)

    await asyncio.to_thread(change)
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert recovered(store) == "headers"
        assert (await check(store, 0, 60)).all()


async def test_every_header_that_is_damaged_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await filled(tmp_path)
    await asyncio.to_thread(remove_checkpoint, tmp_path)

    def change() -> None:
        slots = [slot for slot in slots_below(tmp_path) if slot.read()[:8] != bytes(8)]
        slots[3].write(b"\xff", 40)  # the namespace
        slots[7].write(b"garbage!")
        slots[9].write(b"\1", 100)  # an entry
        slots[11].write(GONE)

    await asyncio.to_thread(change)
    with pytest.raises(ConfigError, match=r"3 slots hold no block and are not empty \(slot 3: .*recover is 'strict'"):
        await ucm.open_store("Slab", **keys(tmp_path, recover="strict"))
    with caplog.at_level(logging.WARNING, "ucm_async.slab"):
        async with ucm.open_store("Slab", **keys(tmp_path)) as store:
            assert slot_counts(store)["stored"] == 56
            assert stage_statistics(store)["slabs"][0]["dropped_headers"] == 3
            assert (await check(store, 0, 60)).sum() == 56
    assert "3 slots hold no block" in caplog.text


async def test_data_that_was_torn_is_never_returned(tmp_path: Path) -> None:
    """The header is on the medium, some of the data is not: as a power cut leaves it."""
    await filled(tmp_path)
    await asyncio.to_thread(remove_checkpoint, tmp_path)

    def tear() -> None:
        for number in (5, 6, 50):
            slot = find_block(tmp_path, ucm.block_ids([number])[0].tobytes())
            assert slot is not None
            slot.write(bytes(512), PAGE + 512 * (number % 30))

    await asyncio.to_thread(tear)
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        came = await check(store, 0, 60, (Status.CORRUPT,))
        assert np.flatnonzero(~came).tolist() == [5, 6, 50]
        assert (await check(store, 0, 60)).tolist() == came.tolist()
        assert (await dump(store, 0, 60)).all()
        assert (await check(store, 0, 60)).all()


@pytest.mark.parametrize("damage", ["page", "cut", "nothing"])
async def test_segments_in_pieces(tmp_path: Path, damage: str) -> None:
    await filled(tmp_path)

    def change() -> None:
        remove_checkpoint(tmp_path)
        path = sorted(home(tmp_path).glob("*.slab"))[0]
        if damage == "page":
            with path.open("r+b") as file:
                file.write(b"nonsense")
        else:
            os.truncate(path, PAGE + 10 * SLOT + 100 if damage == "cut" else 0)

    await asyncio.to_thread(change)
    with pytest.raises(ConfigError, match=r"segment 0: .*strict"):
        await ucm.open_store("Slab", **keys(tmp_path, recover="strict"))
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        per = (await asyncio.to_thread(data_files, tmp_path))[-1].stat().st_size // SLOT
        gone = {"page": 0, "cut": per - 10, "nothing": per}[damage]
        assert slot_counts(store)["stored"] == 60 - gone
        assert (await check(store, 0, 60)).sum() == 60 - gone
        assert (await dump(store, 0, 60)).all()
        assert (await check(store, 0, 60)).all()


async def test_what_was_deleted_does_not_come_back(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        await store.delete(ucm.block_ids(range(10, 30)))
        ids = ucm.block_ids([99])
        rows = content(ids).reshape(1, 4, -1)
        assert (await store.dump(ids, [2], rows[:, 2].copy())).ok.all()  # into one of the free slots
    await asyncio.to_thread(remove_checkpoint, tmp_path)
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert slot_counts(store)["stored"] == 40
        assert (await store.lookup(ucm.block_ids(range(10, 30)))).sum() == 0


async def test_half_a_block_does_not_bring_back_what_was_there_before(tmp_path: Path) -> None:
    """A slot is taken from a cold block, and the store ends before the new one is whole."""
    async with ucm.open_store("Slab", **keys(tmp_path, capacity=32)) as store:
        while not stage_statistics(store)["evicted"]:
            await dump(store, 0, 100)
        stored = slot_counts(store)["stored"]
        ids = ucm.block_ids(range(1000, 1008))
        rows = content(ids).reshape(8, 4, -1)
        assert (await store.dump(ids, [1] * 8, rows[:, 1].copy())).ok.all()
        before = slot_counts(store)
        assert before["stored"] == stored - 8
    await asyncio.to_thread(remove_checkpoint, tmp_path)
    async with ucm.open_store("Slab", **keys(tmp_path, capacity=32)) as store:
        assert slot_counts(store)["stored"] == stored - 8
        assert stage_statistics(store)["slabs"][0]["dropped_headers"] == 0


async def test_progress_is_told(tmp_path: Path) -> None:
    await filled(tmp_path)
    await asyncio.to_thread(remove_checkpoint, tmp_path)
    told: list[tuple[str, int, int]] = []
    async with ucm.open_store("Slab", on_progress=lambda *some: told.append(some), **keys(tmp_path)):
        assert {what for what, _, _ in told} == {"slots read"}
        assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
        assert told[-1][1] == told[-1][2] >= 60


async def test_a_directory_has_one_layout(tmp_path: Path) -> None:
    await filled(tmp_path / "slab")
    with pytest.raises(ConfigError, match="layout 'slab'"):
        await ucm.open_store("Posix", **keys(tmp_path / "slab"))
    async with ucm.open_store("Posix", **keys(tmp_path / "posix")):
        pass
    with pytest.raises(ConfigError, match="layout 'posix'"):
        await ucm.open_store("Slab", **keys(tmp_path / "posix"))


async def test_two_namespaces_in_one_directory(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with ucm.open_store("Slab", **keys(tmp_path, namespace="another")) as store:
        assert (await store.lookup(ucm.block_ids(range(60)))).sum() == 0
        out = np.zeros((1, BLOCK), dtype=np.uint8)
        assert (await store.load(ucm.block_ids([1]), None, out)).status.tolist() == [Status.MISS]
