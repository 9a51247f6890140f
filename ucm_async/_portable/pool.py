"""A pool of Python threads behind the interface of the native contexts."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Final, final

import numpy as np

from ..engines.requests import OP_COPY, OP_MASK, OP_MOVE, OP_READ, OP_WRITEV, PENDING_RESULT, Requests
from .execute import run
from .memory import Data, requests_of

THREADS_MAX: Final = 1024


class _Signal:
    """A descriptor that is readable once it was set: an eventfd, or a pipe where there is none."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._read, self._write = os.pipe()
            os.set_blocking(self._read, False)
            os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe is readable
            os.write(self._write, (1).to_bytes(8, sys.byteorder))  # what an eventfd takes; a pipe takes anything

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read, 4096)) == 4096:
                pass

    def close(self) -> None:
        for fd in {self._read, self._write}:
            os.close(fd)


class _Batch:
    """A submitted batch; holds the array and the token until all of it is done."""

    __slots__ = ("left", "requests", "token")

    def __init__(self, requests: Requests, token: object) -> None:
        self.requests = requests
        self.token = token
        self.left = len(requests)


class _Shared:
    """What the threads of a pool share; knows nothing of the pool, so that a dropped pool can be collected.

    The submitting thread, which may run an event loop, takes no lock: queue and deque are atomic in themselves.
    """

    def __init__(self) -> None:
        self.signal = _Signal()
        self.jobs: SimpleQueue[tuple[_Batch, slice] | None] = SimpleQueue()
        self.done: deque[_Batch] = deque()
        self.finished = 0
        self.counting = threading.Lock()

    def loop(self) -> None:
        while (job := self.jobs.get()) is not None:
            batch, rows = job
            requests = batch.requests[rows]
            run(requests)
            with self.counting:
                self.finished += len(requests)
                batch.left -= len(requests)
                last = batch.left == 0
            if last:
                self.complete(batch)

    def complete(self, batch: _Batch) -> None:
        self.done.append(batch)
        self.signal.set()


@final
class ThreadPool:
    """Threads that run requests of every opcode."""

    def __init__(self, threads: int, name: str = "ucm") -> None:
        if not 1 <= threads <= THREADS_MAX:
            raise ValueError(f"threads: {threads}, must be 1 ... {THREADS_MAX}")
        self.threads = int(threads)
        self._owner = threading.Lock()
        self._closed = False
        self._submitted = 0
        self.bytes = 0
        self.errors = 0
        self._shared = _Shared()
        # Daemons: a pool that was never closed must not keep the interpreter from exiting.
        self._threads = [
            threading.Thread(target=self._shared.loop, name=f"{name}-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pending(self) -> int:
        """Requests submitted and not finished."""
        return self._submitted - self._shared.finished

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        if not self._owner.acquire(blocking=False):
            raise RuntimeError("the pool is being used by another thread")
        try:
            yield
        finally:
            self._owner.release()

    def submit(self, requests: Data, token: object, chunk: int = 1, /) -> None:
        """Queue a batch; a free thread takes the next `chunk` consecutive requests at a time."""
        if chunk <= 0:
            raise ValueError(f"chunk: {chunk}, must be positive")
        with self._exclusively():
            if self._closed:
                raise ValueError("the pool is closed")
            batch = _Batch(requests_of(requests), token)
            batch.requests["result"] = PENDING_RESULT
            count = len(batch.requests)
            self._submitted += count
            for start in range(0, count, chunk):
                self._shared.jobs.put((batch, slice(start, start + chunk)))
            if count == 0:
                self._shared.complete(batch)

    def reap(self) -> list[Any]:
        """Return the tokens of finished batches, each once, in order of completion."""
        with self._exclusively():
            return [] if self._closed else self._reap()

    def _reap(self) -> list[Any]:
        self._shared.signal.clear()
        tokens = []
        while self._shared.done:
            batch = self._shared.done.popleft()
            self._count(batch.requests)
            tokens.append(batch.token)
        return tokens

    def _count(self, requests: Requests) -> None:
        good = requests["result"] >= 0
        codes = requests["opcode"] & OP_MASK
        self.errors += len(good) - int(np.count_nonzero(good))
        self.bytes += int(requests["result"].sum(where=good & (codes >= OP_READ) & (codes <= OP_WRITEV)))
        self.bytes += int(requests["length"].sum(where=good & ((codes == OP_COPY) | (codes == OP_MOVE))))

    def fileno(self) -> int:
        """Return a descriptor that is readable when a batch may be done. -1 once closed."""
        return -1 if self._closed else self._shared.signal.fileno()

    def close(self) -> list[Any]:
        """Wait until everything has completed, then free it; returns the tokens not yet reaped. Idempotent."""
        with self._exclusively():
            if self._closed:
                return []
            self._closed = True
            for _ in self._threads:
                self._shared.jobs.put(None)  # behind everything that was submitted
            for thread in self._threads:
                thread.join()
            tokens = self._reap()
            self._shared.signal.close()
            return tokens

    def __del__(self) -> None:
        if hasattr(self, "_threads"):
            self.close()
