"""What the tests of space share: small stores, what is on the disk, and file systems whose use can be read off."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async.blocks.header import ENTRY, HEADER, MAGIC
from ucm_async.stages.posix import PosixStage
from ucm_async.types import U8

BLOCK = 16 << 10
FILE = BLOCK + 4096
GIB = 1 << 30


def keys(directory: Path | str, **changes: Any) -> dict[str, Any]:
    """Keys of a store of small blocks; `capacity` is in blocks."""
    if "capacity" in changes:
        changes["posix_capacity_gb"] = changes.pop("capacity") * FILE / GIB
    if "quota" in changes:
        changes["namespace_quota_gb"] = changes.pop("quota") * FILE / GIB
    return {
        "storage_backends": [str(directory)],
        "block_size": BLOCK,
        "shard_size": BLOCK // 4,
        "namespace": "space",
        "staging_buffer_gb": 4 / 1024,
        "io_depth": 32,
        "io_threads": 2,
    } | changes


def content(ids: U8) -> U8:
    """The bytes of blocks, uint8 (n, BLOCK): they follow from the ids."""
    out = np.empty((len(ids), BLOCK), dtype=np.uint8)
    for row, one in enumerate(ids):
        out[row] = np.random.default_rng(int.from_bytes(one.tobytes(), "little")).integers(0, 256, BLOCK, np.uint8)
    return out


def stage_of(store: ucm.Store) -> PosixStage:
    assert store._pipeline is not None
    stage = store._pipeline.first.stage
    assert isinstance(stage, PosixStage)
    return stage


def space_of(store: ucm.Store) -> dict[str, Any]:
    """What the store says of its space."""
    return dict(store.statistics().pipeline["Posix"]["stage"]["space"])


def block_files(directory: Path) -> list[Path]:
    """Committed blocks and what was set aside, of all namespaces."""
    return [path for path in directory.glob("*/*/*") if len(path.name) == 32 and path.parent.name != "writers"]


def disk_usage(directory: Path) -> int:
    """As ``du`` tells it: the sectors of the data files. One that is collected meanwhile has none."""
    total = 0
    for path in block_files(directory):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def header_usage(directory: Path) -> int:
    """The sum of what the headers say that their files are long, each padded to whole pages."""
    total = 0
    for path in block_files(directory):
        raw = path.read_bytes()[:4096]
        head = np.frombuffer(raw, dtype=HEADER, count=1)[0]
        assert bytes(head["magic"]) == MAGIC, path
        entries = np.frombuffer(raw, dtype=ENTRY, offset=HEADER.itemsize, count=int(head["shard_count"]))
        end = int((entries["offset"] + entries["stored_length"]).max())
        total += -(-end // 4096) * 4096
    return total


async def check_usage(store: ucm.Store, directory: Path) -> int:
    """Usage is what is on the disk, to the byte; returns it."""
    await stage_of(store)._space.manager.counted()
    about = space_of(store)
    assert about["exact"]
    assert about["used_bytes"] == disk_usage(directory) == header_usage(directory)
    return int(about["used_bytes"])


@contextmanager
def mounted(place: Path, nbytes: int) -> Iterator[Path]:
    """A tmpfs of so many bytes: the kernel knows at every instant how much of it is used."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def used_of(place: Path) -> int:
    about = os.statvfs(place)
    return (about.f_blocks - about.f_bfree) * about.f_frsize


class Watch:
    """Looks at the use of a mounted file system all the time; the block files' share is what exceeds `others`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.peak = 0
        self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.0002):
            self.peak = max(self.peak, used_of(self.place))
            self.looks += 1

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


SMALL_FILES = 16 * 4096
"""Notes, locks and hotness: what is on the disk beside the data, in these tests."""
