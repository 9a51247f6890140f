"""A namespace's directory where there is no room for anything more."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async.engines.system import System

BLOCK = 1 << 16


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("pipeline", ["Posix", "Slab"])
async def test_the_note_for_people_can_wait(
    pipeline: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store opens without it, and a later one writes it."""
    keys = {"storage_backends": [str(tmp_path)], "block_size": BLOCK, "shard_size": BLOCK, "posix_capacity_gb": 1 / 64}
    ids, block = ucm.block_ids([1]), np.full((1, BLOCK), 7, dtype=np.uint8)
    write_whole = System.write_whole

    def no_room(self: System, path: Path, content: bytes) -> None:
        if path.name == "namespace.json":
            raise OSError(number, "no room")
        write_whole(self, path, content)

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(System, "write_whole", no_room)
        async with ucm.open_store(pipeline, **keys) as store:
            assert (await store.dump(ids, None, block)).ok.all()
    assert "namespace.json: no room" in caplog.text
    assert not list(tmp_path.glob("*/namespace.json"))
    async with ucm.open_store(pipeline, **keys) as store:
        out = np.zeros_like(block)
        assert (await store.load(ids, None, out)).ok.all()
        assert np.array_equal(out, block)
    assert len(list(tmp_path.glob("*/namespace.json"))) == 1
