"""kill -9 at random moments: of one worker of four, and of all at once.

A few rounds by default; ``UCM_ASYNC_CACHE_FAULT_ROUNDS=500`` for more.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from tests.faults.support import Array, check_blocks, content
from ucm_async.stages.cache import CacheStage

from .conftest import Starter
from .hosts import STALL_S_MAX, Freezes, Host
from .stages import stage_of
from .support import SEED, SLOTS, cache_keys, inode, inspect, rounds
from .workload import KEYS

ROUNDS = rounds(20)
WORKERS = 4


@pytest.mark.timeout(60 + 3 * ROUNDS)
def test_one_of_four(start: Starter, in_memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others see no wrong byte and hardly wait; what the dead one held is taken back."""
    generator = np.random.default_rng([9, SEED])
    keys = cache_keys(in_memory)
    host = Host(start, "Cache|Posix", keys, WORKERS)
    for child in host.workers:
        child.expect("ready")
    with inspect(keys["unique_id"]) as table, Freezes() as freezes:
        for _ in range(ROUNDS):
            time.sleep(float(generator.uniform(0.005, 0.08)))
            at = int(generator.integers(WORKERS))
            victim, host.workers[at] = host.workers[at], host.begin()
            victim.kill()
            if generator.random() < 0.7:  # else the next one may be killed while it joins
                host.workers[at].expect("ready")
            for child in [*host.workers, victim]:
                host.listen(child)
        stall, name = host.come_to_rest(freezes)
        newcomer = host.newcomer()
        assert not table.dead()
        table.check_at_rest()
        states = table.states()
        host.leave()
        newcomer.leave()
        assert table.pids() == set()
    assert not inode(keys["unique_id"]), "the last one out leaves nothing behind"
    there = host.survey()
    with capsys.disabled():
        print(f"\nkill -9 of one in four, {ROUNDS} rounds: longest stall {stall:.3f} s ({name}), {dict(states)}, ")
        print(f"{len(host.stored)} keys promised, {there} there, {dict(host.counts)}")
    assert stall < STALL_S_MAX, name
    assert host.counts["rows"] > ROUNDS


@pytest.mark.timeout(60 + 3 * ROUNDS)
def test_the_whole_host(start: Starter, in_memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who comes next adopts the segment: what was whole is valid, and nothing is lost but what was on its way."""
    generator = np.random.default_rng([5, SEED])
    keys = cache_keys(in_memory)
    counts: Counter[str] = Counter()
    host = Host(start, "Cache|Posix", keys, 0)
    for _ in range(max(ROUNDS // 4, 1)):
        host.workers = [host.begin() for _ in range(WORKERS)]
        for child in host.workers:
            child.expect("ready")
        time.sleep(float(generator.uniform(0.02, 0.2)))
        with inspect(keys["unique_id"]) as table:
            kill_at_once(host)
            valid, owed = table.ids_in("ready"), table.ids_in("ready", dirty=True)
            counts.update({"valid": len(valid), "owed": len(owed), "in use": len(table.in_use())})
            before = inode(keys["unique_id"])
            asyncio.run(adopt(keys, valid))
            assert not inode(keys["unique_id"]), "the last one out leaves nothing behind"
            assert before
            table.check_at_rest()
        host.survey()
    with capsys.disabled():
        print(f"\nkill -9 of all, {max(ROUNDS // 4, 1)} rounds: {dict(counts)}, {len(host.stored)} keys promised")
    assert counts["valid"] > ROUNDS and counts["in use"] > ROUNDS / 4  # they died in the middle of things


def kill_at_once(host: Host) -> None:
    """Stop all first, so that none can take back what another one held."""
    for child in host.workers:
        child.stop()
    for child in host.workers:
        host.listen(child)
        child.kill()
        host.listen(child)


async def adopt(keys: dict[str, Any], valid: Array) -> None:
    """With nothing below, what is OK comes from the segment."""
    async with ucm.open_store("Cache|Fake", **keys) as store:
        assert (await store.lookup(valid)).all()
        await check_blocks(store, valid)
        everything = ucm.block_ids(range(KEYS))
        assert (await store.lookup(everything)).sum() == len(valid), "what the dead owed is there, and will be nowhere"
        buffer = stage_of(store, CacheStage).statistics()["buffer"]
        assert (buffer["processes"], buffer["used"]) == (1, len(valid)), buffer
        # No slot is lost: the whole cache can be filled anew.
        more = ucm.block_ids(range(1000, 1000 + SLOTS))
        assert (await store.dump(more, None, content(more))).ok.all()
        assert (await store.lookup(more)).all()
