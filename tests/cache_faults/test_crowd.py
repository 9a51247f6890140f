"""A thousand tasks on four slots: all end well, and who waits does not burn the processor."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm
from tests.faults.support import assert_rows, content, poisoned

from .conftest import Opener, Starter
from .roles import at_rest
from .stages import CONTROLLED, Controlled, stage_of
from .support import cache_keys, inspect

SLOTS = 4
TASKS = 1000
KEYS = 48
CONTENT = content(ucm.block_ids(range(KEYS)))
IDLE_S = 0.5
BUSY_SHARE_MAX = 0.4
"""Of one processor, in a process that spins it is 1 or more."""


async def crowd(store: ucm.Store) -> None:
    """Loads of a few blocks each, all at the same time, and some dumps among them."""
    generator = np.random.default_rng(4)
    tasks = []
    for n in range(TASKS):
        some = generator.choice(KEYS, 3, replace=False)
        ids = ucm.block_ids(some.tolist())
        out = CONTENT[some] if n % 8 == 0 else poisoned(3)
        if n % 8 == 0:
            tasks.append((store.dump(ids, None, out, durability=("stored", "cached")[n % 16 == 0]), out, some))
        else:
            tasks.append((store.load(ids, None, out), out, some))
    for task, out, some in tasks:
        result = await task
        assert result.ok.all(), dict(result.failures)
        assert_rows(result, out, CONTENT[some])
    assert not await store.flush()
    assert await at_rest(store) == {}


@pytest.mark.parametrize("share", [True, False])
async def test_over_memory(open_store: Opener, share: bool) -> None:
    await crowd(await open_store(CONTROLLED, **cache_keys(slots=SLOTS, share_buffer_enable=share)))


async def test_over_a_disk(open_store: Opener, tmp_path: Path) -> None:
    store = await open_store("Cache|Posix", **cache_keys(tmp_path, slots=SLOTS))
    assert (await store.dump(ucm.block_ids(range(KEYS)), None, CONTENT)).ok.all()
    await crowd(store)


async def test_who_waits_does_not_spin(open_store: Opener) -> None:
    store = await open_store(CONTROLLED, **cache_keys(slots=SLOTS))
    below = stage_of(store, Controlled)
    below.loads.clear()
    outs = [poisoned(2) for _ in range(TASKS)]
    tasks = [store.load(ucm.block_ids([n % KEYS, (n + 1) % KEYS]), None, out) for n, out in enumerate(outs)]
    await asyncio.sleep(1.0)  # until all have gone as far as they can
    begun, used = time.monotonic(), time.process_time()
    await asyncio.sleep(IDLE_S)
    share = (time.process_time() - used) / (time.monotonic() - begun)
    assert not any(task.done() for task in tasks)
    below.loads.set()
    for n, (task, out) in enumerate(zip(tasks, outs, strict=True)):
        result = await task
        assert result.ok.all(), dict(result.failures)
        assert_rows(result, out, CONTENT[[n % KEYS, (n + 1) % KEYS]])
    assert share < BUSY_SHARE_MAX, f"{share:.2f} of a processor while nothing could be done"


def test_four_processes(start: Starter, tmp_path: Path) -> None:
    keys = cache_keys(tmp_path, slots=SLOTS)
    children = [start("puppet", pipeline="Cache|Posix", keys=keys) for _ in range(4)]
    for child in children:
        child.expect("ready")
    assert children[0].ask("dump", list(range(KEYS))) == ["OK"] * KEYS
    generator = np.random.default_rng(2)
    with inspect(keys["unique_id"]) as table:
        for _ in range(TASKS // 40):
            for child in children:
                for _ in range(10):
                    child.tell("load", (generator.choice(KEYS, 4, replace=False).tolist(), None))
            for child in children:
                for _ in range(10):
                    assert child.expect("load")[0] == ["OK"] * 4
        for child in children:
            assert child.ask("at_rest") == {}
        table.check_at_rest()
    for child in children:
        child.leave()
