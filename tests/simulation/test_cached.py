"""The Cache on the simulated machine: its promises, the ways it can break them, and what the laboratory has found."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ucm_async.native import NATIVE
from ucm_async.stages.cache.behind import WriteBehind
from ucm_async.stages.cache.fills import Filler
from ucm_async.stages.cache.waiting import WAIT_S_MAX, Waiting
from ucm_async.testing.simulation.run import Outcome, run_seed
from ucm_async.types import Status

from .test_walk import SEEDS

pytestmark = pytest.mark.skipif(not NATIVE, reason="the Cache needs the extension")

CACHE_SEEDS = SEEDS // 5
SEEDS_MAX = 400


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("pipeline", ["Cache|Posix", "Cache|Slab"])
def test_caches_keep_their_promises(pipeline: str) -> None:
    for seed in range(CACHE_SEEDS if pipeline == "Cache|Posix" else CACHE_SEEDS // 4):
        outcome = run_seed(seed, pipeline=pipeline)
        assert not outcome.violation, f"{outcome.violation}\n{outcome.command}"


def test_a_seed_gives_the_same_run_again_in_another_process() -> None:
    code = (
        "from ucm_async.testing.simulation.run import run_seed\n"
        "print([run_seed(n, pipeline='Cache|Posix', digest=True).digest for n in range(12)])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": salt}, capture_output=True, check=True
        ).stdout.decode()
        for salt in ("1", "2")
    ]
    here = [run_seed(seed, pipeline="Cache|Posix", digest=True).digest for seed in range(12)]
    assert runs == [f"{here}\n"] * 2
    assert len(set(here)) == 12


# ---- found by it


async def test_a_wait_that_is_over_but_for_a_rounding_error() -> None:
    """It went on for ever, at one time of the simulated clock, in seed 225: the bound minus the time since is 1e-17."""
    loop = asyncio.get_running_loop()
    waiting = Waiting.__new__(Waiting)
    waiting._loop, waiting._first_seen = loop, {}
    for slot in range(100):
        await asyncio.sleep(0.1 / 7)
        since, turns = loop.time(), 0
        while left_s := waiting.left_s(np.array([slot]), np.array([1], dtype=np.uint32)):
            await asyncio.sleep(left_s / 3 if turns < 3 else left_s)
            turns += 1
            assert turns < 10
        assert loop.time() - since == pytest.approx(WAIT_S_MAX)


# ---- bugs that are planted


def first_failure(wanted: Callable[[str], bool]) -> tuple[Outcome, int]:
    for seed in range(SEEDS_MAX):
        outcome = run_seed(seed, pipeline="Cache|Posix")
        if outcome.violation:
            assert wanted(outcome.violation), f"{outcome.violation}\n{outcome.command}"
            return outcome, seed + 1
    pytest.fail(f"not found by {SEEDS_MAX} seeds")


def test_slot_freed_while_the_read_goes_on(monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    """Whoever takes too long to read a block gives its slot back, though the kernel still reads into it."""
    reads: set[asyncio.Task[Any]] = set()

    async def fill(self: Any, ids: Any, slots: Any, generations: Any) -> Any:
        reading = asyncio.ensure_future(self._below.load(ids, slots))
        reads.add(reading)
        reading.add_done_callback(reads.discard)
        await asyncio.wait([reading], timeout=2e-4)
        if not reading.done():
            status, reasons = np.full(len(ids), Status.CANCELLED, dtype=np.uint8), {}
        else:
            status, reasons = reading.result()
        self._buffer.table.publish(slots[status == Status.OK], False, True)
        self._waiting.settle(slots, generations, status, reasons)
        return status, reasons

    monkeypatch.setattr(Filler, "fill", fill)
    signs = ("transfer under way", "wrong bytes", "CANCELLED for no reason")
    outcome, seeds = first_failure(lambda text: any(sign in text for sign in signs))
    record_property("seeds", seeds)
    again = run_seed(outcome.plan.seed, steps=outcome.steps, pipeline="Cache|Posix")
    assert again.violation == outcome.violation


def test_published_before_its_checksum_was_looked_at(monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    """A slot is READY as soon as its read is under way."""

    async def fill(self: Any, ids: Any, slots: Any, generations: Any) -> Any:
        self._buffer.table.publish(slots, False, True)
        self._waiting.look()
        status, reasons = await self._below.load(ids, slots)
        bad = status != Status.OK
        self._buffer.table.drop(np.ascontiguousarray(ids[bad]))
        self._buffer.table.release(slots[bad])
        return status, reasons

    monkeypatch.setattr(Filler, "fill", fill)
    _, seeds = first_failure(lambda text: "wrong bytes" in text or "never whole" in text)
    record_property("seeds", seeds)


def test_a_debt_that_is_forgotten(monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    """What could not be written behind counts as stored, and `flush` says nothing."""
    settle = WriteBehind._settle

    def forgets(self: Any, debt: Any, status: Any, reasons: Any) -> None:
        settle(self, debt, np.zeros_like(status), reasons)

    monkeypatch.setattr(WriteBehind, "_settle", forgets)
    _, seeds = first_failure(lambda text: "which was stored" in text)
    record_property("seeds", seeds)


def test_a_flush_that_does_not_wait(monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    async def flush(self: Any) -> dict[bytes, Any]:
        return {}

    monkeypatch.setattr(WriteBehind, "flush", flush)
    signs = ("which was stored", "after aclose", "are left", "is left", "unexpected")
    _, seeds = first_failure(lambda text: any(sign in text for sign in signs))
    record_property("seeds", seeds)


def test_what_was_deleted_while_it_was_written_comes_back(
    monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    async def nothing(*_: Any) -> None:
        """Does not look."""

    monkeypatch.setattr(WriteBehind, "_undo_deleted", nothing)
    monkeypatch.setattr(WriteBehind, "settle", nothing)
    _, seeds = first_failure(lambda text: "is deleted" in text)
    record_property("seeds", seeds)
