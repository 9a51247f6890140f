"""kill -9 of writers and of the one that collects, on the real disk: the cap holds, and usage is right afterwards.

A few rounds by default; ``UCM_ASYNC_KILL_ROUNDS=500`` for more, from number ``UCM_ASYNC_KILL_FIRST`` on.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status

from .support import BLOCK, FILE, check_usage, content, keys, stage_of

ROUNDS = int(os.environ.get("UCM_ASYNC_KILL_ROUNDS", "6"))
FIRST = int(os.environ.get("UCM_ASYNC_KILL_FIRST", "0"))
CAPACITY = 60
REPOSITORY = Path(__file__).parents[2]
WRITERS = 3
CHECKED_EVERY = 3
"""Rounds between two looks at everything: in between, the next writers find what the dead have left."""


class Peak:
    """Adds up all block files, under way or not, again and again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.nbytes = 0
        self.looks = 0

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            self.nbytes = max(self.nbytes, data_bytes(self._directory))
            self.looks += 1

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def data_bytes(directory: Path) -> int:
    """Bytes of files that have a block's name; one that moves while this looks counts once."""
    seen: dict[int, int] = {}
    for where, _directories, names in os.walk(directory):
        for name in names:
            if len(name) == 32:
                try:
                    about = os.lstat(os.path.join(where, name))
                except FileNotFoundError:
                    continue
                seen[about.st_ino] = about.st_size
    return sum(seen.values())


def start(directory: Path, seed: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.space.child", str(directory), str(CAPACITY), str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, cwd=REPOSITORY)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it ended by itself: {out.decode()}\n{err.decode()}"


def round_of_deaths(directory: Path, seed: int, generator: np.random.Generator) -> Counter[str]:
    """Start some writers; kill one while it collects, one at any time, and the others."""
    processes = [start(directory, WRITERS * seed + n) for n in range(WRITERS)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        victim = processes[seed % WRITERS]
        assert victim.stdout is not None
        seen = wait_for_line(victim, float(generator.uniform(0.1, 0.3)))
        time.sleep(float(generator.uniform(0, 0.003)))
        kill(victim)
        time.sleep(float(generator.uniform(0, 0.1)))
    finally:
        for process in processes:
            if process.returncode is None:
                kill(process)
    return Counter(killed=WRITERS, killed_collecting=seen)


def wait_for_line(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait until a process says something, up to so long."""
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], seconds)[0])


async def look(directory: Path) -> int:
    """Open what the dead left: usage is right, what is there is right, and there is room again."""
    async with ucm.open_store("Posix", **keys(directory, capacity=CAPACITY)) as store:
        used = await check_usage(store, directory)
        ids = ucm.block_ids(range(200))
        out = np.zeros((len(ids), BLOCK), np.uint8)
        result = await store.load(ids, None, out)
        assert set(result.status.tolist()) <= {Status.OK, Status.MISS}
        assert (out[result.ok] == content(ids)[result.ok]).all()
        assert result.ok.sum() * FILE == used
        new = ucm.block_ids(range(1000, 1010))
        assert (await store.dump(new, None, content(new))).ok.all()
        while stage_of(store)._space.manager._collecting:
            await asyncio.sleep(0.01)
        await check_usage(store, directory)
        await store.delete(new)
    return used


@pytest.mark.timeout(60 + 4 * ROUNDS)
def test_kill_9_of_writers_and_of_the_collector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(FIRST)
    counts: Counter[str] = Counter()
    with Peak(tmp_path) as peak:
        for seed in range(FIRST, FIRST + ROUNDS):
            counts += round_of_deaths(tmp_path, seed, generator)
            if seed % CHECKED_EVERY == CHECKED_EVERY - 1:
                counts["bytes seen"] += asyncio.run(look(tmp_path))
    asyncio.run(look(tmp_path))
    assert peak.nbytes <= CAPACITY * FILE
    assert counts["killed_collecting"], "the injector did inject"
    with capsys.disabled():
        print(
            f"\n{ROUNDS} rounds: {dict(counts)}, peak {peak.nbytes / FILE:.0f} of {CAPACITY} blocks, {peak.looks} looks"
        )
