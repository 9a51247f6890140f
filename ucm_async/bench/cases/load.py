"""Loads of many blocks, into registered and other memory, against a C program and against a pool of threads."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...engines.requests import OP_CHECKSUM, OP_COPY, new_requests
from ...native import NATIVE, execute
from ...types import U8
from ..blocks import verify
from ..measure import Contestant, Finding, Measured, Sample, Spread, alternate, stopwatch
from ..memory import huge_rows
from ..setting import BenchError, Setting, Shape, load_once, numbered_ids, prepare_blocks, require_ok, write_files

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["measure"]

_POOL_THREADS: Final = 32
_POOL_BLOCK_BYTES_MAX: Final = 128 << 10  # above, threads are no worse than anything else
_GOALS: Final = {"registered": (0.95, 0.90), "unregistered": (0.85, 0.75)}  # at 1 MiB and more, and below
_CPU_GOAL: Final = 2.0
_SAME_FILES: Final = "C program on the store's files"


async def measure(setting: Setting) -> list[Finding]:
    """Load every shape."""
    return [finding for shape in setting.shapes for finding in await _measure_shape(setting, shape)]


async def _measure_shape(setting: Setting, shape: Shape) -> list[Finding]:
    ids = numbered_ids(0, shape.blocks)
    memories = {name: await prepare_blocks(ids, shape.block_bytes) for name in _GOALS}
    async with setting.folder(f"load-{shape.block_bytes}", 2 * shape.total_bytes) as folder:
        source = memories["registered"]
        await asyncio.to_thread(write_files, folder / "files", source, direct=setting.direct)
        costs = await asyncio.to_thread(_costs_us, source, memories["unregistered"])
        async with setting.open_store(folder / "store", shape.block_bytes) as store:
            require_ok("dump", [await store.dump(ids, None, source, durability="synced")])
            for memory in memories.values():
                memory.fill(0)
            opened = ExitStack()
            try:
                contestants = _stores(setting, store, ids, memories)
                contestants |= await asyncio.to_thread(_references, setting, shape, folder / "files", opened)
                if setting.reader is not None:
                    await asyncio.to_thread(_link_blocks, folder / "store", folder / "same", ids)
                    contestants[_SAME_FILES] = _reading(setting, shape, folder / "same")
                measured = await alternate(contestants, setting.rounds)
            finally:
                await asyncio.to_thread(opened.close)
        for name, memory in memories.items():
            if not (await asyncio.to_thread(verify, memory, ids)).all():
                raise BenchError(f"load into {name} memory: wrong bytes")
    return _findings(shape, measured, costs)


def _stores(setting: Setting, store: Store, ids: U8, memories: dict[str, U8]) -> dict[str, Contestant]:
    async def registered(_round: int) -> Sample:
        with store.register(memories["registered"]):
            return await load_once(setting, store, ids, memories["registered"])

    async def unregistered(_round: int) -> Sample:
        return await load_once(setting, store, ids, memories["unregistered"])

    return {"registered": registered, "unregistered": unregistered}


def _references(setting: Setting, shape: Shape, files: Path, opened: ExitStack) -> dict[str, Contestant]:
    found: dict[str, Contestant] = {}
    if setting.reader is not None:
        found["C program"] = _reading(setting, shape, files)
    if shape.block_bytes <= _POOL_BLOCK_BYTES_MAX:
        found["threads"] = _thread_pool(setting, shape, files, opened)
    return found


def _reading(setting: Setting, shape: Shape, files: Path) -> Contestant:
    async def read(_round: int) -> Sample:
        assert setting.reader is not None
        return await setting.reader.read(files, shape.block_bytes, shape.blocks, depth=setting.read_depth)

    return read


def _link_blocks(store: Path, links: Path, ids: U8) -> None:
    """Number the store's own files for the C program: what differs then is not the file system's doing."""
    paths = {path.name: path for path in store.glob("*/??/*")}
    links.mkdir()
    for number, block_id in enumerate(ids):
        (links / f"{number:06d}").symlink_to(paths[block_id.tobytes().hex()].absolute())


def _thread_pool(setting: Setting, shape: Shape, files: Path, opened: ExitStack) -> Contestant:
    """One ``preadv`` a job on a thread pool, as asyncio programs do without a library; files are opened before."""
    memory = huge_rows(shape.blocks, shape.block_bytes)
    pool = opened.enter_context(ThreadPoolExecutor(_POOL_THREADS))
    fds = []
    for number in range(shape.blocks):
        fds.append(
            os.open(files / f"{number:06d}", os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if setting.direct else 0))
        )
        opened.callback(os.close, fds[-1])

    async def threads(_round: int) -> Sample:
        loop = asyncio.get_running_loop()
        with stopwatch() as watch:
            jobs = [loop.run_in_executor(pool, os.preadv, fd, [row], 0) for fd, row in zip(fds, memory, strict=True)]
            lengths = await asyncio.gather(*jobs)
        if any(length != shape.block_bytes for length in lengths):
            raise BenchError("short read")
        return Sample(shape.blocks, watch.wall_s, watch.cpu_s)

    return threads


def _costs_us(source: U8, target: U8) -> dict[str, float]:
    """CPU a block of what a store does and the C program does not: a checksum, for unregistered memory with a copy."""
    costs = {}
    for name, opcode in (("registered", OP_CHECKSUM), ("unregistered", OP_COPY)):
        requests = new_requests(len(source))
        requests["opcode"] = opcode
        requests["length"] = source.shape[1]
        steps = range(0, source.nbytes, source.shape[1])
        requests["offset"] = [source.ctypes.data + step for step in steps]
        memory = source if opcode == OP_CHECKSUM else target
        requests["address"] = [memory.ctypes.data + step for step in steps]
        with stopwatch() as watch:
            execute(requests)
        costs[name] = watch.cpu_s / len(source) * 1e6
    return costs if NATIVE else dict.fromkeys(costs, 0.0)


def _findings(shape: Shape, measured: Measured, costs: dict[str, float]) -> list[Finding]:
    found = []
    for name, goals in _GOALS.items():
        rate = measured.gb_per_s(name, shape.block_bytes)
        what = f"{shape}, {name}"
        goal = (">=", goals[0] if shape.block_bytes >= 1 << 20 else goals[1])
        found.append(_against(measured, shape, what, name, "C program", rate, goal))
        if _SAME_FILES in measured:
            found.append(_against(measured, shape, what, name, _SAME_FILES, rate, None))
        found.append(_cpu(measured, what, name, costs[name]))
    if "threads" in measured:
        rate = measured.gb_per_s("registered", shape.block_bytes)
        found.append(_against(measured, shape, f"{shape}, registered", "registered", "threads", rate, (">=", 2.5)))
    return found


def _against(
    measured: Measured, shape: Shape, what: str, name: str, reference: str, rate: Spread, goal: tuple[str, float] | None
) -> Finding:
    if reference not in measured:
        return Finding("load", what, rate, "GB/s", reference, goal=goal)
    other, ratio = measured.gb_per_s(reference, shape.block_bytes), measured.speed_ratio(name, reference)
    return Finding("load", what, rate, "GB/s", reference, other, ratio, goal)


def _cpu(measured: Measured, what: str, name: str, cost_us: float) -> Finding:
    """Compare CPU after taking off the checksum and the copy, which the C program does not make."""
    value, what = measured.cpu_us(name), f"{what}: CPU a block"
    detail = {"checksum_and_copy_us" if name == "unregistered" else "checksum_us": round(cost_us, 2)}
    if "C program" not in measured:
        return Finding("load", what, value, "µs", "C program", goal=("<=", _CPU_GOAL), detail=detail)
    pairs = zip(measured.samples[name], measured.samples["C program"], strict=True)
    ratio = Spread.of([(one.cpu_us_per_block - cost_us) / other.cpu_us_per_block for one, other in pairs])
    reference = measured.cpu_us("C program")
    return Finding("load", what, value, "µs", "C program", reference, ratio, ("<=", _CPU_GOAL), detail)
