"""The Slab stage, batch by batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ucm_async.testing.stages import StageSuite


class SlabStageSuite(StageSuite):
    pipeline = "Slab"
    engine = "auto"
    direct: Any = "auto"
    backends = 1

    @pytest.fixture
    def store_keys(self, tmp_path: Path) -> dict[str, Any]:
        backends = [str(tmp_path / f"disk{i}") for i in range(self.backends)]
        return {
            "storage_backends": backends,
            "io_engine": self.engine,
            "io_direct": self.direct,
            "posix_capacity_gb": 2**-6,
        }


class TestSlab(SlabStageSuite):
    pass


class TestBuffered(SlabStageSuite):
    """Through the page cache."""

    direct = False


class TestSeveralBackends(SlabStageSuite):
    backends = 3
    engine = "psync"
