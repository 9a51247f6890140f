"""The store: what a user holds. It checks arguments, keeps time, and hands tasks to the pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Coroutine, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import anyio
import numpy as np
import numpy.typing as npt

from .abc import AsyncResource, Lent, OnProgress, Stage
from .config import StoreConfig
from .errors import StoreClosedError, StoreError, WrongLoopError
from .pipeline import Pipeline, build_pipeline, resolve_stage
from .tasks import (
    LaneName,
    Memory,
    Regions,
    Task,
    TaskManager,
    TaskResult,
    TaskStatistics,
    check_rows,
    memory_of_addresses,
    memory_of_buffers,
    refuse_duplicates,
)
from .types import DURABILITIES, BlockIds, Bools, Durability, as_block_ids

__all__ = ["Store", "StoreStatistics", "open_store", "run"]

_log = logging.getLogger("ucm_async")
_T = TypeVar("_T")

LATE_COMPLETIONS_S_MAX: Final = 30.0
"""How long `Store.aclose` waits for I/O of settled tasks that the kernel still holds."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """What a store counted since it was opened; a snapshot.

    Attributes
    ----------
    tasks
        See `ucm_async.tasks.TaskStatistics`.
    pipeline
        Stage name -> its lanes and its own counters: requests and what they became, engines chosen and why, slots,
        backends.
    """

    tasks: TaskStatistics
    pipeline: Mapping[str, Mapping[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain, JSON-ready values."""
        plain: dict[str, Any] = _plain(self)
        return plain


class Store(AsyncResource):
    """An open store. Make it with `open_store`.

    Notes
    -----
    A store belongs to the event loop it was opened on, and to its thread and process; elsewhere every call raises
    `WrongLoopError`. For threads there is `ucm_async.blocking`.
    """

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._pipeline: Pipeline | None = None
        self._host: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._regions = Regions()
        self._closing: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def config(self) -> StoreConfig:
        """The configuration in force."""
        return self._config

    # ---- life

    async def _open(self, on_progress: OnProgress | None) -> None:
        self._pipeline = await build_pipeline(self._config, on_progress)
        first = self._pipeline.first
        self._manager = TaskManager(
            first.load_lane,
            first.dump_lane,
            slice_bytes=self._config.slice_bytes,
            task_max=self._config.task_max,
            loop=self._loop,
        )
        started: asyncio.Future[None] = self._loop.create_future()
        self._host = self._loop.create_task(self._serve(self._pipeline, started), name="ucm-store")
        try:
            await asyncio.shield(started)
        except asyncio.CancelledError:
            await self.aclose()
            raise

    async def _serve(self, pipeline: Pipeline, started: asyncio.Future[None]) -> None:
        """Host the operators: a task group must be entered and left by one task, and the user's may end first."""
        async with anyio.create_task_group() as group:
            pipeline.start(group)
            started.set_result(None)
            await self._stop.wait()
            group.cancel_scope.cancel()

    async def aclose(self) -> None:
        """Refuse new calls, let tasks under way settle (at their deadlines at the latest), free everything.

        Idempotent; a cancellation does not stop it half-way.
        """
        self._check_loop()
        if self._closing is None:
            self._closing = self._loop.create_task(self._close(), name="ucm-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._pipeline is None:
            self._closed = True
            return
        try:
            await asyncio.wait_for(self._manager.aclose(), self._close_patience_s())
        except TimeoutError:
            _log.error("closing with I/O that the kernel does not give back; its memory stays allocated")
            self._closed = True
            return
        self._closed = True
        try:
            await asyncio.wait_for(self._pipeline.first.flush(), LATE_COMPLETIONS_S_MAX)
        except TimeoutError:
            _log.error("closing with dumps that could not be written behind in %g s", LATE_COMPLETIONS_S_MAX)
        self._stop.set()
        if self._host is not None:
            await asyncio.wait([self._host])
        await self._pipeline.aclose()

    def _close_patience_s(self) -> float:
        return self._manager.longest_wait_s() + LATE_COMPLETIONS_S_MAX

    # ---- load and dump

    def load(
        self,
        ids: BlockIds,
        shard_index: Sequence[int] | npt.NDArray[Any] | None,
        dst: Any,
        *,
        timeout: float | None = None,
    ) -> Task:
        """Start loading shards, or whole blocks, into `dst`.

        Parameters
        ----------
        ids
            16-byte block ids: a sequence of n ``bytes``, or uint8, shape (n, 16). May repeat.
        shard_index
            Which shard of each block, n ints; None for whole blocks.
        dst
            For each row a writable buffer of ``shard_size`` (or ``block_size``) bytes, or a list of buffers, one a
            tensor; or one C-contiguous (n, size) array. Anything with the buffer protocol.
        timeout
            Seconds until the task settles with what is in; None for the store's ``timeout_ms``.

        Returns
        -------
        Task
            Submitted already; await it for its `TaskResult`.

        Raises
        ------
        ValueError, TypeError
            An argument is wrong. Nothing was started, nothing was written.
        StoreClosedError, WrongLoopError

        Notes
        -----
        Until the task has settled, `dst` belongs to the store; after that nothing is written to it any more, unless
        it is registered memory (see `Task.settled`). Cancelling the await cancels the task.
        """
        return self._submit("load", ids, shard_index, dst, None, timeout, "stored")

    def dump(
        self,
        ids: BlockIds,
        shard_index: Sequence[int] | npt.NDArray[Any] | None,
        src: Any,
        *,
        durability: Durability = "stored",
        timeout: float | None = None,
    ) -> Task:
        """Start dumping shards, or whole blocks, from `src`.

        Parameters
        ----------
        ids, shard_index
            As for `load`; no shard may be named twice.
        src
            As `load`'s `dst`, but may be read-only.
        durability
            When a row is OK: ``"cached"`` in the Cache stage (the rest goes on behind; see `flush`), ``"stored"`` in
            the last stage, visible to every process once all shards of its block are, ``"synced"`` also on the
            medium.
        timeout
            As for `load`.

        Returns
        -------
        Task

        Raises
        ------
        ValueError, TypeError
            An argument is wrong. Nothing was started.
        StoreClosedError, WrongLoopError

        Notes
        -----
        `src` is read until the task has settled and not after, unless it is registered memory (see `Task.settled`). A
        block that is stored already is not written again. A dump whose deadline came may still be stored later.
        """
        if durability not in DURABILITIES:
            raise ValueError(f"durability: {durability!r}, must be one of {', '.join(DURABILITIES)}")
        return self._submit("dump", ids, shard_index, src, None, timeout, durability)

    def load_data(
        self,
        ids: BlockIds,
        shard_index: Sequence[int] | npt.NDArray[Any] | None,
        dst_addresses: Any,
        *,
        timeout: float | None = None,
    ) -> Task:
        """Load to raw addresses: uint64, shape (n, 1), or (n, k) with one for each tensor. Otherwise as `load`.

        The caller vouches that the memory is there, writable, and stays so until the task has settled.
        """
        return self._submit("load", ids, shard_index, None, dst_addresses, timeout, "stored")

    def dump_data(
        self,
        ids: BlockIds,
        shard_index: Sequence[int] | npt.NDArray[Any] | None,
        src_addresses: Any,
        *,
        durability: Durability = "stored",
        timeout: float | None = None,
    ) -> Task:
        """Dump from raw addresses; see `load_data` and `dump`."""
        if durability not in DURABILITIES:
            raise ValueError(f"durability: {durability!r}, must be one of {', '.join(DURABILITIES)}")
        return self._submit("dump", ids, shard_index, None, src_addresses, timeout, durability)

    def _submit(
        self,
        lane: LaneName,
        ids: BlockIds,
        shard_index: Sequence[int] | npt.NDArray[Any] | None,
        buffers: Any,
        addresses: Any,
        timeout: float | None,
        durability: Durability,
    ) -> Task:
        self._check_open()
        deadline = self._deadline(timeout)
        config = self._config
        checked, shards = check_rows(ids, shard_index, config.shards_per_block)
        if lane == "dump":
            refuse_duplicates(checked, shards)
        row_bytes = config.block_size if shard_index is None else config.shard_size
        name = "dst" if lane == "load" else "src"
        if addresses is not None:
            memory = memory_of_addresses(f"{name}_addresses", addresses, len(checked), row_bytes, config.tensor_sizes)
        elif len(checked) == 0:
            memory = Memory(np.zeros((0, 1), dtype=np.uint64), (row_bytes,))
        else:
            memory = memory_of_buffers(
                name, buffers, len(checked), row_bytes, config.tensor_sizes, writable=lane == "load"
            )
        memory.direct = self._regions.cover(memory.addresses, memory.piece_sizes)
        return self._manager.submit(lane, checked, shards, memory, deadline=deadline, durability=durability)

    def _deadline(self, timeout: float | None) -> float:
        if timeout is None:
            return self._loop.time() + self._config.timeout_s
        if isinstance(timeout, (bool, str, bytes)) or not hasattr(timeout, "__float__"):
            raise TypeError(f"timeout: {timeout!r}, must be a number of seconds or None")
        seconds = float(timeout)
        if not seconds >= 0:  # nan too
            raise ValueError(f"timeout: {timeout!r}, must be a number of seconds from 0 on")
        return self._loop.time() + seconds

    def check(self, task: Task) -> bool:
        """Tell whether `task` has settled. Never blocks."""
        return task.done()

    async def wait(self, task: Task, timeout: float | None = None) -> TaskResult:
        """Wait for `task`, until `timeout` seconds from now at the latest: the deadline settles the task.

        A later deadline than the task has already changes nothing. Cancelling the wait cancels the task.
        """
        self._check_loop()
        if not isinstance(task, Task):
            raise TypeError(f"task: {type(task).__name__}, must be what load or dump returned")
        if timeout is not None:
            task.set_deadline(self._deadline(timeout))
        return await task

    # ---- what is stored

    async def lookup(self, ids: BlockIds) -> Bools:
        """Tell which blocks are stored: bool, shape (n,), each id for itself.

        A hint: another process may delete a block at any time. A block is found as soon as it is committed, in
        whatever process.
        """
        pipeline = self._check_open()
        checked = as_block_ids(ids)
        return await pipeline.first.lookup(checked) if len(checked) else np.zeros(0, dtype=np.bool_)

    async def lookup_on_prefix(self, ids: BlockIds) -> int:
        """Return the index of the last block of the longest stored prefix, -1 if the first is not stored."""
        pipeline = self._check_open()
        checked = as_block_ids(ids)
        return await pipeline.first.lookup_on_prefix(checked) if len(checked) else -1

    async def prefetch(self, ids: BlockIds) -> None:
        """Bring blocks into the fastest stage. A hint: never an error but for wrong arguments."""
        pipeline = self._check_open()
        checked = as_block_ids(ids)
        if len(checked):
            await pipeline.first.prefetch(checked)

    async def delete(self, ids: BlockIds) -> None:
        """Forget blocks in every stage. Unknown ids are fine. Loads that are under way may still get their bytes."""
        pipeline = self._check_open()
        checked = as_block_ids(ids)
        if len(checked):
            await pipeline.first.delete(checked)

    async def flush(self) -> Mapping[bytes, StoreError]:
        """Wait until every dump that was accepted has reached its durability.

        Returns
        -------
        mapping
            Block id -> why it did not, for what failed behind a ``"cached"`` dump since the last flush. Other
            failures are in the results of their tasks.
        """
        pipeline = self._check_open()
        await self._manager.drain("dump")
        return await pipeline.first.flush()

    # ---- memory

    @contextlib.contextmanager
    def register(self, memory: Any) -> Iterator[None]:
        """Let the engines read and write `memory` directly inside the ``with`` block, without a copy.

        Parameters
        ----------
        memory
            A writable, C-contiguous buffer, for instance a numpy array or an mmap. It stays exported inside the block.

        Notes
        -----
        After a deadline or a cancellation the kernel may still write to registered memory: ``await task.settled()``
        before using it again. Rows whose pieces are not aligned, or not whole pages, go through the library's own
        slots as other memory does.
        """
        self._check_open()
        try:
            nbytes = memoryview(memory).nbytes
        except (TypeError, ValueError) as error:
            raise TypeError(f"memory: {error}, must be one writable buffer") from None
        whole = memory_of_buffers("memory", memory, 1, nbytes, (1,), writable=True)
        region = self._regions.add(int(whole.addresses[0, 0]), whole.row_bytes)
        try:
            yield
        finally:
            self._regions.remove(region)
            whole.release()

    def lease(
        self, ids: BlockIds, *, timeout: float | None = None
    ) -> contextlib.AbstractAsyncContextManager[list[memoryview | None]]:
        """Lend read-only views of whole blocks, pinned until the ``async with`` block ends.

        Parameters
        ----------
        ids
            As for `load`.
        timeout
            Seconds until which blocks that are not at hand may come; None for the store's ``timeout_ms``.

        Returns
        -------
        async context manager
            It gives a list: for each id a view of its ``block_size`` bytes; None where it is not stored or did not come
            in time.

        Raises
        ------
        BufferError
            At the end of the block, if somebody still holds an export of a view.

        Notes
        -----
        A pipeline with a Cache lends its own slots, without a copy; others load into memory of their own. Views must
        not be used after the block: they are released, and using them raises ValueError. Nothing can stop an array that
        numpy made of one, which must not be used any more either: its bytes may be another block's by then.
        """
        return _Lease(self, ids, timeout)

    async def _lend(self, ids: BlockIds, timeout: float | None) -> Lent:
        """Return what the first stage lends, or copies."""
        pipeline = self._check_open()
        checked = as_block_ids(ids)
        lent = await pipeline.first.lease(checked, self._deadline(timeout))
        if lent is not None:
            return lent
        blocks = np.empty((len(checked), self._config.block_size), dtype=np.uint8)
        result = await self.load(checked, None, blocks, timeout=timeout)
        return _Copies([memoryview(blocks[i]).toreadonly() if ok else None for i, ok in enumerate(result.ok.tolist())])

    # ---- while it runs

    async def setup(self, **changes: Any) -> None:
        """Change what may change in a running store: ``io_engine``, ``io_depth``, ``io_threads``, ``timeout_ms``.

        What the old engines have begun they finish; what comes goes to the new ones.

        Raises
        ------
        ConfigError
            An unknown key or a wrong value.
        ValueError
            A key that cannot change while the store is open.
        """
        pipeline = self._check_open()
        fixed = sorted(set(changes) - _CHANGEABLE)
        changed = self._config.replace(**changes)
        if fixed:
            raise ValueError(f"{fixed[0]}: cannot change in an open store; only {', '.join(sorted(_CHANGEABLE))} can")
        await pipeline.setup(changed)
        self._config = changed

    async def replace_stage(self, name: str, stage: str | type[Stage]) -> None:
        """Replace the stage `name` by `stage`, a class or a registered name. Batches in the old one finish there.

        Raises
        ------
        ValueError, UnknownNameError, ConfigError
            There is no such stage here, or the new one cannot take its place; the old one stays.
        """
        pipeline = self._check_open()
        found = stage
        if isinstance(found, str):
            found = await asyncio.to_thread(resolve_stage, found, self._config.plugin_dirs)
        await pipeline.replace(name, found, self._config)

    def statistics(self) -> StoreStatistics:
        """Return a snapshot of every counter."""
        pipeline = self._check_open()
        return StoreStatistics(self._manager.statistics(), pipeline.statistics())

    # ---- checks

    def _check_open(self) -> Pipeline:
        self._check_loop()
        if self._closing is not None or self._pipeline is None:
            raise StoreClosedError("the store is closed")
        return self._pipeline

    def _check_loop(self) -> None:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongLoopError(
                "a store is used from coroutines on its loop; for threads see ucm_async.blocking"
            ) from None
        if running is not self._loop or os.getpid() != self._pid:
            raise WrongLoopError(
                "this store was opened on another event loop; open one for each loop, thread and process"
            )

    def __del__(self, _warn: Any = None) -> None:
        if not getattr(self, "_closed", True) and getattr(self, "_pipeline", None) is not None:
            _log.warning("a store was dropped without aclose()")


_CHANGEABLE: Final = {"io_engine", "io_depth", "io_threads", "timeout_ms"}


class _Copies:
    """Blocks in memory that nobody else knows; see `ucm_async.abc.Lent`."""

    def __init__(self, views: list[memoryview | None]) -> None:
        self.views = views

    def release(self) -> None:
        """Release the views."""
        with contextlib.ExitStack() as lent:
            for view in filter(None, self.views):
                lent.callback(view.release)


class _Lease(contextlib.AbstractAsyncContextManager[list[memoryview | None]]):
    """What `Store.lease` returns; no generator, whose frames would cost as much as the lease itself."""

    __slots__ = ("_ids", "_lent", "_store", "_timeout")

    def __init__(self, store: Store, ids: BlockIds, timeout: float | None) -> None:
        self._store = store
        self._ids = ids
        self._timeout = timeout
        self._lent: Lent

    async def __aenter__(self) -> list[memoryview | None]:
        self._lent = await self._store._lend(self._ids, self._timeout)
        return self._lent.views

    async def __aexit__(self, *exc_info: object) -> None:
        self._lent.release()


class _Opening:
    """What `open_store` returns: await it for a store, or enter it."""

    def __init__(self, config: StoreConfig, on_progress: OnProgress | None) -> None:
        self._config = config
        self._on_progress = on_progress
        self._store: Store | None = None

    async def _open(self) -> Store:
        store = Store(self._config)
        await store._open(self._on_progress)  # one class in two halves: nobody else opens a store
        return store

    def __await__(self) -> Generator[Any, None, Store]:
        return self._open().__await__()

    async def __aenter__(self) -> Store:
        self._store = await self._open()
        return self._store

    async def __aexit__(self, *exc_info: object) -> None:
        if self._store is not None:
            await self._store.aclose()


def open_store(
    source: str | os.PathLike[str] | Mapping[str, Any] | StoreConfig = "Posix",
    /,
    *,
    on_progress: OnProgress | None = None,
    **keys: Any,
) -> _Opening:
    """Open a store: enter what this returns with ``async with``, or await it and ``aclose()`` the store in the end.

    Parameters
    ----------
    source
        A composition such as ``"Cache|Posix"``, the path of a TOML or YAML file, a mapping, or a `StoreConfig`.
    on_progress
        Called with ``(what, done, total)`` while the store is being opened and something takes long: the memory of a
        Cache is made, the slots of a Slab are read after a crash. Any thread may call it, often; be quick.
    **keys
        Configuration keys (see `StoreConfig`), over those of `source`.

    Raises
    ------
    ConfigError
        At once, for an unknown key (naming the nearest one) or a wrong value; when it is opened, for a directory that
        cannot be used.
    UnknownNameError
        When it is opened, for a stage that nobody knows.
    """
    return _Opening(StoreConfig.load(source, **keys), on_progress)


def run(main: Coroutine[Any, Any, _T], *, debug: bool | None = None) -> _T:
    """Run `main` as `asyncio.run` does, on uvloop where it is installed."""
    try:
        import uvloop  # noqa: PLC0415  (optional, and slow to import)
    except ImportError:
        return asyncio.run(main, debug=debug)
    with asyncio.Runner(debug=debug, loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    return value
