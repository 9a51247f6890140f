"""What `open_store` tells while it opens a store."""

from __future__ import annotations

from pathlib import Path

import pytest

import ucm_async as ucm
from ucm_async import blocking
from ucm_async.native import NATIVE

Told = list[tuple[str, int, int]]

CACHE = {"block_size": 1 << 20, "cache_buffer_capacity_gb": 1 / 128, "share_buffer_enable": False}


def whole(told: Told, what: str) -> bool:
    """Whether the steps of one thing went up to its end."""
    steps = [(done, total) for name, done, total in told if name == what]
    assert steps == sorted(steps)
    return bool(steps) and steps[-1][0] == steps[-1][1] > 0


@pytest.mark.skipif(not NATIVE, reason="the Cache needs the extension")
async def test_the_memory_of_a_cache() -> None:
    told: Told = []
    async with ucm.open_store("Cache|Empty", on_progress=lambda *some: told.append(some), **CACHE):
        assert whole(told, "bytes of the cache made")


@pytest.mark.skipif(not NATIVE, reason="the Cache needs the extension")
def test_for_threads() -> None:
    told: Told = []
    with blocking.open_store("Cache|Empty", on_progress=lambda *some: told.append(some), **CACHE):
        assert whole(told, "bytes of the cache made")


async def test_files_that_are_counted(tmp_path: Path) -> None:
    told: Told = []
    keys = {"storage_backends": [str(tmp_path)], "block_size": 4096, "recover": "strict"}
    async with ucm.open_store("Posix", on_progress=lambda *some: told.append(some), **keys):
        assert not told, "a new directory has nothing to count"
    for account in (one for one in tmp_path.iterdir() if one.is_file()):  # as a crash of the machine loses it
        account.unlink()
    async with ucm.open_store("Posix", on_progress=lambda *some: told.append(some), **keys):
        assert whole(told, "directories counted")
