"""What tests of slabs share: slots on the disk, looked at and written past the store."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ucm_async as ucm
from ucm_async import Status
from ucm_async.types import U8, Bools

PAGE = 4096
MAGIC = b"UCMKVBLK"
GONE = b"UCMGONE!"


@dataclass(frozen=True)
class RawSlot:
    """A slot as it lies on the disk."""

    path: Path
    offset: int
    nbytes: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.nbytes)

    def write(self, content: bytes, at: int = 0) -> None:
        with self.path.open("r+b") as file:
            file.seek(self.offset + at)
            file.write(content)


def slots_below(directory: Path) -> Iterator[RawSlot]:
    """Every slot of every segment below a directory, as the segments' first pages tell them."""
    for path in sorted(directory.glob("**/slab/*.slab")):
        with path.open("rb") as file:
            page = file.read(PAGE)
        slots, nbytes = int.from_bytes(page[36:40], "little"), int.from_bytes(page[40:48], "little")
        for number in range(slots):
            yield RawSlot(path, PAGE + number * nbytes, nbytes)


def find_block(directory: Path, block_id: bytes) -> RawSlot | None:
    """The slot whose header names the block; there is at most one."""
    found = []
    for slot in slots_below(directory):
        with slot.path.open("rb") as file:
            file.seek(slot.offset)
            head = file.read(32)
        if head[:8] == MAGIC and head[16:] == block_id:
            found.append(slot)
    assert len(found) <= 1
    return found[0] if found else None


# ---- small stores

BLOCK = 16 << 10
SLOT = BLOCK + PAGE
GIB = 1 << 30


def keys(directory: Path | str, **changes: Any) -> dict[str, Any]:
    """Keys of a store of small blocks; `capacity` is in bytes of slots, so that segments hold a sixteenth of it."""
    if "capacity" in changes:
        changes["posix_capacity_gb"] = changes.pop("capacity") * SLOT / GIB
    return {
        "storage_backends": [str(directory)],
        "block_size": BLOCK,
        "shard_size": BLOCK // 4,
        "namespace": "slab",
        "staging_buffer_gb": 4 / 1024,
        "io_depth": 32,
        "io_threads": 2,
        "posix_capacity_gb": 512 * SLOT / GIB,
    } | changes


def content(ids: U8, nbytes: int = BLOCK) -> U8:
    """The bytes of blocks, uint8 (n, nbytes): they follow from the ids."""
    out = np.empty((len(ids), nbytes), dtype=np.uint8)
    for row, one in enumerate(ids):
        out[row] = np.random.default_rng(int.from_bytes(one.tobytes(), "little")).integers(0, 256, nbytes, np.uint8)
    return out


async def dump(store: ucm.Store, first: int, count: int) -> Bools:
    """Dump blocks by number; returns which were taken, the others for want of space."""
    ids = ucm.block_ids(range(first, first + count))
    result = await store.dump(ids, None, content(ids))
    assert set(result.status.tolist()) <= {Status.OK, Status.NO_SPACE}, dict(result.failures)
    return result.ok


async def check(store: ucm.Store, first: int, count: int, allowed: Collection[Status] = (Status.MISS,)) -> Bools:
    """Load blocks by number: what comes is right; returns which came."""
    ids = ucm.block_ids(range(first, first + count))
    out = np.zeros((count, BLOCK), dtype=np.uint8)
    result = await store.load(ids, None, out)
    assert (out[result.ok] == content(ids)[result.ok]).all()
    assert set(result.status.tolist()) <= {Status.OK, *allowed}, dict(result.failures)
    return result.ok


def stage_statistics(store: ucm.Store) -> dict[str, Any]:
    return dict(store.statistics().pipeline["Slab"]["stage"])


def slot_counts(store: ucm.Store) -> dict[str, int]:
    """Slots by state."""
    (slab,) = stage_statistics(store)["slabs"]
    return dict(slab["slots"])


def data_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*/slab/*.slab")) + sorted(directory.glob("*/quarantine/*"))


def disk_usage(directory: Path) -> int:
    """Bytes that the data files occupy, as ``du`` tells them."""
    total = 0
    for path in data_files(directory):
        with suppress(FileNotFoundError):
            about = path.stat()
            total += max(about.st_size, about.st_blocks * 512 // PAGE * PAGE)
    return total


def home(directory: Path) -> Path:
    (found,) = directory.glob("*/slab")
    return found
