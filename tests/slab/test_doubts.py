"""Slots that were filled before the machine started, and what of them a power cut may have torn."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async.engines.system import System

from .support import BLOCK, content, keys, stage_statistics


@pytest.fixture
def restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has started since."""
    monkeypatch.setattr(System, "started", lambda self: self.now() + 60)


def one_file(place: Path, pattern: str) -> Path:
    (found,) = place.glob(pattern)
    return found


def tear(place: Path, block: bytes) -> None:
    """Lose the bytes of a block, and keep its header, as a power cut may."""
    segment = one_file(place, "*/slab/*.slab")
    raw = bytearray(segment.read_bytes())
    at = raw.index(block)
    raw[at : at + BLOCK] = bytes(BLOCK)
    segment.write_bytes(raw)


@pytest.mark.parametrize("from_headers", [False, True], ids=["checkpoint", "headers"])
async def test_a_dump_heals_what_was_torn(from_headers: bool, tmp_path: Path, restarted: None) -> None:
    ids = ucm.block_ids(range(12))
    blocks = content(ids)
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert (await store.dump(ids, None, blocks)).ok.all()
    for block in blocks[:5]:
        await asyncio.to_thread(tear, tmp_path, block.tobytes())
    if from_headers:
        await asyncio.to_thread(one_file(tmp_path, "*/slab/checkpoint").unlink)
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        for _ in range(2):  # each is looked at once, and what was written anew as well
            assert (await store.dump(ids, None, blocks, durability="synced")).ok.all()
        counts = stage_statistics(store)["dump"]["counts"]
        assert counts["looked_at"] == 12 + 5
        out = np.zeros_like(blocks)
        assert (await store.load(ids, None, out)).ok.all()
        assert np.array_equal(out, blocks)
    assert len(list(tmp_path.glob("*/quarantine/*"))) == 5


async def test_of_this_start_nothing_is_doubtful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "started", lambda self: self.now() - 60)
    ids = ucm.block_ids(range(12))
    for _ in range(2):
        async with ucm.open_store("Slab", **keys(tmp_path)) as store:
            assert (await store.dump(ids, None, content(ids))).ok.all()
            assert "looked_at" not in stage_statistics(store)["dump"]["counts"]


async def test_an_old_mark_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sync had lost before the machine was started is not there any more, so a look is enough."""
    ids = ucm.block_ids(range(12))
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert (await store.dump(ids, None, content(ids))).ok.all()
        syncs = store._pipeline.first.stage._dumper._syncs  # type: ignore[union-attr, attr-defined]
        pool = store._pipeline.first.stage._transfers[1].pool  # type: ignore[union-attr, attr-defined]
        await syncs._distrust(0, 0, pool)
    checkpoint = one_file(tmp_path, "*/slab/checkpoint")
    for restarted_s, anew in ((-60, 12), (60, 0)):
        await asyncio.to_thread(checkpoint.unlink)
        monkeypatch.setattr(System, "started", lambda self, s=restarted_s: self.now() + s)
        async with ucm.open_store("Slab", **keys(tmp_path)) as store:
            assert (await store.dump(ids, None, content(ids), durability="synced")).ok.all()
            counts = stage_statistics(store)["dump"]["counts"]
            assert counts.get("commits", 0) == anew
            assert counts["looked_at"] == 12
