"""What the fault tests of the Cache share: small caches, and a look at their shared memory from outside."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import ucm_async as ucm
from tests.cache.support import fresh_id
from tests.faults.support import BLOCK, SHARD, Array, keys
from tests.native.tables import STATES, Table, check
from ucm_async.engines.processes import start_time
from ucm_async.native import BlockTable
from ucm_async.stages.cache.segment import DIRECTORY, HEADER_BYTES, PREFIX, header_of

LONG = os.environ.get("UCM_ASYNC_CACHE_FAULT_ROUNDS")
SEED = int(os.environ.get("UCM_ASYNC_CACHE_FAULT_SEED", "0"))
"""Another one makes other rounds: a long run can be had in parts."""
SLOTS = 32
PATIENCE_S = 30.0
SLOTS_GB = BLOCK / (1 << 30)
"""One slot, in the unit of ``cache_buffer_capacity_gb``."""


def rounds(default: int) -> int:
    """How many; ``UCM_ASYNC_CACHE_FAULT_ROUNDS`` overrides what is quick enough for every day."""
    return int(LONG or default)


def cache_keys(directory: Path | str | None = None, *, slots: int = SLOTS, **changes: Any) -> dict[str, Any]:
    """Keys of a small store with a cache of its own, of so many slots."""
    return (
        keys(directory or "")
        | {"storage_backends": [] if directory is None else [str(directory)]}
        | {"unique_id": fresh_id(), "cache_buffer_capacity_gb": slots * SLOTS_GB, "io_engine": "psync"}
        | changes
    )


def segment_path(unique_id: str) -> Path:
    return Path(DIRECTORY) / f"{PREFIX}{unique_id}"


def inode(unique_id: str) -> int:
    """Which segment it is; 0 if there is none."""
    try:
        return segment_path(unique_id).stat().st_ino
    except FileNotFoundError:
        return 0


class Inspected(Table):
    """The table of a segment, looked at by somebody who does not live in it."""

    def __init__(self, memory: mmap.mmap, header: dict[str, Any]) -> None:
        self.memory = memory
        self.slots = header["slots"]
        self.arena_offset = header["arena_offset"]
        self.raw = BlockTable(memory, header["slots"], header["policy"])

    def pids(self) -> set[int]:
        return {pid for _, pid, _ in self.raw.processes()}

    def dead(self) -> set[int]:
        """Pids of processes that are in, and have ended."""
        return {pid for _, pid, started in self.raw.processes() if start_time(pid) != started}

    def states(self) -> Counter[str]:
        return Counter(STATES[state] for state in self.entries()["state"].tolist())

    def ids_in(self, state: str, *, dirty: bool = False) -> Array:
        """Ids of slots in that state, uint8 (n, 16); of READY ones those that are, or are not, `dirty`."""
        entries = self.entries()
        chosen = entries[(entries["state"] == STATES.index(state)) & (entries["flags"].astype(bool) == dirty)]
        return ucm.block_ids(one.tobytes() for one in chosen["id"]) if len(chosen) else np.zeros((0, 16), np.uint8)

    def in_use(self) -> dict[int, str]:
        """Slots that are held, or neither free nor READY. FAILED and ORPHAN ones that nobody holds are free."""
        return {
            slot: f"{STATES[entry['state']]} held by {int(entry['holders']):b}"
            for slot, entry in enumerate(self.entries())
            if entry["holders"] or STATES[entry["state"]] in ("filling", "evicting")
        }

    def check_at_rest(self) -> None:
        """Every slot is free or READY, with no lease left; index and lists agree with the slots."""
        assert not self.in_use()
        check(self, lazy=True)


@contextlib.contextmanager
def inspect(unique_id: str) -> Iterator[Inspected]:
    """Map a segment; it can still be looked at when its name is gone."""
    fd = os.open(segment_path(unique_id), os.O_RDWR | os.O_CLOEXEC)
    try:
        header = header_of(os.pread(fd, HEADER_BYTES, 0))
        table = Inspected(mmap.mmap(fd, os.fstat(fd).st_size), header)
    finally:
        os.close(fd)
    yield table


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def shard_rows(ids: Array, generator: np.random.Generator) -> tuple[Array, Array]:
    """Ids and indexes of every shard of `ids`, in random order."""
    shards = BLOCK // SHARD
    order = generator.permutation(len(ids) * shards)
    return np.ascontiguousarray(np.repeat(ids, shards, axis=0)[order]), np.tile(np.arange(shards), len(ids))[order]
