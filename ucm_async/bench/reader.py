"""A process of its own that loads blocks once, when it is told to: what several workers of a host do at the same time.

Run by the Cache benchmark. Keys of the store and ids come as a line of JSON on stdin; it answers "ready", gets a line
with the time of the monotonic clock at which to begin, so that all begin together, answers "loaded", and when all have,
after one more line, with a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from .memory import huge_rows
from .setting import numbered_ids, require_ok

__all__ = ["main"]


async def main() -> None:
    """Answer what stdin asks."""
    asked: dict[str, Any] = json.loads(await asyncio.to_thread(sys.stdin.readline))
    from ..store import open_store  # noqa: PLC0415

    ids = numbered_ids(0, asked["blocks"])
    memory = await asyncio.to_thread(huge_rows, len(ids), asked["keys"]["block_size"])
    async with open_store(asked["pipeline"], **asked["keys"]) as store:
        for at in range(0, asked["others"], len(ids)):  # a worker has loaded before: its code is not read from disk now
            others = numbered_ids(len(ids) + at, min(len(ids), asked["others"] - at))
            require_ok("load", [await store.load(others, None, memory[: len(others)])])
        before = await asyncio.to_thread(_read_bytes)
        await _answer("ready")
        begin = float(await asyncio.to_thread(sys.stdin.readline))
        await asyncio.sleep(begin - time.monotonic())
        result = await store.load(ids, None, memory)
        ended = time.monotonic()
        await _answer("loaded")
        await asyncio.to_thread(sys.stdin.readline)  # to look at the bytes takes processors that others still load with
        require_ok("load", [result])
        told = {
            "took_s": ended - begin,
            "read_bytes": await asyncio.to_thread(_read_bytes) - before,
            "shared_bytes": await asyncio.to_thread(_shared_bytes),
            "sum": int(memory.view(np.uint64).sum(dtype=np.uint64)),
        }
        await _answer(json.dumps(told))
        await asyncio.to_thread(sys.stdin.readline)  # stays until all have told, so that memory is counted together


async def _answer(line: str) -> None:
    await asyncio.to_thread(print, line, flush=True)


def _read_bytes() -> int:
    """Return what this process had read from storage (proc_pid_io(5))."""
    return _number("/proc/self/io", "read_bytes:")


def _shared_bytes() -> int:
    """Return this process' share of shared memory: a page that four have mapped counts a quarter for each."""
    return _number("/proc/self/smaps_rollup", "Pss_Shmem:") * 1024


def _number(path: str, key: str) -> int:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise OSError(f"{path} has no {key}")


if __name__ == "__main__":
    asyncio.run(main())
