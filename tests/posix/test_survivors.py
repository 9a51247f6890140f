"""Files that are older than the machine's start, and what of them a power cut may have torn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async.engines.system import System
from ucm_async.types import U8

BLOCK = 1 << 16
PIPELINES = ["Posix", "Compress|Posix", "Cache|Posix", "Cache|Compress|Posix"]


def keys(place: Path) -> dict[str, Any]:
    return {
        "storage_backends": [str(place)],
        "block_size": BLOCK,
        "shard_size": BLOCK // 4,
        "dtype": "bfloat16",
        "cache_buffer_capacity_gb": 1 / 128,
        "share_buffer_enable": False,
    }


def content(ids: U8) -> U8:
    return np.random.default_rng(7).integers(0, 99, (len(ids), BLOCK), dtype=np.uint8)


def files(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("*/??/*") if len(path.name) == 32)


def tear(path: Path) -> None:
    """Keep the name, the size and the header, as a power cut does whose journal was faster than the data."""
    raw = bytearray(path.read_bytes())
    raw[4096:] = bytes(len(raw) - 4096)
    path.write_bytes(raw)


@pytest.fixture
def restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has started since."""
    monkeypatch.setattr(System, "started", lambda self: self.now() + 60)


@pytest.mark.parametrize("durability", ["stored", "synced"])
@pytest.mark.parametrize("pipeline", PIPELINES)
async def test_a_dump_heals_what_was_torn(
    pipeline: str, durability: ucm.types.Durability, tmp_path: Path, restarted: None
) -> None:
    ids = ucm.block_ids(range(12))
    blocks = content(ids)
    async with ucm.open_store(pipeline, **keys(tmp_path)) as store:
        assert (await store.dump(ids, None, blocks)).ok.all()
    paths = files(tmp_path)
    for path in paths[:5]:
        tear(path)
    whole = {path: path.stat().st_ino for path in paths[5:]}
    async with ucm.open_store(pipeline, **keys(tmp_path)) as store:
        assert (await store.dump(ids, None, blocks, durability=durability)).ok.all()
    async with ucm.open_store(pipeline, **keys(tmp_path)) as store:
        out = np.zeros_like(blocks)
        assert (await store.load(ids, None, out)).ok.all()
        assert np.array_equal(out, blocks)
    assert {path: path.stat().st_ino for path in paths[5:]} == whole, "a whole one is not written again"
    assert len(list(tmp_path.glob("*/quarantine/*"))) == 5


async def test_each_is_read_once(tmp_path: Path, restarted: None) -> None:
    ids = ucm.block_ids(range(12))
    async with ucm.open_store("Posix", **keys(tmp_path)) as store:
        await store.dump(ids, None, content(ids))
        for _ in range(3):
            assert (await store.dump(ids, None, content(ids))).ok.all()
        dumps = store.statistics().pipeline["Posix"]["stage"]["dump"]["counts"]
        assert dumps["looked_at"] == 12


async def test_younger_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "started", lambda self: self.now() - 60)
    ids = ucm.block_ids(range(12))
    async with ucm.open_store("Posix", **keys(tmp_path)) as store:
        for _ in range(2):
            assert (await store.dump(ids, None, content(ids))).ok.all()
        assert "looked_at" not in store.statistics().pipeline["Posix"]["stage"]["dump"]["counts"]
