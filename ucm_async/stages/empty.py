"""The Empty stage: takes everything, keeps nothing. For measuring what lies above it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..abc import Batch, Stage
from ..types import U8, Bools, Status

__all__ = ["EmptyStage"]


class EmptyStage(Stage):
    """Every dump is OK, every load a MISS, nothing is ever found."""

    name: ClassVar[str] = "Empty"
    takes_encoded: ClassVar[bool] = True

    async def open(self) -> None:
        """Nothing to get ready."""
        self._loads = self._dumps = 0

    async def aclose(self) -> None:
        """Nothing to free."""

    async def load(self, batch: Batch) -> None:
        """Miss every row."""
        self._loads += len(batch)
        batch.report(np.arange(len(batch)), Status.MISS)

    async def dump(self, batch: Batch) -> None:
        """Accept and forget every row."""
        self._dumps += len(batch)
        batch.report(np.arange(len(batch)), Status.OK)

    async def lookup(self, ids: U8) -> Bools:
        """Find nothing."""
        return np.zeros(len(ids), dtype=np.bool_)

    async def delete(self, ids: U8) -> None:
        """Nothing is there."""

    def statistics(self) -> Mapping[str, Any]:
        """Count rows."""
        return {"rows_loaded": self._loads, "rows_dumped": self._dumps}
