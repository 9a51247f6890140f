"""The same store for threads: one event loop in a thread of its own behind it.

Every method may be called from any thread but the loop's. A call costs a hop to the loop and back, some 100 µs; put
many ids into one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio.from_thread
import numpy.typing as npt

from . import store as _store
from .abc import OnProgress, Stage
from .config import StoreConfig
from .errors import StoreClosedError, StoreError
from .tasks import Task, TaskResult
from .types import BlockIds, Bools, Durability

__all__ = ["BlockingStore", "BlockingTask", "open_store"]

_T = TypeVar("_T")


class BlockingTask:
    """A load or dump under way; `result` waits for it."""

    def __init__(self, owner: BlockingStore, task: Task) -> None:
        self._owner = owner
        self._task = task

    def done(self) -> bool:
        """Tell whether the task has settled."""
        return self._task.done()

    def result(self, timeout: float | None = None) -> TaskResult:
        """Wait; after `timeout` seconds the task settles with what is in. Any number of times, from any thread."""
        return self._owner.wait(self, timeout)

    def cancel(self) -> bool:
        """Settle now; see `ucm_async.Task.cancel`."""
        return not self._task.done() and self._owner._on_loop(self._task.cancel)

    def settled(self) -> None:
        """Wait until nothing touches the task's memory any more; see `ucm_async.Task.settled`."""
        if not self._owner.closed:  # which waits for that too
            self._owner._run(self._task.settled)


class BlockingStore:
    """`ucm_async.Store` for threads; the verbs, arguments and errors are the same.

    Attributes
    ----------
    closed
        True from the call of `close` on.
    """

    def __init__(self, config: StoreConfig, on_progress: OnProgress | None = None) -> None:
        self.closed = False
        self._stack = contextlib.ExitStack()
        portal = anyio.from_thread.start_blocking_portal("asyncio", {"use_uvloop": _have_uvloop()})
        self._portal = self._stack.enter_context(portal)
        try:
            self._store = self._portal.call(_open, config, on_progress)
        except BaseException:
            self._stack.close()
            raise

    @property
    def config(self) -> StoreConfig:
        """See `ucm_async.Store.config`."""
        return self._store.config

    def _check_open(self) -> None:
        if self.closed:
            raise StoreClosedError("the store is closed")

    def _run(self, verb: Callable[..., Awaitable[_T]], *arguments: Any) -> _T:
        """Call `verb` on the loop, and wait for what it returns."""
        self._check_open()
        result: _T = self._portal.call(verb, *arguments)
        return result

    def _on_loop(self, function: Callable[[], _T]) -> _T:
        async def call() -> _T:
            return function()

        return self._run(call)

    def load(
        self,
        ids: BlockIds,
        shard_index: Sequence[int] | npt.NDArray[Any] | None,
        dst: Any,
        *,
        timeout: float | None = None,
    ) -> BlockingTask:
        """See `ucm_async.Store.load`."""
        return BlockingTask(self, self._on_loop(lambda: self._store.load(ids, shard_index, dst, timeout=timeout)))

    def dump(
        self,
        ids: BlockIds,
        shard_index: Sequence[int] | npt.NDArray[Any] | None,
        src: Any,
        *,
        durability: Durability = "stored",
        timeout: float | None = None,
    ) -> BlockingTask:
        """See `ucm_async.Store.dump`."""
        return BlockingTask(
            self, self._on_loop(lambda: self._store.dump(ids, shard_index, src, durability=durability, timeout=timeout))
        )

    def load_data(
        self,
        ids: BlockIds,
        shard_index: Sequence[int] | npt.NDArray[Any] | None,
        dst_addresses: Any,
        *,
        timeout: float | None = None,
    ) -> BlockingTask:
        """See `ucm_async.Store.load_data`."""
        return BlockingTask(
            self, self._on_loop(lambda: self._store.load_data(ids, shard_index, dst_addresses, timeout=timeout))
        )

    def dump_data(
        self,
        ids: BlockIds,
        shard_index: Sequence[int] | npt.NDArray[Any] | None,
        src_addresses: Any,
        *,
        durability: Durability = "stored",
        timeout: float | None = None,
    ) -> BlockingTask:
        """See `ucm_async.Store.dump_data`."""
        return BlockingTask(
            self,
            self._on_loop(
                lambda: self._store.dump_data(ids, shard_index, src_addresses, durability=durability, timeout=timeout)
            ),
        )

    def wait(self, task: BlockingTask, timeout: float | None = None) -> TaskResult:
        """See `ucm_async.Store.wait`. What has settled can be had after the store was closed, too."""
        if task.done():
            return task._task.result()
        return self._run(self._store.wait, task._task, timeout)

    def check(self, task: BlockingTask) -> bool:
        """See `ucm_async.Store.check`."""
        return task.done()

    def lookup(self, ids: BlockIds) -> Bools:
        """See `ucm_async.Store.lookup`."""
        return self._run(self._store.lookup, ids)

    def lookup_on_prefix(self, ids: BlockIds) -> int:
        """See `ucm_async.Store.lookup_on_prefix`."""
        return self._run(self._store.lookup_on_prefix, ids)

    def prefetch(self, ids: BlockIds) -> None:
        """See `ucm_async.Store.prefetch`."""
        self._run(self._store.prefetch, ids)

    def delete(self, ids: BlockIds) -> None:
        """See `ucm_async.Store.delete`."""
        self._run(self._store.delete, ids)

    def flush(self) -> Mapping[bytes, StoreError]:
        """See `ucm_async.Store.flush`."""
        return self._run(self._store.flush)

    def setup(self, **changes: Any) -> None:
        """See `ucm_async.Store.setup`."""
        self._run(partial(self._store.setup, **changes))

    def replace_stage(self, name: str, stage: str | type[Stage]) -> None:
        """See `ucm_async.Store.replace_stage`."""
        self._run(self._store.replace_stage, name, stage)

    def statistics(self) -> _store.StoreStatistics:
        """See `ucm_async.Store.statistics`."""
        return self._on_loop(self._store.statistics)

    @contextlib.contextmanager
    def register(self, memory: Any) -> Iterator[None]:
        """See `ucm_async.Store.register`."""
        registration = self._store.register(memory)
        self._on_loop(registration.__enter__)
        try:
            yield
        finally:
            end = partial(registration.__exit__, None, None, None)
            end() if self.closed else self._on_loop(end)

    @contextlib.contextmanager
    def lease(self, ids: BlockIds, *, timeout: float | None = None) -> Iterator[list[memoryview | None]]:
        """See `ucm_async.Store.lease`."""
        self._check_open()
        with self._portal.wrap_async_context_manager(self._store.lease(ids, timeout=timeout)) as views:
            yield views

    def close(self) -> None:
        """See `ucm_async.Store.aclose`. Idempotent."""
        if not self.closed:
            self.closed = True
            self._portal.call(self._store.aclose)
        self._stack.close()

    def __enter__(self) -> BlockingStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_store(
    source: str | os.PathLike[str] | Mapping[str, Any] | StoreConfig = "Posix",
    /,
    *,
    on_progress: OnProgress | None = None,
    **keys: Any,
) -> BlockingStore:
    """Open a store for threads, and start its loop; close it with ``close()``, or use ``with``.

    Arguments and errors are those of `ucm_async.open_store`.
    """
    return BlockingStore(StoreConfig.load(source, **keys), on_progress)


async def _open(config: StoreConfig, on_progress: OnProgress | None) -> _store.Store:
    return await _store.open_store(config, on_progress=on_progress)


def _have_uvloop() -> bool:
    return importlib.util.find_spec("uvloop") is not None
