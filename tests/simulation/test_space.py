"""Space in the laboratory: what stands in for shared memory, and bounds that are not kept are found."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from ucm_async.space import SpaceManager
from ucm_async.space.ledger import CHARGED, Ledger
from ucm_async.testing.simulation.disk import SimulatedDisk
from ucm_async.testing.simulation.faults import Faults
from ucm_async.testing.simulation.process import SimulatedProcess
from ucm_async.testing.simulation.run import run_seed

SEEDS = 400


def two_processes() -> tuple[SimulatedDisk, SimulatedProcess, SimulatedProcess]:
    disk = SimulatedDisk(Faults(random.Random(0)))
    disk.mkdir(disk.root, "/kv")
    return disk, SimulatedProcess(disk, "one"), SimulatedProcess(disk, "two")


def attach(process: SimulatedProcess) -> Any:
    memory = process.shared_memory(Path("/kv/space.lock"), 4096)
    return memory, memory.attach()


def test_processes_share_memory_and_its_locks() -> None:
    _, one, two = two_processes()
    (mine, new), (theirs, again) = attach(one), attach(two)
    assert new
    assert not again
    mine.memory[7] = 42
    assert theirs.memory[7] == 42
    assert mine.lock(3)
    assert not theirs.lock(3)
    mine.unlock(3)
    assert theirs.lock(3)
    assert not mine.last
    theirs.close()
    assert mine.last


def test_what_a_dead_process_stores_is_seen_by_nobody() -> None:
    _, one, two = two_processes()
    (mine, _), (theirs, _) = attach(one), attach(two)
    mine.memory[0] = 1
    assert mine.lock(3)
    one.kill()
    mine.memory[0] = 2
    assert mine.memory[0] == 2
    assert theirs.memory[0] == 1
    assert theirs.lock(3), "its locks are free"
    assert theirs.last
    mine.unlock(3)
    mine.remove()
    mine.close()
    assert theirs.last
    assert attach(two)[1] is False, "the memory of the living stays"


def test_a_power_cut_takes_the_memory() -> None:
    disk, one, two = two_processes()
    attach(one)
    one.kill()
    disk.cut_power()
    assert one.disk.power_cuts == 1
    assert two.boot_name() == "boot 1"
    assert attach(two)[1], "it is new"


def first_violation(**keys: Any) -> str:
    for seed in range(SEEDS):
        outcome = run_seed(seed, **keys)
        if outcome.violation:
            return outcome.violation
    return ""


def test_a_removal_that_is_not_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "removed", lambda self, nbytes: None)
    violation = first_violation()
    assert "the store says" in violation or "is refused" in violation


def test_a_count_beside_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who dies at a change leaves an account that says it is exact."""
    monkeypatch.setattr(Ledger, "begin_change", lambda self: True)
    monkeypatch.setattr(Ledger, "end_change", lambda self: None)
    assert "the store says" in first_violation()


def test_a_full_disk_that_nobody_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpaceManager, "no_space", lambda self, place: None)
    assert "is refused" in first_violation()


def test_room_that_is_granted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each store keeps within the cap by itself, and does not look at the others."""

    def sums(self: Any) -> tuple[int, int]:
        own = sum(int(ledger._own[CHARGED]) for ledger in self._ledgers)
        return own, own

    monkeypatch.setattr(SpaceManager, "_sums", sums)
    assert "and the cap is" in first_violation()
