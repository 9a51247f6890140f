"""Admission: how much of the cache each kind of work may hold at a time. What is above goes round the cache."""

from __future__ import annotations

from typing import Final

__all__ = ["Admission", "Share"]

LOADS: Final = 1 / 2
"""Misses that are being read. The other half stays for hits: what is read now was evicted from somewhere."""

PREFETCHES: Final = 1 / 8
PARTIAL_DUMPS: Final = 1 / 4
"""Blocks of which some shards are in. Nobody knows when the others come, so they could fill the cache for good."""


class Share:
    """A number of slots that one kind of work may have at a time.

    Attributes
    ----------
    slots
        The bound, at least 1.
    taken
        In use now.
    """

    __slots__ = ("refused", "slots", "taken")

    def __init__(self, slots: int) -> None:
        self.slots = max(1, slots)
        self.taken = 0
        self.refused = 0

    def take(self, wanted: int) -> int:
        """Take as many of `wanted` slots as are left; returns how many."""
        granted = min(wanted, self.slots - self.taken)
        self.taken += granted
        self.refused += wanted - granted
        return granted

    def give_back(self, count: int) -> None:
        """Give slots back that were taken."""
        assert 0 <= count <= self.taken, "given back more than was taken"
        self.taken -= count


class Admission:
    """The shares of a cache of `slots` slots, for one process."""

    def __init__(self, slots: int) -> None:
        self.loads = Share(int(slots * LOADS))
        self.prefetches = Share(int(slots * PREFETCHES))
        self.partial_dumps = Share(int(slots * PARTIAL_DUMPS))

    def statistics(self) -> dict[str, dict[str, int]]:
        """Return for each share its bound, what is in use, and how often it was not enough."""
        shares = {"loads": self.loads, "prefetches": self.prefetches, "partial_dumps": self.partial_dumps}
        return {name: {"slots": one.slots, "taken": one.taken, "refused": one.refused} for name, one in shares.items()}
