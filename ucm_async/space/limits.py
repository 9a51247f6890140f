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
        return cls(capacity=int(config.posix_capacity_gb * GIB))

    def with_marks(self, high: float, low: float) -> SpaceLimits:
        """Return the same bounds with other marks."""
        return replace(self, high=high, low=low)

    def excess(self, charged: int, of_namespace: int) -> int:
        """Return how many bytes must go until `low` is reached: 0 below `high`.

        Parameters
        ----------
        charged, of_namespace
            What all namespaces occupy together, and this one.
        """
        return max(_above(self.capacity, charged, self.high, self.low), _above(self.quota, of_namespace, self.high, self.low))


def _above(bound: int, charged: int, high: float, low: float) -> int:
    if not bound or charged <= bound * high:
        return 0
    return charged - int(bound * low)
