"""The Compress stage, batch by batch and in whole stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.cache.support import cache_keys
from tests.store.test_posix import find_block
from ucm_async import Status, open_store
from ucm_async.blocks.header import ENTRY, HEADER
from ucm_async.native import NATIVE
from ucm_async.testing.stages import StageSuite
from ucm_async.testing.stores import (
    BLOCK_BYTES,
    SHARD_BYTES,
    SHARDS,
    BytesTests,
    IndexTests,
    PersistentStoreSuite,
    all_ok,
    make_blocks,
)

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


@pytest.mark.skipif(not NATIVE, reason="Slab needs the extension")
class TestAboveSlab(CompressKeys, StageSuite):
    pipeline = "Compress|Slab"

    @pytest.fixture
    def store_keys(self, tmp_path: Path) -> dict[str, Any]:
        return {"storage_backends": [str(tmp_path)], "compress_codec": self.codec, "posix_capacity_gb": 0.03}


@pytest.mark.skipif(not NATIVE, reason="Slab needs the extension")
async def test_a_slab_is_read_from_its_headers(tmp_path: Path) -> None:
    """Encoded blocks among them; and a store of another codec, or none, reads what it can."""
    keys = {"storage_backends": [str(tmp_path)], "block_size": BLOCK_BYTES, "shard_size": SHARD_BYTES}
    keys |= {"posix_capacity_gb": 0.03, "staging_buffer_gb": 0.002, "namespace": "mixed"}
    ids, data = make_blocks(8)
    async with open_store("Slab", **keys) as store:
        assert all_ok(await store.dump(ids[:2], None, data[:2]))
    async with open_store("Compress|Slab", compress_codec="zstd", **keys) as store:
        assert all_ok(await store.dump(ids[2:], None, data[2:]))
    for checkpoint in tmp_path.glob("*/*checkpoint*"):
        checkpoint.unlink()
    async with open_store("Cache|Compress|Slab", **cache_keys(16, **keys)) as store:
        assert (await store.lookup(ids)).all()
        back = np.zeros_like(data)
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()
    async with open_store("Slab", **keys) as plain:
        result = await plain.load(ids, None, back)
        assert result.status.tolist() == [Status.OK] * 2 + [Status.CORRUPT] * 6
        assert "codec 'zstd'" in result.failures[3].reason
    async with open_store("Compress|Slab", **keys) as store:
        back[:] = 0
        assert all_ok(await store.load(ids, None, back))
        assert (back == data).all()


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
