"""A store in a process of the simulated machine, from its opening to its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from dataclasses import is_dataclass
from typing import Any, Final

import numpy as np

from ...engines.system import use_system
from ...errors import UcmError
from ...store import Store, open_store
from ...types import U8
from .model import Violation
from .plan import Setting
from .process import SimulatedProcess

__all__ = ["BACKEND", "TIMEOUT_S", "StoreUnderTest", "keys_of"]

BACKEND: Final = "/kv"
TIMEOUT_S: Final = 2.0
"""Deadline of a call that names none."""

REGISTERED_BLOCKS: Final = 6
PAGE_BYTES: Final = 4096
QUIET_S: Final = 0.01
BURIAL_S: Final = 10.0
"""What the objects of a dead process need to find it out: what a Cache owes is tried again, and may wait for room."""
_AT_REST: Final = ("leased", "lent", "in_flight", "queued", "running", "waiting", "waiting_slices", "owed_bytes")
"""Counters that are zero in a store that has nothing to do, wherever they stand in its statistics."""


LARGE_BYTES: Final = 1 << 40
SLAB_SLOTS: Final = 64
"""Of a store of slabs without a bound, on a disk without one: more than blocks need, so few that segments are small.
"""


def keys_of(setting: Setting, pipeline: str) -> dict[str, Any]:
    """Return the configuration of a store."""
    cap_bytes = setting.cap_bytes
    if "Slab" in pipeline and not setting.bounded and setting.capacity_bytes >= LARGE_BYTES:
        cap_bytes = SLAB_SLOTS * (setting.block_bytes + 2 * PAGE_BYTES)
    return {
        "store_pipeline": pipeline,
        "storage_backends": [BACKEND],
        "block_size": setting.block_bytes,
        "shard_size": setting.shard_bytes,
        "namespace": "simulation",
        "timeout_ms": TIMEOUT_S * 1e3,
        "staging_buffer_gb": 2**-14,  # the fewest slots there are: they are used again soon
        "known_blocks_max": 64,
        "io_depth": setting.io_depth,
        "queue_number": setting.queue_number,
        "queue_depth": setting.queue_depth,
        "partial_blocks_max": setting.partial_blocks_max,
        "posix_capacity_gb": cap_bytes / (1 << 30),
        "namespace_quota_gb": setting.quota_bytes / (1 << 30),
    } | (_cache_keys(setting) if "Cache" in pipeline else {})


def _cache_keys(setting: Setting) -> dict[str, Any]:
    slot_bytes = -(-setting.block_bytes // PAGE_BYTES) * PAGE_BYTES
    return {
        "cache_buffer_capacity_gb": setting.cache_slots * slot_bytes / (1 << 30),
        "dump_behind_bytes": setting.behind_blocks * setting.block_bytes,
    }


class StoreUnderTest:
    """One store of a run; `open` it, ask it through `client`, and end it by `close` or `bury`.

    Parameters
    ----------
    number
        Which of the run's stores it is.
    process
        The process it lives in.
    setting, pipeline
        What to open.

    Attributes
    ----------
    store
        The store, while it is open.
    process
        The process it lives in.
    clients
        Calls under way.
    region
        Registered memory, uint8, shape (rows, bytes of a block); `lend` gives rows of it.
    """

    def __init__(self, number: int, process: SimulatedProcess, setting: Setting, pipeline: str) -> None:
        self.number = number
        self.process = process
        self.clients: list[asyncio.Task[None]] = []
        self._keys = keys_of(setting, pipeline)
        self._registration = contextlib.ExitStack()
        raw = np.zeros(REGISTERED_BLOCKS * setting.block_bytes + PAGE_BYTES, dtype=np.uint8)
        start = -raw.ctypes.data % PAGE_BYTES
        self.region: U8 = raw[start : start + REGISTERED_BLOCKS * setting.block_bytes]
        self._lent: set[int] = set()
        self._closed = False
        self._row_bytes = setting.block_bytes

    async def open(self) -> bool:
        """Open the store; False if its process died meanwhile."""
        with use_system(self.process):
            try:
                self.store: Store = await open_store(self._keys)
            except (UcmError, OSError):
                if self.process.dead:
                    return False
                raise
        self._registration.enter_context(self.store.register(self.region))
        return True

    def client(self, call: Coroutine[Any, Any, None]) -> None:
        """Start a call in a task of its own."""
        with use_system(self.process):
            task = asyncio.get_running_loop().create_task(call)
        self.clients.append(task)

    async def join(self) -> None:
        """Wait for the calls under way, and raise what one of them raised."""
        while self.clients:
            await asyncio.wait(self.clients)
            self.look()

    def look(self) -> None:
        """Raise what a call that is over has raised, and what memory was used twice."""
        done = [task for task in self.clients if task.done()]
        self.clients = [task for task in self.clients if not task.done()]
        for task in done:
            task.result()
        if self.process.memory.violations:
            raise Violation(self.process.memory.violations[0])

    @contextlib.contextmanager
    def lend(self, count: int, row_bytes: int) -> Iterator[U8 | None]:
        """Lend `count` rows of registered memory; None if there are not as many."""
        blocks = -(-count * row_bytes // self._row_bytes)
        free = [start for start in range(0, REGISTERED_BLOCKS - blocks + 1) if self._is_free(start, blocks)]
        if not free:
            yield None
            return
        taken = range(free[0], free[0] + blocks)
        self._lent |= set(taken)
        try:
            start = free[0] * self._row_bytes
            yield self.region[start : start + count * row_bytes].reshape(count, row_bytes)
        finally:
            self._lent -= set(taken)

    def _is_free(self, start: int, count: int) -> bool:
        return self._lent.isdisjoint(range(start, start + count))

    def space(self) -> dict[str, Any] | None:
        """Return what its last stage says of its space; None if that keeps no account in files of blocks."""
        told: dict[str, Any] = dict(list(self.store.statistics().pipeline.values())[-1]["stage"])
        return dict(told["space"]) if "space" in told and "partial_blocks" in told else None

    # ---- the end

    def idle(self) -> bool:
        """Tell whether nothing is under way, late completions included."""
        if self._closed:
            return True
        tasks = self.store.statistics().tasks
        return tasks.submitted == tasks.finished

    def at_rest(self) -> bool:
        """Tell whether nothing is under way, and nothing is owed to a stage below either."""
        cache = {} if self._closed else _cache(self.store.statistics())
        return self.idle() and not (cache and cache["behind"]["owed_bytes"])

    async def quiet(self, patience_s: float) -> None:
        """Wait until nothing is under way, and see that nothing is kept then."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + patience_s
        while busy := self._busy():
            if loop.time() > until_s:
                raise Violation(f"after the last call: {', '.join(busy)}")
            await asyncio.sleep(QUIET_S)

    def _busy(self) -> list[str]:
        told = self.store.statistics()
        if told.tasks.submitted != told.tasks.finished:
            return [f"{told.tasks.submitted - told.tasks.finished} tasks are not finished"]
        return [*_counts("", told.pipeline), *_kept(_cache(told))]

    async def close(self) -> None:
        """Close the store, and see that nothing stays open."""
        self._registration.close()
        self._closed = True
        await self.store.aclose()
        if self.process.descriptors:
            raise Violation(f"after aclose: {self.process.descriptors} descriptors are open")

    async def bury(self) -> None:
        """Let go of a store whose process is dead: the Python objects remain, and must come to their end as well."""
        await self.join()
        await self.quiet(BURIAL_S)
        await self.close()


def _cache(told: Any) -> dict[str, Any]:
    """Return what a Cache tells of itself; nothing without one."""
    return dict(told.pipeline["Cache"]["stage"]) if "Cache" in told.pipeline else {}


def _kept(cache: dict[str, Any]) -> Iterator[str]:
    """Name what a Cache keeps that has nothing to do: no more than a slot for each block that is not whole."""
    if not cache:
        return
    if cache["buffer"]["leases"] > cache["partial_blocks"]:
        yield f"{cache['buffer']['leases']} slots are held, for {cache['partial_blocks']} partial blocks"
    for name, share in cache["admission"].items():
        if share["taken"] > (cache["partial_blocks"] if name == "partial_dumps" else 0):
            yield f"admission.{name}.taken is {share['taken']}"


def _counts(where: str, told: Any) -> Iterator[str]:
    """Name the counters of `told` that show that something is under way or kept."""
    if is_dataclass(told):
        told = {name: getattr(told, name) for name in told.__dataclass_fields__}
    for key, value in told.items():
        if isinstance(value, dict) or is_dataclass(value):
            yield from _counts(f"{where}{key}.", value)
        elif value and key in _AT_REST:
            yield f"{where}{key} is {value}"
