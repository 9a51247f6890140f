"""One 64 KiB load on an idle store against a bare ``preadv`` of the same file, or of the same slot."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...blocks.layout import BlockLayout
from ...types import U8
from ..measure import Finding, Spread, percentiles
from ..setting import BenchError, Setting, numbered_ids, prepare_blocks, require_ok

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["measure"]

Places = list[tuple[int, int]]
"""Descriptor and offset of each block."""

_BLOCK_BYTES: Final = 64 << 10
_BLOCKS: Final = 200
_GOAL_US: Final = 60.0
_PAGE_BYTES: Final = 4096  # of a segment, before its slots
_NAMES: Final = ("registered", "unregistered", "preadv")


async def measure(setting: Setting, pipeline: str = "Posix") -> list[Finding]:
    """Load block after block, each of them also with ``preadv``, the order changing."""
    ids = numbered_ids(0, _BLOCKS)
    memory = await prepare_blocks(ids, _BLOCK_BYTES)
    rounds: list[dict[str, list[float]]] = []
    async with (
        setting.folder("latency", 2 * _BLOCKS * _BLOCK_BYTES) as folder,
        setting.open_store(folder, _BLOCK_BYTES, pipeline) as store,
    ):
        require_ok("dump", [await store.dump(ids, None, memory, durability="synced")])
        with ExitStack() as opened:
            find = _open_files if pipeline == "Posix" else _open_slots
            places = await asyncio.to_thread(find, setting, folder, ids, opened)
            rounds = [await _round(store, ids, memory, places) for _ in range(setting.rounds + 1)][1:]
    return [_finding(name, rounds) for name in _NAMES[:2]]


def _open_files(setting: Setting, folder: Path, ids: U8, opened: ExitStack) -> Places:
    paths = {path.name: path for path in folder.rglob("*")}
    return [(_open(setting, paths[one.tobytes().hex()], opened), 0) for one in ids]


def _open_slots(setting: Setting, folder: Path, ids: U8, opened: ExitStack) -> Places:
    """Find slots by what is in them: what lies where is the same for every store that is new."""
    (path,) = folder.glob("*/slab/*.slab")
    fd, step = _open(setting, path, opened), BlockLayout.of(_BLOCK_BYTES, _BLOCK_BYTES).file_bytes
    with path.open("rb") as file:
        heads = [os.pread(file.fileno(), 32, _PAGE_BYTES + i * step)[16:] for i in range(len(ids))]
    where = {head: _PAGE_BYTES + i * step for i, head in enumerate(heads)}
    return [(fd, where[one.tobytes()]) for one in ids]


def _open(setting: Setting, path: Path, opened: ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if setting.direct else 0))
    opened.callback(os.close, fd)
    return fd


async def _round(store: Store, ids: U8, memory: U8, places: Places) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in _NAMES}
    row, spare = memory[:1], memory[1:2]  # two rows: registering one must not cover the other
    for number, (fd, offset) in enumerate(places):
        for step in range(len(_NAMES)):
            name = _NAMES[(number + step) % len(_NAMES)]
            if name == "preadv":
                times[name].append(_bare_read_us(fd, offset, spare))
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


def _bare_read_us(fd: int, offset: int, row: U8) -> float:
    started = time.perf_counter()
    length = os.preadv(fd, [row[0]], offset)
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
