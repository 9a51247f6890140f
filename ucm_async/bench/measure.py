"""Measurements that alternate, and the ratios of one run.

What a machine gives drifts by a third within minutes, so only contestants that took turns are compared: each round
runs all of them, in another order each time, and gives one ratio; the median of the rounds is told, with the smallest
and the largest.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

import numpy as np

__all__ = [
    "Contestant",
    "Finding",
    "Measured",
    "Sample",
    "Spread",
    "Stopwatch",
    "alternate",
    "percentiles",
    "stopwatch",
]


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a contestant: blocks moved, seconds it took, and CPU seconds of the whole process."""

    blocks: int
    wall_s: float
    cpu_s: float

    @property
    def blocks_per_s(self) -> float:
        """Rate."""
        return self.blocks / self.wall_s

    @property
    def cpu_us_per_block(self) -> float:
        """CPU, user and system, in microseconds."""
        return self.cpu_s / self.blocks * 1e6


Contestant: TypeAlias = Callable[[int], Awaitable[Sample]]
"""Runs once; gets the number of the round, -1 for the warm-up."""


@dataclass(slots=True)
class Stopwatch:
    """Wall and CPU seconds between the enter and the exit of `stopwatch`."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


@contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """Measure what happens inside; the CPU time is that of all threads of the process."""
    watch = Stopwatch()
    cpu, started = _cpu_s(), time.perf_counter()
    yield watch
    watch.wall_s = time.perf_counter() - started
    watch.cpu_s = _cpu_s() - cpu


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def alternate(contestants: Mapping[str, Contestant], rounds: int) -> Measured:
    """Run every contestant once to warm up, and then once a round, beginning with another one each time."""
    names = list(contestants)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for round_number in range(-1, rounds):
        shift = round_number % len(names)
        for name in names[shift:] + names[:shift]:
            sample = await contestants[name](round_number)
            if round_number >= 0:
                samples[name].append(sample)
    return Measured(samples)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, and their smallest and largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up `values`; at least one."""
        return cls(median(values), min(values), max(values))

    def as_list(self) -> list[float]:
        """Median, smallest, largest, with six digits."""
        return [float(f"{value:.6g}") for value in (self.median, self.low, self.high)]


@dataclass(frozen=True, slots=True)
class Measured:
    """Samples of each contestant, one a round."""

    samples: Mapping[str, Sequence[Sample]]

    def __contains__(self, name: str) -> bool:
        return name in self.samples

    def gb_per_s(self, name: str, block_bytes: int) -> Spread:
        """10^9 bytes a second."""
        return Spread.of([one.blocks_per_s * block_bytes / 1e9 for one in self.samples[name]])

    def cpu_us(self, name: str) -> Spread:
        """CPU of a block, in microseconds."""
        return Spread.of([one.cpu_us_per_block for one in self.samples[name]])

    def speed_ratio(self, name: str, reference: str) -> Spread:
        """Rate of `name` over the rate of `reference`, round by round."""
        pairs = zip(self.samples[name], self.samples[reference], strict=True)
        return Spread.of([one.blocks_per_s / other.blocks_per_s for one, other in pairs])


def percentiles(values: Sequence[float], percents: Sequence[float] = (50, 99)) -> dict[str, float]:
    """Return ``{"p50": …}`` of `values`, with the largest as ``max``."""
    found = {f"p{percent:g}": float(np.percentile(values, percent)) for percent in percents}
    return {**found, "max": float(max(values))}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the result.

    Attributes
    ----------
    case, what
        Which case of the benchmark, and what of it.
    value, unit
        What was measured; a `Spread` over rounds where there were rounds.
    reference, reference_value
        What it is compared with, in the same unit; empty and None where there is nothing.
    ratio
        `value` over `reference_value`, round by round.
    goal
        What this library promises of the ratio, or of the value where there is no reference: ``(">=", 0.9)``, or None.
    detail
        Further figures, plain values.
    """

    case: str
    what: str
    value: Spread
    unit: str
    reference: str = ""
    reference_value: Spread | None = None
    ratio: Spread | None = None
    goal: tuple[str, float] | None = None
    detail: Mapping[str, Any] | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none, or nothing to compare with."""
        if self.goal is None or (self.reference and self.ratio is None):
            return None
        kind, bound = self.goal
        seen = (self.ratio or self.value).median
        return seen >= bound if kind == ">=" else seen <= bound

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; spreads as [median, smallest, largest]."""
        return {
            "case": self.case,
            "what": self.what,
            "value": self.value.as_list(),
            "unit": self.unit,
            "reference": self.reference or None,
            "reference_value": self.reference_value.as_list() if self.reference_value else None,
            "ratio": self.ratio.as_list() if self.ratio else None,
            "goal": f"{self.goal[0]} {self.goal[1]:g}" if self.goal else None,
            "met": self.met,
            "detail": dict(self.detail or {}),
        }
