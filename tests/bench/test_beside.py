from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from ucm_async.bench import beside
from ucm_async.bench.beside import REFERENCES, Crew, reference_jobs
from ucm_async.bench.measure import alternate


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_SAMPLE_SECONDS", 0.0)


@pytest.fixture
def crew() -> Iterator[Crew]:
    with closing(Crew()) as crew:
        yield crew


def test_two_threads_run_beside_each_other(crew: Crew) -> None:
    meet = threading.Barrier(2, timeout=10)
    alone = threading.Event()

    def job() -> None:
        if alone.is_set():
            meet.wait()  # breaks, unless the other thread is there at the same time

    contestants = crew.contestants("work", [job, job])
    alone.set()
    sample = asyncio.run(contestants["work, two"](0))
    assert sample.blocks == 2 and sample.wall_s > 0


def test_a_sample_counts_every_run(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_SAMPLE_SECONDS", 0.01)
    runs = [0, 0]

    def job(which: int) -> None:
        runs[which] += 1
        threading.Event().wait(0.002)

    contestants = crew.contestants("work", [lambda: job(0), lambda: job(1)])
    runs[:] = 0, 0
    one = asyncio.run(contestants["work"](0))
    assert runs == [one.blocks, 0] and one.wall_s >= 0.002 * one.blocks
    two = asyncio.run(contestants["work, two"](0))
    assert runs == [2 * one.blocks, one.blocks] and two.blocks == 2 * one.blocks
    assert set(crew.contestants("single", [lambda: None])) == {"single"}


def test_the_references_run(crew: Crew) -> None:
    contestants = {}
    for name, jobs in reference_jobs().items():
        contestants |= crew.contestants(name, jobs)
    measured = asyncio.run(alternate(contestants, 1))
    assert all(measured.speed_ratio(f"{name}, two", name).median > 0 for name in REFERENCES)
