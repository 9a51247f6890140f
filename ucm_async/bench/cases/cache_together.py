"""Some processes that load the same prefix at the same time: what is read, what is kept, and how long it takes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from ..cache import CacheSetting, cache_keys
from ..measure import Finding, Spread
from ..setting import BenchError, numbered_ids, prepare_blocks, require_ok

__all__ = ["measure"]

_BLOCK_BYTES: Final = 1 << 20
_SLACK: Final = 0.005  # headers of blocks, directories
_RATE_GOAL: Final = 0.9
_ANSWER_S: Final = 60.0
_OTHERS: Final = 32  # blocks that every process has loaded before
_START_S: Final = 0.1  # until all have heard when they begin

_Told = list[dict[str, Any]]


async def measure(setting: CacheSetting) -> list[Finding]:
    """Load with one cache for all, with one each, and in one process alone."""
    ids = numbered_ids(0, setting.prefix_blocks + _OTHERS)
    memory = await prepare_blocks(ids, _BLOCK_BYTES)
    rounds: list[dict[str, _Told]] = []
    async with setting.folder("together", 2 * memory.nbytes) as folder:
        async with setting.open_store(folder, _BLOCK_BYTES) as store:
            require_ok("dump", [await store.dump(ids, None, memory, durability="synced")])
        prefix = memory[: setting.prefix_blocks]
        total = int(prefix.view(np.uint64).sum(dtype=np.uint64))
        for _ in range(setting.rounds + 1):
            rounds.append(await _round(setting, folder, total))
    return _findings(setting.processes, prefix.nbytes, rounds[1:])


async def _round(setting: CacheSetting, folder: Path, total: int) -> dict[str, _Told]:
    def caches(count: int) -> list[dict[str, Any]]:
        return [cache_keys(_BLOCK_BYTES, 2 * (setting.prefix_blocks + _OTHERS)) for _ in range(count)]

    cast: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "together": ("Cache|Posix", caches(1) * setting.processes),
        "apart": ("Cache|Posix", caches(setting.processes)),
        "alone": ("Cache|Posix", caches(1)),
        "disk": ("Posix", [{}]),
    }
    told = {}
    for name, (pipeline, keys) in cast.items():
        told[name] = await _run(setting, folder, pipeline, keys)
        if any(one["sum"] != total for one in told[name]):
            raise BenchError(f"{name}: a process has loaded wrong bytes")
    return told


async def _run(setting: CacheSetting, folder: Path, pipeline: str, keys: Sequence[dict[str, Any]]) -> _Told:
    """Start a process for each of `keys`, let them load at once, and return what they tell."""
    command = (sys.executable, "-m", "ucm_async.bench.reader")
    readers = [
        await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        for _ in keys
    ]
    try:
        for reader, own in zip(readers, keys, strict=True):
            asked = {
                "pipeline": pipeline,
                "keys": setting.store_keys(folder.absolute(), _BLOCK_BYTES) | own,
                "blocks": setting.prefix_blocks,
                "others": _OTHERS,
            }
            _say(reader, json.dumps(asked))
        for reader in readers:
            await _answer(reader)
        begin = time.monotonic() + _START_S
        for reader in readers:
            _say(reader, repr(begin))
        for reader in readers:
            await _answer(reader)
        for reader in readers:
            _say(reader, "tell")
        told = [json.loads(await _answer(reader)) for reader in readers]
        for reader in readers:
            _say(reader, "leave")
        for reader in readers:
            await asyncio.wait_for(reader.wait(), _ANSWER_S)
        return told
    finally:
        for reader in readers:
            if reader.returncode is None:
                reader.kill()
                await reader.wait()


def _say(reader: asyncio.subprocess.Process, line: str) -> None:
    assert reader.stdin is not None
    reader.stdin.write(line.encode() + b"\n")


async def _answer(reader: asyncio.subprocess.Process) -> bytes:
    assert reader.stdout is not None
    line = await asyncio.wait_for(reader.stdout.readline(), _ANSWER_S)
    if not line:
        raise BenchError("a process that should load has ended")
    return line


def _findings(processes: int, nbytes: int, rounds: Sequence[dict[str, _Told]]) -> list[Finding]:
    def read(told: _Told) -> float:
        return float(sum(one["read_bytes"] for one in told))

    def shared(told: _Told) -> float:
        return float(sum(one["shared_bytes"] for one in told))

    def rate(told: _Told) -> float:
        return float(nbytes / max(one["took_s"] for one in told) / 1e9)

    def finding(
        what: str, figure: Any, unit: str, scale: float, one: str, other: str, name: str, goal: tuple[str, float] | None
    ) -> Finding:
        values = [figure(told[one]) * scale for told in rounds]
        others = [figure(told[other]) * scale for told in rounds]
        # Buffered, what is read comes from the page cache, and the kernel counts nothing.
        ratio = Spread.of([a / b for a, b in zip(values, others, strict=True)]) if median(others) else None
        return Finding("together", what, Spread.of(values), unit, name, Spread.of(others), ratio, goal)

    prefix = f"{processes} processes, the same {nbytes / 1e6:.0f} MB"
    less = ("<=", 1 / processes + _SLACK)
    return [
        finding(f"{prefix}: read from disk", read, "MB", 1e-6, "together", "apart", "a cache each", less),
        finding(f"{prefix}: shared memory", shared, "MB", 1e-6, "together", "apart", "a cache each", less),
        finding(f"{prefix}: all have it", rate, "GB/s", 1, "together", "alone", "one process", (">=", _RATE_GOAL)),
        finding(f"{prefix}: all have it", rate, "GB/s", 1, "together", "disk", "one process, Posix", None),
    ]
