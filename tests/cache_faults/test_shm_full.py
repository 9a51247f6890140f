"""/dev/shm has no room: for real, in a mount namespace with a small one, and as far as statvfs says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import ucm_async as ucm
from ucm_async.stages.cache import segment

from .conftest import Starter
from .small_shm import SCENARIOS, SHM_BYTES
from .support import cache_keys, inode

REPOSITORY = Path(__file__).parents[2]
UNSHARE = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
MOUNT = f"mount -t tmpfs -o size={SHM_BYTES},mode=1777 tmpfs {segment.DIRECTORY}"


@pytest.fixture(scope="module")
def small_shm() -> list[str]:
    """The beginning of a command line that runs the rest of it with a small /dev/shm."""
    tried = subprocess.run([*UNSHARE, "sh", "-c", MOUNT], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"nothing can be mounted here: {tried.stderr.strip()}")
    return [*UNSHARE, "sh", "-c", f'{MOUNT} && exec "$@"', "sh"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_is_small(small_shm: list[str], scenario: str) -> None:
    command = [*small_shm, sys.executable, "-W", "error", "-m", "tests.cache_faults.small_shm", scenario]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


async def test_it_is_said_to_be_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where nothing can be mounted."""
    keys = cache_keys()
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=4096))
    with pytest.raises(ucm.ConfigError, match=f"cache_buffer_capacity_gb: .* {segment.DIRECTORY} has 12288 bytes left"):
        await ucm.open_store("Cache|Fake", **keys)
    assert not inode(keys["unique_id"])
    async with ucm.open_store("Cache|Fake", **keys | {"share_buffer_enable": False}):
        pass


def test_there_is_no_memory(start: Starter) -> None:
    """For a cache of one process alone."""
    keys = cache_keys(slots=4096, share_buffer_enable=False)
    child = start("puppet", pipeline="Cache|Fake", keys=keys, address_space=128 << 20)
    (why,) = child.expect("refused")
    assert "cache_buffer_capacity_gb: 4096 slots" in why and "there is no memory for it" in why
    child.end()


@pytest.mark.parametrize("share", [True, False])
async def test_more_slots_than_a_table_has(share: bool) -> None:
    with pytest.raises(ucm.ConfigError, match=r"cache_buffer_capacity_gb"):
        await ucm.open_store("Cache|Fake", **cache_keys(slots=1 << 32, share_buffer_enable=share))
