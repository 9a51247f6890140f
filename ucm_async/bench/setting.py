"""What the cases of the benchmarks share: where, with what, how often."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import UcmError
from ..types import U8, block_ids
from .blocks import BlockMaker
from .limit import LimitProgram
from .measure import Sample, stopwatch
from .memory import huge_rows
from .places import scratch_directory

if TYPE_CHECKING:
    from ..store import Store
    from ..tasks import TaskResult

__all__ = [
    "BenchError",
    "Setting",
    "Shape",
    "dump_once",
    "load_once",
    "numbered_ids",
    "prepare_blocks",
    "require_ok",
    "size_name",
    "write_files",
]

_KIB: Final = 1024


class BenchError(UcmError):
    """The benchmark cannot be run here, or the store did not do what it is timed at."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many blocks of how many bytes."""

    block_bytes: int
    blocks: int

    def __str__(self) -> str:
        return f"{self.blocks} x {size_name(self.block_bytes)}"

    @property
    def total_bytes(self) -> int:
        """Bytes of all of them."""
        return self.block_bytes * self.blocks


@dataclass(frozen=True, slots=True)
class Setting:
    """One run of the benchmark.

    Attributes
    ----------
    directory
        Everything is written below it; on the file system that is measured.
    shapes
        Of the cases that move many blocks.
    rounds
        How often each contestant runs, after a warm-up.
    per_call
        Blocks of one ``load`` or ``dump``; None for all in one.
    engine
        The store's ``io_engine``; None for its default.
    direct
        O_DIRECT, for the store and for what it is compared with.
    reader, creator
        C programs to compare loads and dumps with; None where there is none.
    read_depth, create_threads
        Requests in flight, and threads, of these.
    busy_blocks
        1 MiB blocks that are loaded, and dumped, while a ticker runs.
    """

    directory: Path
    shapes: Sequence[Shape]
    rounds: int = 5
    per_call: int | None = None
    engine: str | None = None
    direct: bool = True
    reader: LimitProgram | None = None
    creator: LimitProgram | None = None
    read_depth: int = 64
    create_threads: int = 8
    busy_blocks: int = 1024

    def open_store(
        self, folder: Path, block_bytes: int, pipeline: str = "Posix", **keys: Any
    ) -> AbstractAsyncContextManager[Store]:
        """Open a store of whole blocks in `folder`."""
        from ..store import open_store  # noqa: PLC0415  (the import is one of the things measured)

        return open_store(pipeline, **self.store_keys(folder, block_bytes), **keys)

    def store_keys(self, folder: Path, block_bytes: int) -> dict[str, Any]:
        """Return the keys of a store of whole blocks in `folder`."""
        keys: dict[str, Any] = {} if self.engine is None else {"io_engine": self.engine}
        return keys | {
            "storage_backends": [str(folder)],
            "block_size": block_bytes,
            "shard_size": block_bytes,
            "namespace": "bench",
            "io_direct": self.direct,
            "timeout_ms": 0,
        }

    @asynccontextmanager
    async def folder(self, name: str, need_bytes: int = 0) -> AsyncIterator[Path]:
        """Make a directory for one case and remove it afterwards.

        Raises
        ------
        BenchError
            The file system has less than `need_bytes` free.
        """
        place = scratch_directory(self.directory, f"{name}-")

        def enter() -> Path:
            free = shutil.disk_usage(self.directory).free
            if free < need_bytes:
                have = f"{free / 1e9:.1f} GB are free in {self.directory}"
                raise BenchError(f"{name} needs {need_bytes / 1e9:.1f} GB, {have}; lower --rounds or --shape")
            return place.__enter__()

        path = await asyncio.to_thread(enter)
        try:
            yield path
        finally:
            await asyncio.to_thread(place.__exit__, None, None, None)

    def parts(self, blocks: int) -> list[slice]:
        """Cut `blocks` rows into calls."""
        step = self.per_call or blocks
        return [slice(start, min(start + step, blocks)) for start in range(0, blocks, step)]


async def load_once(setting: Setting, store: Store, ids: U8, memory: U8) -> Sample:
    """Load `ids` into `memory`, all calls at once, and time it.

    Raises
    ------
    BenchError
        A row failed.
    """
    with stopwatch() as watch:
        tasks = [store.load(ids[part], None, memory[part]) for part in setting.parts(len(ids))]
        results = [await task for task in tasks]
    require_ok("load", results)
    return Sample(len(ids), watch.wall_s, watch.cpu_s)


async def dump_once(setting: Setting, store: Store, ids: U8, memory: U8) -> Sample:
    """Dump `ids` from `memory`, all calls at once, and time it.

    Raises
    ------
    BenchError
        A row failed.
    """
    with stopwatch() as watch:
        tasks = [store.dump(ids[part], None, memory[part]) for part in setting.parts(len(ids))]
        results = [await task for task in tasks]
    require_ok("dump", results)
    return Sample(len(ids), watch.wall_s, watch.cpu_s)


def require_ok(verb: str, results: Sequence[TaskResult]) -> None:
    """Raise BenchError if a row of `results` failed, telling why the first did."""
    for result in results:
        for error in result.failures.values():
            raise BenchError(f"{verb}: {len(result.failures)} rows failed; the first, {error}")


async def prepare_blocks(ids: U8, block_bytes: int) -> U8:
    """Return the blocks of `ids` in huge pages, uint8, shape (n, block_bytes); made in a thread."""

    def make() -> U8:
        return BlockMaker(block_bytes).make(ids, huge_rows(len(ids), block_bytes))

    return await asyncio.to_thread(make)


def numbered_ids(start: int, count: int) -> U8:
    """Return `count` block ids, others for other `start`."""
    return block_ids(range(start, start + count))


def size_name(size: int) -> str:
    """Tell a size for people: "64 KiB"."""
    for unit, name in ((_KIB**3, "GiB"), (_KIB**2, "MiB"), (_KIB, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def write_files(folder: Path, rows: U8, *, direct: bool) -> None:
    """Write one file a row, 000000 and on, and bring them to the disk. Blocks."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        fd = os.open(folder / f"{number:06d}", flags, 0o644)
        try:
            if os.pwritev(fd, [np.ascontiguousarray(row).data], 0) != row.nbytes:
                raise BenchError(f"{folder}: short write")
            os.fsync(fd)
        finally:
            os.close(fd)
