"""One 64 KiB load on an idle store against a bare ``preadv`` of the same file."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...types import U8
from ..measure import Finding, Spread, percentiles
from ..setting import BenchError, Setting, numbered_ids, prepare_blocks, require_ok

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["measure"]

_BLOCK_BYTES: Final = 64 << 10
_BLOCKS: Final = 200
_GOAL_US: Final = 60.0
_NAMES: Final = ("registered", "unregistered", "preadv")


async def measure(setting: Setting) -> list[Finding]:
    """Load block after block, each of them also with ``preadv``, the order changing."""
    ids = numbered_ids(0, _BLOCKS)
    memory = await prepare_blocks(ids, _BLOCK_BYTES)
    rounds: list[dict[str, list[float]]] = []
    async with (
        setting.folder("latency", 2 * _BLOCKS * _BLOCK_BYTES) as folder,
        setting.open_store(folder, _BLOCK_BYTES) as store,
    ):
        require_ok("dump", [await store.dump(ids, None, memory, durability="synced")])
        with ExitStack() as opened:
            fds = await asyncio.to_thread(_open_files, setting, folder, ids, opened)
            rounds = [await _round(store, ids, memory, fds) for _ in range(setting.rounds + 1)][1:]
    return [_finding(name, rounds) for name in _NAMES[:2]]


def _open_files(setting: Setting, folder: Path, ids: U8, opened: ExitStack) -> list[int]:
    paths = {path.name: path for path in folder.rglob("*")}
    fds = []
    for one in ids:
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if setting.direct else 0)
        fds.append(os.open(paths[one.tobytes().hex()], flags))
        opened.callback(os.close, fds[-1])
    return fds


async def _round(store: Store, ids: U8, memory: U8, fds: list[int]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in _NAMES}
    row, spare = memory[:1], memory[1:2]  # two rows: registering one must not cover the other
    for number, fd in enumerate(fds):
        for step in range(len(_NAMES)):
            name = _NAMES[(number + step) % len(_NAMES)]
            if name == "preadv":
                times[name].append(_bare_read_us(fd, spare))
            elif name == "registered":
                with store.register(row):
                    times[name].append(await _load_us(store, ids[number : number + 1], row))
            else:
                times[name].append(await _load_us(store, ids[number : number + 1], spare))
    return times


async def _load_us(store: Store, block_id: U8, row: U8) -> float:
    started = time.perf_counter()
    result = await store.load(block_id, None, row)
    took = time.perf_counter() - started
    require_ok("load", [result])
    return took * 1e6


def _bare_read_us(fd: int, row: U8) -> float:
    started = time.perf_counter()
    length = os.preadv(fd, [row[0]], 0)
    took = time.perf_counter() - started
    if length != _BLOCK_BYTES:
        raise BenchError("short read")
    return took * 1e6


def _finding(name: str, rounds: list[dict[str, list[float]]]) -> Finding:
    """Tell by how much the median load is later than the median ``preadv``, round by round."""
    medians = [{which: percentiles(times)["p50"] for which, times in one.items()} for one in rounds]
    later = Spread.of([one[name] - one["preadv"] for one in medians])
    detail = {
        which: {key: round(us, 1) for key, us in percentiles([us for one in rounds for us in one[which]]).items()}
        for which in (name, "preadv")
    }
    what = f"one 64 KiB load, {name}: p50"
    return Finding("latency", what, later, "µs after preadv", goal=("<=", _GOAL_US), detail=detail)
