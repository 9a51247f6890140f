"""What a second thread adds to some work, and what this machine's processors let any work gain by it.

Two processors may be two threads of one core, or may have to share one with other guests of the host, and then no
program is twice as fast on both. So loops that have nothing to do with the work take their turns beside it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Final, TypeAlias

import numpy as np

from .measure import Contestant, Sample

__all__ = ["REFERENCES", "Crew", "Job", "reference_jobs"]

Job: TypeAlias = Callable[[], object]
"""Work that may be repeated, and that leaves the GIL alone for most of its time."""

REFERENCES: Final = ("dependent additions", "vector additions", "memory copies")
"""Loops that anything can be compared with: see `reference_jobs`."""

_SAMPLE_SECONDS: Final = 0.02
_VECTOR_ELEMENTS: Final = 2048
_COPY_BYTES: Final = 32 << 20


class Crew:
    """Two threads that repeat jobs, alone and beside each other."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2, "bench")

    def contestants(self, name: str, jobs: Sequence[Job]) -> dict[str, Contestant]:
        """Return ``name``, one thread with the first job, and if there are two, ``name, two``, each thread with one.

        Jobs must be alike, and must not share what they write. They are repeated for as long as a sample takes; a
        sample's blocks are the runs of its jobs.
        """
        repeats = self._repeats(jobs[0])

        def contestant(chosen: Sequence[Job]) -> Contestant:
            async def run(_round: int) -> Sample:
                return await asyncio.to_thread(self._run, chosen, repeats)

            return run

        alone = {name: contestant(jobs[:1])}
        return alone if len(jobs) == 1 else {**alone, f"{name}, two": contestant(jobs)}

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _repeats(self, job: Job) -> int:
        job()  # what it touches is in memory from now on
        started = time.perf_counter()
        job()
        return max(1, math.ceil(_SAMPLE_SECONDS / (time.perf_counter() - started)))

    def _run(self, jobs: Sequence[Job], repeats: int) -> Sample:
        start = Barrier(len(jobs))

        def repeat(job: Job) -> tuple[float, float, float]:
            start.wait()
            began, cpu = time.perf_counter(), time.thread_time()
            for _ in range(repeats):
                job()
            return began, time.perf_counter(), time.thread_time() - cpu

        began, ended, cpu = zip(*self._threads.map(repeat, jobs), strict=True)
        return Sample(len(jobs) * repeats, max(ended) - min(began), sum(cpu))


def reference_jobs() -> Mapping[str, Sequence[Job]]:
    """Return two jobs for each of `REFERENCES`.

    Dependent additions wait for each other, so one thread leaves most of a core idle: two threads gain 2.0 if there are
    two processors at all, be they of one core. Vector additions keep the units of a core and its first cache
    busy: on two threads of one core they gain little. Copies are bound by the memory.
    """
    number = np.broadcast_to(np.int64(1), (1 << 22,))
    rows = np.broadcast_to(np.arange(_VECTOR_ELEMENTS, dtype=np.int32), (4096, _VECTOR_ELEMENTS))

    def vector_additions() -> Job:
        out = np.zeros(_VECTOR_ELEMENTS, np.int32)
        return lambda: np.add.reduce(rows, axis=0, out=out)

    def memory_copies() -> Job:
        source, target = np.ones(_COPY_BYTES, np.uint8), np.ones(_COPY_BYTES, np.uint8)
        return lambda: np.copyto(target, source)

    jobs = ([number.sum] * 2, [vector_additions() for _ in range(2)], [memory_copies() for _ in range(2)])
    return dict(zip(REFERENCES, jobs, strict=True))
