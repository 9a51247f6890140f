"""Corrupt files that several stores find at the same time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async.stages.posix.files import BlockFiles
from ucm_async.types import Status

BLOCK = 1 << 16
IDS = ucm.block_ids([1])


def spoil(place: Path, *, truncate: bool) -> None:
    (path,) = (path for path in place.glob("*/??/*") if len(path.name) == 32)
    raw = bytearray(path.read_bytes())
    raw[5000] ^= 1
    path.write_bytes(raw[:-4096] if truncate else raw)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("pipeline", ["Posix", "Compress|Posix"])
async def test_what_another_has_written_anew_stays(
    pipeline: str, truncate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reads the corrupt file; before it sets that aside, the other has, and the block is written again."""
    keys = {"storage_backends": [str(tmp_path)], "block_size": BLOCK, "shard_size": BLOCK, "dtype": "bfloat16"}
    block = np.random.default_rng(3).integers(0, 99, (1, BLOCK), dtype=np.uint8)
    out = np.zeros_like(block)
    quarantine = BlockFiles.quarantine
    waiting = True

    async def overtaken(self: BlockFiles, *args: Any, **keys: Any) -> Any:
        nonlocal waiting
        if waiting:
            waiting = False
            assert list((await other.load(IDS, None, out)).status) == [Status.CORRUPT]
            assert (await other.dump(IDS, None, block)).ok.all()
        return await quarantine(self, *args, **keys)

    async with ucm.open_store(pipeline, **keys) as one, ucm.open_store(pipeline, **keys) as other:
        assert (await one.dump(IDS, None, block)).ok.all()
        spoil(tmp_path, truncate=truncate)
        monkeypatch.setattr(BlockFiles, "quarantine", overtaken)
        assert list((await one.load(IDS, None, out)).status) == [Status.CORRUPT]
        assert not waiting
        for store in (other, one):
            assert (await store.load(IDS, None, out)).ok.all()
            assert np.array_equal(out, block)
