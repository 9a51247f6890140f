"""Several processes on one store: every byte compared, and kill -9 at random moments.

A few rounds by default; ``UCM_ASYNC_KILL_ROUNDS=500`` for more, other ones from ``UCM_ASYNC_KILL_FIRST`` on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status
from ucm_async.types import Bools

from .support import BLOCK, data_files, dump, home, slot_counts, stage_statistics
from .worker import NUMBERS, bytes_of, worker_keys

ROUNDS = int(os.environ.get("UCM_ASYNC_KILL_ROUNDS", "6"))
FIRST = int(os.environ.get("UCM_ASYNC_KILL_FIRST", "7"))
PIPELINES = ["Slab", "Compress|Slab"]
WORKERS = 3
REST_S = 5.0


@contextlib.contextmanager
def worker(pipeline: str, directory: Path, seed: int, actions: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A process that works; killed in the end, if it still lives."""
    command = [sys.executable, "-W", "error", "-m", "tests.slab.worker"]
    command += [pipeline, str(directory), str(seed), str(actions)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline().strip()
    assert line == "ready", process.stderr.read()


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_byte_between_processes(pipeline: str, tmp_path: Path) -> None:
    """They read, write, delete and evict the same blocks side by side."""
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(worker(pipeline, tmp_path, seed, 400)) for seed in range(WORKERS)]
        for process in processes:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            counts.update(json.loads(out.splitlines()[-1].removeprefix("done ")))
    assert counts["loaded"] > 100
    assert counts["dumped"] > 100
    asyncio.run(look_at_all(pipeline, tmp_path, "checkpoint"))


@pytest.mark.timeout(60 + 5 * ROUNDS)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_kill_9_of_one_of_several(pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others go on without a wrong byte, and what the dead had taken comes back."""
    generator = np.random.default_rng(FIRST)
    taken_by_the_dead = 0
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(worker(pipeline, tmp_path, seed)) for seed in range(WORKERS)]
        for process in processes:
            ready(process)
        for round_ in range(ROUNDS):
            time.sleep(float(generator.uniform(0.02, 0.2)))
            victim = processes.pop(int(generator.integers(WORKERS)))
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            for process in processes:
                assert process.poll() is None, process.communicate()[1]
            processes.append(stack.enter_context(worker(pipeline, tmp_path, 1000 + FIRST + round_)))
            ready(processes[-1])
        for process in processes:  # all at once
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.wait()
    taken_by_the_dead += asyncio.run(look_at_all(pipeline, tmp_path, "memory"))
    with capsys.disabled():
        print(
            f"\nkill -9, {pipeline}: {ROUNDS} rounds of {WORKERS} processes, {taken_by_the_dead} slots were left taken"
        )


def lengths(directory: Path) -> int:
    """Bytes of the data files; a file in many pieces, of which some are unwritten, takes blocks of its own besides."""
    return sum(path.stat().st_size for path in data_files(directory))


async def check(store: ucm.Store, pipeline: str) -> Bools:
    """Load every block that there may be: what comes is right; returns which came."""
    ids = ucm.block_ids(range(NUMBERS))
    out = np.zeros((NUMBERS, BLOCK), dtype=np.uint8)
    result = await store.load(ids, None, out)
    assert (out[result.ok] == bytes_of(pipeline, ids)[result.ok]).all()
    assert set(result.status.tolist()) <= {Status.OK, Status.MISS}, dict(result.failures)
    return result.ok


async def look_at_all(pipeline: str, directory: Path, recovered: str) -> int:
    """Look at a store that nobody uses: no slot is taken, usage is exact, and headers say the same."""
    async with ucm.open_store(pipeline, **worker_keys(str(directory))) as store:
        assert stage_statistics(store)["slabs"][0]["recovered"] == recovered
        left = slot_counts(store)["taken"]
        until = time.monotonic() + REST_S
        while slot_counts(store)["taken"]:
            assert time.monotonic() < until, "what the dead had taken does not come back"
            await asyncio.sleep(0.05)
        came = await check(store, pipeline)
        assert slot_counts(store)["stored"] >= came.sum() > 0
        manager = store._pipeline.operators[-1].stage._manager  # type: ignore[union-attr]
        await manager.counted()
        assert stage_statistics(store)["space"]["used_bytes"] == await asyncio.to_thread(lengths, directory)
    await asyncio.to_thread((home(directory) / "checkpoint").unlink)
    async with ucm.open_store(pipeline, **worker_keys(str(directory))) as store:
        assert stage_statistics(store)["slabs"][0]["recovered"] == "headers"
        again = await check(store, pipeline)
        assert again[came].all(), "headers know of fewer blocks"
        assert (await dump(store, 5000, 20)).all()
        assert await asyncio.to_thread(data_files, directory)
    return left


def test_a_store_whose_maker_died_over_it(tmp_path: Path) -> None:
    """The shared memory was made and not filled: the next one makes it anew."""
    code = (
        "import asyncio, os, sys, ucm_async as ucm\n"
        "from ucm_async.stages.slab import slab\n"
        "from tests.slab.worker import worker_keys\n"
        "slab.Slab._recover = lambda *_: os.kill(os.getpid(), 9)\n"
        "asyncio.run(ucm.open_store('Slab', **worker_keys(sys.argv[1])).__aenter__())\n"
    )
    asyncio.run(fill(tmp_path))
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    asyncio.run(look_at_all("Slab", tmp_path, "checkpoint"))


async def fill(directory: Path) -> None:
    async with ucm.open_store("Slab", **worker_keys(str(directory))) as store:
        assert (await dump(store, 0, 40)).all()
