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

    def excess(self, charged: int, of_namespace: int, waiting: int = 0) -> int:
        """Return how many bytes must go until `low` is reached: 0 below `high`.

        Parameters
        ----------
        charged, of_namespace
            As for `over`.
        waiting
            Bytes of the largest item that somebody waits to reserve; 0: nobody waits. If somebody does, collection goes
            on below `high`, to `low`, and further if the item would not fit.
        """
        if any(bound and waiting > bound for bound in (self.capacity, self.quota)):
            waiting = 0  # it will never fit: nothing goes for it
        parts = ((self.capacity, charged), (self.quota, of_namespace))
        return max(self._excess(bound, have, waiting) for bound, have in parts)

    def below_mark(self, free: int, waiting: int = 0) -> int:
        """Return how many bytes must go so that `free` bytes of a file system become the watermark and a little more.

        0 if they are the watermark, and `waiting` bytes more.
        """
        if not self.watermark or free >= self.watermark + waiting:
            return 0
        return self.watermark + max(waiting, self.watermark // 16) - free

    def _excess(self, bound: int, charged: int, waiting: int) -> int:
        if not bound or (charged <= bound * self.high and not waiting):
            return 0
        return max(0, charged - int(bound * self.low), charged + waiting - bound)


_MANY: Final = 1 << 62
