"""What the fault tests share: blocks whose bytes follow from their ids, injectors, and the look for what was left."""

from __future__ import annotations

import asyncio
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import ucm_async as ucm
from ucm_async import Status
from ucm_async.engines import requests as rq
from ucm_async.stages.posix import PosixStage
from ucm_async.stages.posix.layout import block_paths
from ucm_async.testing.faults import Fault, FaultyEngine, Plan

ENGINES = ("psync", "aio", "uring", "auto")
BLOCK = 64 << 10
SHARD = 16 << 10
SHARDS = BLOCK // SHARD
POISON = 0xEE
READS = (rq.OP_READ, rq.OP_READV)
WRITES = (rq.OP_WRITE, rq.OP_WRITEV)
MIB_GB = 1 / 1024
"""A MiB, in the unit of ``staging_buffer_gb``."""

Array = npt.NDArray[Any]


def keys(directory: Path | str, **changes: Any) -> dict[str, Any]:
    """Keys of a small store in one directory."""
    return {
        "storage_backends": [str(directory)],
        "block_size": BLOCK,
        "shard_size": SHARD,
        "namespace": "faults",
        "staging_buffer_gb": 8 * MIB_GB,
        "io_depth": 32,
        "io_threads": 4,
    } | changes


def content(ids: Array, size: int = BLOCK) -> Array:
    """The bytes of blocks, uint8, shape (n, size): a stream of random numbers whose key is the id."""
    out = np.empty((len(ids), size), dtype=np.uint8)
    for row, words in enumerate(np.ascontiguousarray(ids).view(np.uint64)):
        out[row] = np.frombuffer(np.random.Generator(np.random.Philox(key=words)).bytes(size), dtype=np.uint8)
    return out


def by_shard(ids: Array, order: Array | None = None) -> tuple[Array, Array, Array]:
    """Ids, shard indexes and bytes of every shard of `ids`, shape (n * SHARDS, …), in `order` if one is given."""
    rows = np.repeat(ids, SHARDS, axis=0)
    shards = np.tile(np.arange(SHARDS), len(ids))
    data = content(ids).reshape(-1, SHARD)
    if order is None:
        return rows, shards, data
    return np.ascontiguousarray(rows[order]), shards[order], np.ascontiguousarray(data[order])


def poisoned(rows: int, size: int = BLOCK) -> Array:
    return np.full((rows, size), POISON, dtype=np.uint8)


def page_aligned(rows: int, size: int = BLOCK) -> Array:
    """Poisoned memory that the kernel may read and write directly once it is registered."""
    raw = np.empty(rows * size + 4096, dtype=np.uint8)
    start = -raw.ctypes.data % 4096
    out = raw[start : start + rows * size].reshape(rows, size)
    out[:] = POISON
    return out


async def check_blocks(store: ucm.Store, ids: Array, allowed: tuple[Status, ...] = (Status.OK,)) -> Counter[Status]:
    """Load `ids`: what is OK must have the bytes of its id, whatever else happened. Returns the counts."""
    out = poisoned(len(ids))
    result = await store.load(ids, None, out)
    assert_rows(result, out, content(ids))
    counts = Counter(Status(int(one)) for one in result.status)
    assert set(counts) <= set(allowed), f"{dict(counts)}: {result.failures}"
    return counts


def assert_rows(result: ucm.TaskResult, out: Array, expected: Array) -> None:
    """Nothing wrong is ever returned as OK."""
    wrong = [row for row in result.ok.nonzero()[0].tolist() if not np.array_equal(out[row], expected[row])]
    assert not wrong, f"rows {wrong} are OK and have other bytes"


def statuses(result: ucm.TaskResult) -> list[Status]:
    return [Status(int(one)) for one in result.status]


# ---- injectors


@dataclass(frozen=True)
class Faults:
    """The injectors in a store's Posix stage: data and file operations of each lane."""

    load: FaultyEngine
    dump: FaultyEngine
    load_files: FaultyEngine
    dump_files: FaultyEngine

    def injected(self) -> Counter[str]:
        """How many faults of each kind were injected, in all."""
        total: Counter[str] = Counter()
        for one in (self.load, self.dump, self.load_files, self.dump_files):
            total.update(one.statistics()["injected"])
        return total

    def stop(self) -> None:
        """Inject nothing any more, and let go what hangs."""
        for one in (self.load, self.dump, self.load_files, self.dump_files):
            one.plan = _none
            one.release()


def stage_of(store: ucm.Store) -> PosixStage:
    """The one place where these tests reach inside a store."""
    assert store._pipeline is not None
    stage = store._pipeline.first.stage
    assert isinstance(stage, PosixStage)
    return stage


def inject(store: ucm.Store) -> Faults:
    """Wrap the engines and thread pools of an idle store; nothing is injected until a plan is set."""
    stage = stage_of(store)
    made = []
    for transfer in (stage._loader.transfer, stage._dumper.transfer):
        transfer.engine = FaultyEngine(transfer.engine, _none)
        transfer.pool = FaultyEngine(transfer.pool, _none)
        made.append((transfer.engine, transfer.pool))
    (load, load_files), (dump, dump_files) = made
    return Faults(load, dump, load_files, dump_files)


def calm(store: ucm.Store) -> None:
    """Stop the injectors of a store, if there are any."""
    stage = stage_of(store)
    for transfer in (stage._loader.transfer, stage._dumper.transfer):
        for one in (transfer.engine, transfer.pool):
            if isinstance(one, FaultyEngine):
                one.plan = _none
                one.release()


def _none(_: int, __: Any) -> Fault | None:
    return None


def strike(fault: Fault, *codes: int, skip: int = 0, times: int | None = None) -> Plan:
    """A plan: `fault` for requests of these opcodes; not for the first `skip`, then for `times` of them, or for all."""
    seen = 0

    def plan(_: int, request: Any) -> Fault | None:
        nonlocal seen
        if int(request["opcode"]) & rq.OP_MASK not in codes:
            return None
        seen += 1
        return fault if seen > skip and (times is None or seen <= skip + times) else None

    return plan


def file_fails(number: int, *codes: int, skip: int = 0, times: int | None = None) -> Plan:
    return strike(Fault("error", number), *codes, skip=skip, times=times)


# ---- files


def home(store: ucm.Store, backend: int = 0) -> Path:
    """The directory of the store's namespace."""
    return stage_of(store)._backends[backend].root


def path_of(root: Path, block_id: Array) -> Path:
    return root / block_paths(block_id.reshape(1, 16)).tobytes().rstrip(b"\0").decode()


def files_below(root: Path) -> list[str]:
    """Every file, relative to `root`, sorted; not the locks, the note and the hotness, which belong there."""
    found = (os.path.relpath(os.path.join(where, name), root) for where, _, names in os.walk(root) for name in names)
    mine = (".lock", "lock", "namespace.json")
    return sorted(name for name in found if os.path.basename(name) not in mine and not name.endswith(".hot"))


def quarantined(root: Path) -> list[str]:
    return [name for name in files_below(root) if name.startswith("quarantine")]


def temporary(root: Path) -> list[str]:
    """Files that are neither a committed block nor set aside."""
    return [name for name in files_below(root) if not _is_block(name) and not name.startswith("quarantine")]


def _is_block(name: str) -> bool:
    directory, _, rest = name.partition("/")
    return len(directory) == 2 and len(rest) == 32


def writers(root: Path) -> list[str]:
    """Directories of writers, living or dead."""
    return sorted(one.name for one in (root / "writers").iterdir() if one.is_dir())


# ---- what is held


def descriptors_below(*roots: Path) -> int:
    """Open descriptors of this process on files below `roots`, locks of writers apart."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        below = any(target.startswith(f"{root}/") for root in roots)
        count += below and not target.endswith("lock") and not os.path.isdir(target)
    return count


def held(store: ucm.Store) -> dict[str, int]:
    """What a store holds that an idle one does not; only what is not zero."""
    now = store.statistics()
    ((_, posix),) = now.pipeline.items()
    stage: Mapping[str, Any] = posix["stage"]
    roots = [one.root for one in stage_of(store)._backends if not one.error]
    found = {
        "tasks": now.tasks.submitted - now.tasks.finished,
        "unsettled": now.tasks.submitted - now.tasks.settled,
        "waiting slices": now.tasks.waiting_slices,
        "partial blocks": stage["partial_blocks"],
        "descriptors": descriptors_below(*roots),
    }
    for lane in ("load", "dump"):
        found[f"{lane} slots"] = stage[lane]["arena"]["leased"] + stage[lane]["arena"]["waiting"]
        found[f"{lane} requests"] = stage[lane]["engine"]["in_flight"]
        found[f"{lane} file requests"] = stage[lane]["pool"]["in_flight"]
        found[f"{lane} batches"] = posix[f"{lane}_lane"].queued + posix[f"{lane}_lane"].running
    for backend in stage_of(store)._backends:
        own = backend.root / backend.writer if not backend.error else None
        found[f"temporary files in {backend.path}"] = len(files_below(own)) if own is not None else 0
    return {name: count for name, count in found.items() if count}


async def quiet(store: ucm.Store, *, partial: int = 0) -> None:
    """Wait until a store holds nothing any more but `partial` incomplete blocks; fail if that never comes."""
    still: dict[str, int] = {}
    for _ in range(300):
        still = held(store)
        if not [name for name in still if not (partial and name.startswith(("partial", "temporary")))]:
            assert still.get("partial blocks", 0) == partial, still
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still held: {still}")


async def until(condition: Any) -> None:
    """Wait for something that must come."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file, behind the back of every store."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def is_regular(path: Path) -> bool:
    return path.exists() and stat.S_ISREG(path.stat().st_mode)


def spread(generator: np.random.Generator, stop: int, count: int) -> Iterator[int]:
    """`count` places in 0 … stop - 1, one in each of as many equal parts."""
    edges = np.linspace(0, stop, count + 1).astype(np.int64)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield int(generator.integers(low, max(high, low + 1)))
