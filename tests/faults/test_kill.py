"""kill -9 of a writer at random moments: what is visible is right, and the next store tidies up.

A dozen rounds on each engine by default; ``UCM_ASYNC_KILL_ROUNDS=200`` for more.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm

from .processes import child, expect
from .support import by_shard, check_blocks, content, files_below, home, keys, quarantined, quiet, temporary, writers

ROUNDS = int(os.environ.get("UCM_ASYNC_KILL_ROUNDS", "12"))
ROUND_IDS = 1 << 20
WORK_S = (0.005, 0.080)


@pytest.mark.timeout(60 + 4 * ROUNDS)
@pytest.mark.parametrize("engine", ["psync", "auto"])
def test_kill_9(tmp_path: Path, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(9)
    counts: Counter[str] = Counter()
    for round_ in range(ROUNDS):
        said = work_and_die(tmp_path, engine, round_, float(generator.uniform(*WORK_S)))
        counts.update(asyncio.run(survey(tmp_path, round_, said)))
    counts.update(asyncio.run(survey_all(tmp_path)))
    # The injector did inject: writers died in the middle of things.
    assert counts["leftover files"] > ROUNDS / 4
    assert counts["visible"] > ROUNDS
    with capsys.disabled():
        print(f"\nkill -9, {engine}: {ROUNDS} rounds, {dict(counts)}")


def work_and_die(directory: Path, engine: str, round_: int, seconds: float) -> list[int]:
    """Let a writer work for a while and kill it; the numbers of the blocks that it said were stored."""
    first = round_ * ROUND_IDS
    loop = ("asyncio", "uvloop")[round_ % 2]
    with child("writer", directory=str(directory), first=first, loop=loop, keys={"io_engine": engine}) as writer:
        expect(writer, "ready")
        time.sleep(seconds)
        writer.send_signal(signal.SIGKILL)
        assert writer.stdout is not None
        lines = writer.stdout.read().splitlines(keepends=True)
        assert writer.wait() == -signal.SIGKILL
    return [int(word) for line in lines if line.endswith("\n") for word in line.split()]


async def survey(directory: Path, round_: int, said: list[int]) -> Counter[str]:
    """Open what the dead left: leftovers go, what was promised is there, what is there is right."""
    (root,) = (one for one in directory.iterdir() if one.is_dir())
    before = len(temporary(root))
    async with ucm.open_store("Posix", **keys(directory)) as store:
        assert temporary(home(store)) == [] and len(writers(home(store))) == 1
        (backend,) = store.statistics().pipeline["Posix"]["stage"]["backends"]
        ids = ucm.block_ids(range(round_ * ROUND_IDS, round_ * ROUND_IDS + max(said, default=0) % ROUND_IDS + 200))
        found = await store.lookup(ids)
        promised = np.isin(np.arange(len(ids)), np.array(said, dtype=np.int64) % ROUND_IDS) if said else found & False
        assert found[promised].all(), "a dump was OK, and its block is not there"
        visible = np.ascontiguousarray(ids[found])
        await check_blocks(store, visible)
        await quiet(store)
        assert not any(root.glob("*.tmp"))
        # The work of the dead can be done again.
        again = np.ascontiguousarray(ids[: len(said) + 12])
        assert (await store.dump(again, None, content(again))).ok.all()
        await check_blocks(store, again)
    return Counter(
        {"leftover files": before, "leftover writers": backend["leftovers_removed"], "visible": len(visible)}
    )


async def survey_all(directory: Path) -> Counter[str]:
    """In the end: every file is a right block, and nothing was ever set aside."""
    async with ucm.open_store("Posix", **keys(directory)) as store:
        root = home(store)
        assert quarantined(root) == []
        names = files_below(root)
        ids = ucm.block_ids(bytes.fromhex(name.rpartition("/")[2]) for name in names)
        for start in range(0, len(ids), 64):
            await check_blocks(store, ids[start : start + 64])
    return Counter({"blocks in the end": len(names)})


def test_the_others_go_on(tmp_path: Path) -> None:
    """A store that writes the same blocks beside the ones that die loses nothing, and nothing is taken from it."""

    async def beside() -> None:
        async with ucm.open_store("Posix", **keys(tmp_path)) as store:
            for round_ in range(6):
                with child("writer", directory=str(tmp_path), first=round_ * ROUND_IDS) as writer:
                    await asyncio.to_thread(expect, writer, "ready")
                    await dump_and_check(store, round_)
                    writer.send_signal(signal.SIGKILL)
                    await dump_and_check(store, round_)
                async with ucm.open_store("Posix", **keys(tmp_path)) as newcomer:  # tidies up, but only the dead
                    assert len(writers(home(newcomer))) == 2
                await dump_and_check(store, round_)
            await quiet(store)

    asyncio.run(beside())


async def dump_and_check(store: ucm.Store, round_: int) -> None:
    first = round_ * ROUND_IDS
    ids = ucm.block_ids(range(first, first + 60))
    rows, shards, data = by_shard(ids)
    half = len(rows) // 2
    for part in (slice(half), slice(half, None)):
        result = await store.dump(rows[part], shards[part], data[part])
        assert result.ok.all(), result.failures
    await check_blocks(store, ids)
