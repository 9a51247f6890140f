"""Whole stores on the simulated machine keep their promises, seed after seed, and a seed gives the same run again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from ucm_async.testing.simulation import store_under_test
from ucm_async.testing.simulation.faults import CALM
from ucm_async.testing.simulation.plan import Plan, Step, draw_plan
from ucm_async.testing.simulation.run import run_plan, run_seed

SEEDS = int(os.environ.get("UCM_ASYNC_SEEDS", "600"))
"""The long form: ``UCM_ASYNC_SEEDS=10000``; or ``ucm-async simulate --seeds 10000``, which shows how far it is."""

SLAB_SEEDS = SEEDS // 5

PARTS = 6


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_promises_are_kept(part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        outcome = run_seed(seed)
        assert not outcome.violation, f"{outcome.violation}\n{outcome.command}"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(2))
def test_slabs_keep_them_as_well(part: int) -> None:
    for seed in range(part, SLAB_SEEDS, 2):
        outcome = run_seed(seed, pipeline="Slab")
        assert not outcome.violation, f"{outcome.violation}\n{outcome.command}"


def test_a_seed_gives_the_same_run_again() -> None:
    first = [run_seed(seed, digest=True).digest for seed in range(60)]
    assert first == [run_seed(seed, digest=True).digest for seed in range(60)]
    assert len(set(first)) == 60


def test_another_process_gives_the_same_run() -> None:
    """Neither the order of sets, which differs from process to process, nor where memory lies enters a run."""
    code = (
        "from ucm_async.testing.simulation.run import run_seed\n"
        "print([run_seed(n, digest=True).digest for n in range(25)])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": salt}, capture_output=True, check=True
        ).stdout
        for salt in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].decode().strip() == str([run_seed(seed, digest=True).digest for seed in range(25)])


def test_fewer_steps_are_the_beginning_of_the_run() -> None:
    plan = draw_plan(random.Random(5), 5)
    outcome = run_seed(5, steps=7)
    assert outcome.plan.steps == plan.steps[:7]
    assert outcome.plan.setting == plan.setting


def calm_plan(*steps: Step) -> Plan:
    """A plan with these steps, in a setting where nothing goes wrong."""
    plans = (draw_plan(random.Random(seed), seed) for seed in range(100))
    return replace(next(plan for plan in plans if plan.setting.rates == CALM), steps=steps)


def test_a_cap_that_is_not_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    keys_of = store_under_test.keys_of
    monkeypatch.setattr(store_under_test, "keys_of", lambda *them: keys_of(*them) | {"posix_capacity_gb": 0})
    plan = calm_plan(Step("dump", blocks=(0, 1)), Step("join"))
    capped = replace(plan, setting=replace(plan.setting, cap_bytes=8192))
    assert "the cap is 8192" in run_plan(capped, random.Random(0)).violation
    assert not run_plan(plan, random.Random(0)).violation


def test_what_went_wrong_is_told() -> None:
    """Over some seeds every fault strikes."""
    everything = {
        "slow", "short_read", "short_write", "read_error", "write_error", "sync_error", "file_error", "lost_write",
        "misdirected_write", "flip", "hang", "kill", "power_cut", "no_space",
    }  # fmt: skip
    struck: set[str] = set()
    for seed in range(2000):
        struck |= run_seed(seed).struck.keys()
        if struck >= everything:
            return
    raise AssertionError(f"never struck: {everything - struck}")
