"""The Cache stage, batch by batch, over each of the stages that it is made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ucm_async.testing.stages import StageSuite

from .support import cache_keys


class CacheStageSuite(StageSuite):
    pipeline = "Cache|Fake"
    blocks = 400
    shared = True

    @pytest.fixture
    def store_keys(self, tmp_path: Path) -> dict[str, Any]:
        keys = cache_keys(self.blocks, share_buffer_enable=self.shared)
        if self.pipeline.endswith("Posix"):
            keys |= {"storage_backends": [str(tmp_path)], "io_engine": "psync"}
        return keys


class TestFake(CacheStageSuite):
    pass


class TestEmpty(CacheStageSuite):
    pipeline = "Cache|Empty"


class TestPosix(CacheStageSuite):
    pipeline = "Cache|Posix"


class TestPrivate(CacheStageSuite):
    """Memory of this process alone."""

    shared = False


class TestFourSlots(CacheStageSuite):
    """So few that nearly everything goes round the cache, or waits."""

    blocks = 4


class TestOneQueue(CacheStageSuite):
    """The switch for comparisons."""

    @pytest.fixture
    def store_keys(self) -> dict[str, Any]:
        return cache_keys(cache_shared_queue=True)
