"""What goes wrong on a simulated disk, how often, and how long things take. All of it from one generator."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, fields
from typing import Final

__all__ = ["CALM", "HONEST", "KINDS", "FaultRates", "Faults"]

HONEST: Final = ("read_error", "write_error", "sync_error", "file_error")
"""Faults that are reported as an errno."""


@dataclass(frozen=True, slots=True)
class FaultRates:
    """The share of operations, 0 to 1, that each fault strikes.

    Attributes
    ----------
    slow
        Any operation takes up to `SLOW_S_MAX`.
    short_read
        A read brings fewer sectors than there are, and no error.
    short_write
        A write takes fewer sectors than it was given, as on a full disk, and no error.
    read_error, write_error
        EIO; some sectors may have been moved all the same.
    sync_error
        A sync ends with EIO, and what it was to bring to the medium never gets there, though reads show it (what
        Linux does since 4.13).
    file_error
        An open, rename, unlink, stat, mkdir or fallocate ends with EIO, and does nothing.
    lost_write
        A write is acknowledged, and the device has done nothing.
    misdirected_write
        A write is acknowledged, and its bytes are at another place, in this file or in another one.
    """

    slow: float = 0.0
    short_read: float = 0.0
    short_write: float = 0.0
    read_error: float = 0.0
    write_error: float = 0.0
    sync_error: float = 0.0
    file_error: float = 0.0
    lost_write: float = 0.0
    misdirected_write: float = 0.0


CALM: Final = FaultRates()

TRANSFER_S: Final = 80e-6
FILE_S: Final = 8e-6
MEMORY_S: Final = 2e-6
"""What transfers, file operations, and copies take on average; the distribution is exponential."""

SLOW_S_MAX: Final = 0.5


class Faults:
    """Draws what becomes of each operation.

    Attributes
    ----------
    rates
        May be replaced at any time.
    struck
        How often each fault has struck; hangs, flips, kills and power cuts are counted here, too.
    """

    def __init__(self, generator: random.Random, rates: FaultRates = CALM) -> None:
        self.generator = generator
        self.rates = rates
        self.struck: Counter[str] = Counter()

    def strikes(self, name: str) -> bool:
        """Tell whether the fault `name` strikes now, and count it."""
        rate = getattr(self.rates, name)
        if not rate or self.generator.random() >= rate:
            return False
        self.struck[name] += 1
        return True

    def duration_s(self, mean_s: float) -> float:
        """Draw how long something takes."""
        if self.strikes("slow"):
            return SLOW_S_MAX * self.generator.random()
        return mean_s * self.generator.expovariate(1.0)

    def calm(self) -> None:
        """Let nothing strike any more."""
        self.rates = CALM

    def count(self, names: tuple[str, ...]) -> int:
        """Return how often any of `names` has struck."""
        return sum(self.struck[name] for name in names)


KINDS: Final = tuple(one.name for one in fields(FaultRates))
"""The names of all rates."""
