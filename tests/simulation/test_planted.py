"""Bugs that were planted are found, and soon: what cannot find them proves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ucm_async.blocks import loading
from ucm_async.blocks.writes import BlockWrites
from ucm_async.stages.posix import express, load
from ucm_async.testing.simulation.run import Outcome, run_seed

SEEDS_MAX = 400


def first_failure(wanted: Callable[[str], bool]) -> tuple[Outcome, int]:
    for seed in range(SEEDS_MAX):
        outcome = run_seed(seed)
        if outcome.violation:
            assert wanted(outcome.violation), outcome.violation
            return outcome, seed + 1
    pytest.fail(f"not found by {SEEDS_MAX} seeds")


def test_commit_before_all_shards(monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    """The shard with the last index commits, whatever else is in."""
    last = lambda self, entries, wanted: wanted[:, -1].copy()  # noqa: E731
    monkeypatch.setattr(BlockWrites, "completes", last)
    outcome, seeds = first_failure(lambda text: "block" in text)
    record_property("seeds", seeds)
    again = run_seed(outcome.plan.seed, steps=outcome.steps)
    assert again.violation == outcome.violation


def test_slot_freed_at_cancellation(monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    """A load that nobody waits for any more gives its slots back, though the kernel still reads into them."""

    early = 0

    async def completed(future: asyncio.Future[None]) -> None:
        """Does not wait."""
        nonlocal early
        early += not future.done()

    monkeypatch.setattr(loading, "completed", completed)
    signs = ("transfer under way", "CORRUPT", "written to after it had settled")
    _, seeds = first_failure(lambda text: any(sign in text for sign in signs))
    assert early, "the planted code was reached"
    record_property("seeds", seeds)


def test_header_that_proves_nothing(monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    """The header is right, so the data must be: what a power cut left of it is returned as good."""

    async def compare(self: Any, reading: Any, groups: Any, results: Any) -> None:
        rows = np.flatnonzero(np.isin(reading.group, groups))
        reading.batch.report(reading.rows[rows], load.Status.OK)

    monkeypatch.setattr(load.Loader, "_compare", compare)
    monkeypatch.setattr(express.ExpressLoads, "begin", lambda *_: False)
    _, seeds = first_failure(lambda text: "wrong bytes" in text or "never whole" in text)
    record_property("seeds", seeds)
