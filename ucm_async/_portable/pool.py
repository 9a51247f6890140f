"""A pool of Python threads behind the interface of the native contexts."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from ..engines.requests import PENDING_RESULT, Requests
from .execute import run
from .memory import Data, requests_of


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
    """What the threads of a pool share; knows nothing of the pool, so that a dropped pool can be collected."""

    def __init__(self) -> None:
        self.signal = _Signal()
        self.work = threading.Condition()
        self.jobs: deque[tuple[_Batch, slice]] = deque()
        self.done: deque[Any] = deque()
        self.pending = 0
        self.closing = False

    def loop(self) -> None:
        while True:
            with self.work:
                self.work.wait_for(lambda: self.jobs or self.closing)
                if not self.jobs:
                    return
                batch, rows = self.jobs.popleft()
            job = batch.requests[rows]
            run(job)
            self.finish(batch, len(job))

    def finish(self, batch: _Batch, count: int) -> None:
        with self.work:
            self.pending -= count
            batch.left -= count
            if batch.left == 0:
                self.done.append(batch.token)
                self.signal.set()


@final
class ThreadPool:
    """Threads that run requests of every opcode."""

    def __init__(self, threads: int, name: str = "ucm") -> None:
        if threads <= 0:
            raise ValueError(f"threads: {threads}, must be positive")
        self.threads = int(threads)
        self._owner = threading.Lock()
        self._closed = False
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
        return self._shared.pending

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
            shared = self._shared
            with shared.work:
                shared.pending += count
                shared.jobs.extend((batch, slice(start, start + chunk)) for start in range(0, count, chunk))
                shared.work.notify(-(-count // chunk))
            if count == 0:
                shared.finish(batch, 0)

    def reap(self) -> list[Any]:
        """Return the tokens of finished batches, each once, in order of completion."""
        with self._exclusively():
            return [] if self._closed else self._reap()

    def _reap(self) -> list[Any]:
        self._shared.signal.clear()
        tokens = []
        while self._shared.done:
            tokens.append(self._shared.done.popleft())
        return tokens

    def fileno(self) -> int:
        """Return a descriptor that is readable when a batch may be done. -1 once closed."""
        return -1 if self._closed else self._shared.signal.fileno()

    def close(self) -> list[Any]:
        """Wait until everything has completed, then free it; returns the tokens not yet reaped. Idempotent."""
        with self._exclusively():
            if self._closed:
                return []
            self._closed = True
            with self._shared.work:
                self._shared.closing = True
                self._shared.work.notify_all()
            for thread in self._threads:
                thread.join()
            tokens = self._reap()
            self._shared.signal.close()
            return tokens

    def __del__(self) -> None:
        if hasattr(self, "_threads"):
            self.close()
