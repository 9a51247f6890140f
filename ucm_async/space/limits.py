"""How much a store may occupy, and when collection begins and ends. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from ..config import StoreConfig

__all__ = ["GIB", "SpaceLimits"]

GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class SpaceLimits:
    """Bounds of a store's disk use, in bytes.

    Attributes
    ----------
    capacity
        Of the backends' directories together, every namespace counted; 0: none.
    quota
        Of this namespace, over all backends; 0: none.
    watermark
        Bytes that stay free on the file system of each backend; 0: none.
    high, low
        Shares of `capacity` and of `quota`: above the first collection begins, below the second it ends. With both 1.0
        it begins only when a bound is exceeded (as when it was lowered): for a stage whose files do not shrink when
        blocks go.
    """

    capacity: int = 0
    quota: int = 0
    watermark: int = 0
    high: float = 0.95
    low: float = 0.90

    @classmethod
    def of(cls, config: StoreConfig) -> SpaceLimits:
        """Return what a configuration asks for."""
        return cls(
            capacity=int(config.posix_capacity_gb * GIB),
            quota=int(config.namespace_quota_gb * GIB),
            watermark=int(config.space_watermark_gb * GIB),
            high=config.space_high,
            low=config.space_low,
        )

    @property
    def bounded(self) -> bool:
        """Whether there is any bound."""
        return bool(self.capacity or self.quota or self.watermark)

    def with_marks(self, high: float, low: float) -> SpaceLimits:
        """Return the same bounds with other marks."""
        return replace(self, high=high, low=low)

    def over(self, charged: int, of_namespace: int) -> int:
        """Return by how many bytes a bound is exceeded; 0 or less if none is.

        Parameters
        ----------
        charged, of_namespace
            What all namespaces occupy together, and this one.
        """
        over = charged - self.capacity if self.capacity else -_MANY
        return max(over, of_namespace - self.quota) if self.quota else over

    def excess(self, charged: int, of_namespace: int, *, collecting: bool = False, waiting: int = 0) -> int:
        """Return how many bytes must go until `low` is reached; 0 up to `high`, unless collection has begun.

        Parameters
        ----------
        charged, of_namespace
            As for `over`.
        collecting
            Whether it has begun, and goes on to `low`.
        waiting
            Bytes of the largest item that somebody waits to reserve; 0: nobody waits. If somebody does, collection
            begins below `high`, and goes on below `low` if the item would not fit.
        """
        if any(bound and waiting > bound for bound in (self.capacity, self.quota)):
            waiting = 0  # it will never fit: nothing goes for it
        return max(
            _excess(bound, have, self.low if collecting or waiting else self.high, self.low, waiting)
            for bound, have in ((self.capacity, charged), (self.quota, of_namespace))
        )

    def below_mark(self, free: int, *, collecting: bool = False, waiting: int = 0) -> int:
        """Return how many bytes must go so that `free` bytes of a file system become the watermark and a little more.

        0 if they are the watermark, and `waiting` bytes more, unless collection has begun.
        """
        if not self.watermark:
            return 0
        wanted = self.watermark + max(waiting, self.watermark // 16)
        return 0 if free >= (wanted if collecting else self.watermark + waiting) else wanted - free


def _excess(bound: int, have: int, begin: float, end: float, waiting: int) -> int:
    if not bound or (have <= bound * begin and have + waiting <= bound):
        return 0
    return max(0, have - int(bound * end), have + waiting - bound)


_MANY: Final = 1 << 62
