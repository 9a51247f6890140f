"""What happened in a run, in order: two runs of one seed must agree to the last entry."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

__all__ = ["Trace"]


class Trace:
    """A list of what happened. Entries hold plain values only, and nothing that differs from run to run: no addresses.

    Attributes
    ----------
    now_s
        Returns the time of an entry, in simulated seconds; may be replaced.
    entries
        The time, and what was noted.
    """

    def __init__(self) -> None:
        self.now_s: Callable[[], float] = _no_time
        self.entries: list[tuple[object, ...]] = []

    def note(self, *what: object) -> None:
        """Add an entry, with the time."""
        self.entries.append((self.now_s(), *what))

    def digest(self) -> str:
        """Return a hash of everything, 32 hex digits."""
        return hashlib.blake2b(repr(self.entries).encode(), digest_size=16).hexdigest()

    def last(self, count: int) -> list[str]:
        """Return the last entries as lines."""
        return [f"{entry[0]:12.6f} s  {' '.join(map(str, entry[1:]))}" for entry in self.entries[-count:]]


def _no_time() -> float:
    return 0.0
