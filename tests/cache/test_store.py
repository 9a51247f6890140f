"""Stores with a Cache, through the suites for stores."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from tests.store.test_posix import PosixKeys
from ucm_async import StoreConfig
from ucm_async.stages.cache.segment import open_segment, segment_name
from ucm_async.stages.cache.transbuffer import geometry_of
from ucm_async.testing.stores import BytesTests, IndexTests, PersistentStoreSuite, StoreSuite

from .support import cache_keys, fresh_id


class TestFake(StoreSuite):
    pipeline = "Cache|Fake"

    @pytest.fixture
    def store_keys(self) -> dict[str, Any]:
        return cache_keys()


class TestEmpty(IndexTests):
    """As long as nothing is evicted, a cache alone does."""

    pipeline = "Cache|Empty"

    @pytest.fixture
    def store_keys(self) -> dict[str, Any]:
        return cache_keys()


class TestSixSlots(BytesTests, IndexTests):
    """Every test with a cache that is too small for it."""

    pipeline = "Cache|Fake"

    @pytest.fixture
    def store_keys(self) -> dict[str, Any]:
        return cache_keys(6, cache_policy="lru")


class TestPosix(PosixKeys, PersistentStoreSuite):
    pipeline = "Cache|Posix"
    engine: ClassVar[str] = "psync"

    @pytest.fixture
    def store_keys(self, tmp_path: Path) -> dict[str, Any]:
        """The segment is named by the namespace here, so that another namespace has another one."""
        posix = {"storage_backends": [str(tmp_path)], "io_engine": self.engine}
        return cache_keys(namespace=fresh_id(), unique_id="") | posix

    def raw_write(self, keys: dict[str, Any], block_id: bytes, stored: bytes) -> None:
        """What the cache still has would hide what is below."""
        super().raw_write(keys, block_id, stored)
        dropping = Thread(target=drop_from_the_cache, args=(StoreConfig(**keys), block_id))
        dropping.start()
        dropping.join()


def drop_from_the_cache(config: StoreConfig, block_id: bytes) -> None:
    geometry = geometry_of(config)
    segment = open_segment(segment_name("", geometry.fingerprint), geometry)
    segment.table.drop(block_id)
    segment.close()
