"""The Compress stage, batch by batch and in whole stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.cache.support import cache_keys
from tests.store.test_posix import find_block
from ucm_async.blocks.header import ENTRY, HEADER
from ucm_async.testing.stages import StageSuite
from ucm_async.testing.stores import SHARDS, BytesTests, IndexTests, PersistentStoreSuite

PAGE = 4096


class CompressKeys:
    """What a suite must know of Compress above Posix."""

    pipeline: ClassVar[str] = "Compress|Posix"
    codec: ClassVar[str] = "auto"

    @pytest.fixture
    def store_keys(self, tmp_path: Path) -> dict[str, Any]:
        return {"storage_backends": [str(tmp_path)], "compress_codec": self.codec, "compress_threads": 2}


class TestStage(CompressKeys, StageSuite):
    pass


class TestStageOfForeignCodec(CompressKeys, StageSuite):
    codec = "zstd"


class TestStore(CompressKeys, PersistentStoreSuite):
    """Everything; the bytes of a block are those without the padding, which no checksum covers."""

    def raw_read(self, keys: dict[str, Any], block_id: bytes) -> bytes | None:
        found = find_block(keys, block_id)
        return used_part(found.read_bytes()) if found else None

    def raw_write(self, keys: dict[str, Any], block_id: bytes, stored: bytes) -> None:
        found = find_block(keys, block_id)
        assert found is not None
        whole = len(stored) == len(used_part(found.read_bytes()))
        found.write_bytes(stored.ljust(-(-len(stored) // PAGE) * PAGE, b"\0") if whole else stored)


class TestCacheAbove(CompressKeys, BytesTests, IndexTests):
    pipeline = "Cache|Compress|Posix"

    @pytest.fixture
    def store_keys(self, tmp_path: Path) -> dict[str, Any]:
        return {"storage_backends": [str(tmp_path)], "compress_codec": self.codec} | cache_keys()


def used_part(stored: bytes) -> bytes:
    """The bytes of a block's file up to the end of its last shard; all, if that cannot be told."""
    if len(stored) < HEADER.itemsize + SHARDS * ENTRY.itemsize:
        return stored
    entries = np.frombuffer(stored, ENTRY, SHARDS, HEADER.itemsize)
    return stored[: int((entries["offset"] + entries["stored_length"]).max())]
