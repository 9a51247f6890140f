"""What the laboratory has found in the store, each in the shortest form."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status
from ucm_async.engines.system import use_system
from ucm_async.testing.simulation.disk import SimulatedDisk
from ucm_async.testing.simulation.faults import FaultRates, Faults
from ucm_async.testing.simulation.process import SimulatedProcess

IDS = ucm.block_ids(range(4))
DATA = np.random.default_rng(0).integers(0, 256, (4, 4096), dtype=np.uint8)
SEEDS = 20


class Machine:
    """A disk, and stores on it."""

    def __init__(self, seed: int = 0) -> None:
        self.disk = SimulatedDisk(Faults(random.Random(seed)))
        self.disk.mkdir(self.disk.root, "/kv")
        self.disk.sync(self.disk.open(self.disk.root, "/", os.O_RDONLY))

    async def open(self, pipeline: str = "Posix", **keys: Any) -> ucm.Store:
        self.process = SimulatedProcess(self.disk)
        given = {"block_size": 4096, "shard_size": 1024, "staging_buffer_gb": 2**-14, "known_blocks_max": 64}
        given |= {"posix_capacity_gb": 2**-11} if pipeline == "Slab" else {}  # few slots
        with use_system(self.process):
            return await ucm.open_store(pipeline, storage_backends=["/kv"], **(given | keys))

    async def after_a_power_cut(self, store: ucm.Store, pipeline: str = "Posix") -> ucm.Store:
        self.process.kill()
        self.disk.cut_power()
        await store.aclose()
        return await self.open(pipeline)


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield Machine()


async def test_the_first_synced_block_survives_a_power_cut() -> None:
    """The name of the namespace's directory was never synced, so all that was below went with it."""
    for seed in range(SEEDS):
        machine = Machine(seed)
        store = await machine.open()
        assert (await store.dump(IDS, None, DATA, durability="synced")).ok.all()
        store = await machine.after_a_power_cut(store)
        assert (await store.lookup(IDS)).all()
        back = np.zeros_like(DATA)
        assert (await store.load(IDS, None, back)).ok.all()
        assert (back == DATA).all()
        await store.aclose()


async def test_a_synced_dump_of_a_block_that_is_deleted_meanwhile(machine: Machine) -> None:
    """It relied on the copy that was there, and said IO_ERROR when that was gone."""
    store = await machine.open()
    for late in range(60):
        assert (await store.dump(IDS, None, DATA)).ok.all()
        task = store.dump(IDS, None, DATA, durability="synced")
        await asyncio.sleep(late * 2e-6)
        await store.delete(IDS)
        assert (await task).ok.all()
    await store.aclose()


async def test_a_task_that_gives_up_cancels_no_other(machine: Machine) -> None:
    """Rows of one block share a chain; a gate that closed between two copies took the second one's row with it."""
    large = 256 << 10  # not on the short way, so the two loads of one turn become one batch
    data = np.random.default_rng(1).integers(0, 256, (1, large), dtype=np.uint8)
    store = await machine.open(block_size=large, shard_size=large // 8, queue_number=1)
    await store.dump(IDS[:1], None, data)
    for late in range(150):
        back = np.zeros((2, large), dtype=np.uint8)
        gives_up = store.load(IDS[:1], None, back[:1], timeout=late * 4e-6)
        waits = store.load(IDS[:1], None, back[1:])
        assert (await waits).status.tolist() == [Status.OK]
        assert (back[1] == data).all()
        await gives_up
    await store.aclose()


async def test_a_sync_that_failed_is_not_asked_again() -> None:
    """The kernel says once that it could not write, then forgets: the next sync is told that all is well."""
    for seed in range(SEEDS):
        machine = Machine(seed)
        store = await machine.open()
        assert (await store.dump(IDS[:1], None, DATA[:1])).ok.all()
        machine.disk.faults.rates = FaultRates(sync_error=1.0)
        failed = await store.dump(IDS[:1], None, DATA[:1], durability="synced")
        assert failed.status.tolist() == [Status.IO_ERROR]
        assert failed.failures[0].errno == errno.EIO
        machine.disk.faults.calm()
        assert (await store.dump(IDS[:1], None, DATA[:1], durability="synced")).ok.all()
        store = await machine.after_a_power_cut(store)
        back = np.zeros((1, 4096), dtype=np.uint8)
        assert (await store.load(IDS[:1], None, back)).ok.all()
        await store.aclose()


@pytest.mark.parametrize("way", ["same", "closed", "killed", "headers"])
async def test_slots_that_a_failed_sync_may_have_lost(way: str) -> None:
    """They are written anew for a dump that is to be synced, also by a store that was opened since."""
    anew = 0
    for seed in range(SEEDS):
        machine = Machine(seed)
        store = await machine.open("Slab")
        assert (await store.dump(IDS[:3], None, DATA[:3])).ok.all()
        machine.disk.faults.rates = FaultRates(sync_error=1.0)
        failed = await store.dump(IDS[3:], None, DATA[3:], durability="synced")
        assert failed.status.tolist() == [Status.IO_ERROR]
        machine.disk.faults.calm()
        if way != "same":
            if way == "killed":
                machine.process.kill()
            await store.aclose()
            if way == "headers":
                machine.process.unlink(one_below(machine, "checkpoint"))
            store = await machine.open("Slab")
            (slab,) = store.statistics().pipeline["Slab"]["stage"]["slabs"]
            assert slab["recovered"] == {"closed": "checkpoint", "killed": "memory", "headers": "headers"}[way]
        assert (await store.dump(IDS[:3], None, DATA[:3], durability="synced")).ok.all()
        anew += store.statistics().pipeline["Slab"]["stage"]["dump"]["counts"]["commits"]
        store = await machine.after_a_power_cut(store, "Slab")
        back = np.zeros((3, 4096), dtype=np.uint8)
        assert (await store.load(IDS[:3], None, back)).ok.all()
        assert (back == DATA[:3]).all()
        await store.aclose()
    assert anew >= 3 * SEEDS


async def test_a_sync_that_failed_for_another_batch() -> None:
    """The error is told to one of two dumps that wrote to a segment; what the other one wrote may be lost as well."""
    both = 0
    for seed in range(3 * SEEDS):
        machine = Machine(seed)
        store = await machine.open("Slab", queue_number=2)
        assert (await store.dump(IDS[3:], None, DATA[3:])).ok.all()
        machine.disk.faults.rates = FaultRates(sync_error=0.5)
        tasks = [store.dump(IDS[i : i + 1], None, DATA[i : i + 1], durability="synced") for i in range(2)]
        synced = [bool((await task).ok[0]) for task in tasks]
        both += not any(synced)
        machine.disk.faults.calm()
        store = await machine.after_a_power_cut(store, "Slab")
        for i in np.flatnonzero(synced).tolist():
            back = np.zeros((1, 4096), dtype=np.uint8)
            assert (await store.load(IDS[i : i + 1], None, back)).ok.all(), f"seed {seed}, {synced}"
        await store.aclose()
    assert both > 0


def one_below(machine: Machine, name: str) -> Path:
    """The path of a file in the directory of slots."""
    (root,) = (name for name in machine.process.names("/kv") if not name.endswith(".json"))
    return Path("/kv") / root / "slab" / name
