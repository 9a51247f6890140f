"""A task: one load or dump, its slices, and the moment at which it settles.

A task ends in two steps. It *settles* once, when every row is in, at its deadline, or when it is cancelled: from then
on its result stands and, unless the memory is registered, nothing touches the caller's memory. It is *finished* when
the last of its slices has come back, which a slow disk may delay for long after that.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Generator
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from ..coding import EncodedRows
from ..errors import StoreError, WrongLoopError
from ..native import Gate
from ..types import I64, PENDING, U8, Durability, Status
from .memory import Memory
from .result import FailureSet, TaskResult

__all__ = ["LaneName", "Task"]

LaneName: TypeAlias = Literal["load", "dump"]


class Task:
    """One ``load`` or ``dump``: await it for its `TaskResult`, any number of times.

    Cancelling a coroutine that awaits a task cancels the task (as with an `asyncio.Task`); use `asyncio.shield` to
    wait without that.

    Notes
    -----
    Belongs to the loop of its store; no method may be called from another thread.
    """

    __slots__ = (
        "_abandoned", "_errors", "_finished", "_gate", "_hurried", "_loop", "_on_finished", "_result", "_slices_left",
        "_timer", "_waiters", "_work", "deadline", "durability", "encoded", "ids", "lane", "memory", "pending",
        "shards",
    )  # fmt: skip

    def __init__(
        self,
        lane: LaneName,
        ids: U8,
        shards: I64,
        memory: Memory,
        *,
        durability: Durability = "stored",
        encoded: EncodedRows | None = None,
        loop: asyncio.AbstractEventLoop,
        on_finished: Callable[[Task], None],
    ) -> None:
        self.lane = lane
        self.ids = ids
        self.shards = shards
        self.memory = memory
        self.durability: Durability = durability
        self.encoded = encoded
        self.deadline = math.inf
        self.pending = len(ids)
        self._gate = Gate()
        self._work = _ONE_PENDING.copy() if len(ids) == 1 else np.full(len(ids), PENDING, dtype=np.uint8)
        self._errors: dict[int, StoreError] = {}
        self._result: TaskResult | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._abandoned: list[Callable[[], None]] = []
        self._hurried: list[Callable[[], None]] = []
        self._finished: asyncio.Future[None] | None = None
        self._slices_left = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = loop
        self._on_finished = on_finished

    # ---- the user's side

    def done(self) -> bool:
        """Tell whether the task has settled."""
        return self._result is not None

    def result(self) -> TaskResult:
        """Return the result of a settled task.

        Raises
        ------
        asyncio.InvalidStateError
            The task has not settled.
        """
        if self._result is None:
            raise asyncio.InvalidStateError("the task has not settled")
        return self._result

    def cancel(self) -> bool:
        """Settle now: the rows that are not in are CANCELLED. False if it had settled already."""
        return self.settle(Status.CANCELLED)

    async def settled(self) -> None:
        """Wait until the library has stopped touching the memory of the task, registered memory included."""
        if self._result is None:
            await self
        if self._slices_left and self.memory.direct:
            if self._finished is None:
                self._finished = self._loop.create_future()
            await asyncio.shield(self._finished)

    async def wait_settled(self) -> None:
        """Wait until the task has settled; unlike with an ``await`` of it, a cancellation leaves the task alone."""
        if self._result is None:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def __await__(self) -> Generator[Any, None, TaskResult]:
        if self._result is None:
            if asyncio.get_running_loop() is not self._loop:
                raise WrongLoopError("this task belongs to another event loop; await it on the loop of its store")
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                yield from waiter
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self.result()

    def __repr__(self) -> str:
        state = "settled" if self._result is not None else f"{self.pending} of {len(self.ids)} rows to come"
        return f"<Task {self.lane} {state}>"

    # ---- the library's side

    @property
    def alive(self) -> bool:
        """True as long as somebody may use what is still to come."""
        return self._result is None

    @property
    def awaited(self) -> bool:
        """True while somebody waits for the task."""
        return bool(self._waiters)

    @property
    def gate_address(self) -> int:
        """For ``REQUEST.gate``: nothing is copied, and nothing is begun, once it is closed."""
        return self._gate.address

    def time_left_s(self) -> float:
        """Seconds until the deadline; negative past it, infinite without one."""
        return self.deadline - self._loop.time()

    def set_deadline(self, deadline: float) -> None:
        """Settle at `deadline` (loop time, seconds) at the latest. An earlier deadline stays."""
        if self._result is not None or deadline >= self.deadline:
            return
        self.deadline = deadline
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self.settle, Status.TIMEOUT)
        for call in self._hurried:
            call()

    def expect_slices(self, count: int) -> None:
        """Say how many slices will call `slice_finished`."""
        self._slices_left = count

    def rows(self, start: int, stop: int) -> U8:
        """Return the working statuses of some rows, a view."""
        return self._work[start:stop]

    def note_error(self, row: int, error: StoreError) -> None:
        """Keep the reason of a row's failure; nothing after the task has settled."""
        if self._result is None:
            self._errors[row] = error

    def when_abandoned(self, call: Callable[[], None]) -> None:
        """Call `call` if the task settles before all of its rows are in: nobody waits for them any more."""
        self._abandoned.append(call)

    def when_hurried(self, call: Callable[[], None]) -> None:
        """Call `call` whenever the deadline moves closer, and if the task settles before all of its rows are in."""
        if self._result is None:
            self._hurried.append(call)

    def rows_in(self, count: int) -> None:
        """Count rows that were reported; the last of them settles the task."""
        self.pending -= count
        if self.pending == 0:
            self.settle(Status.OK)

    def finish_slice_soon(self) -> None:
        """Call `slice_finished` after whoever waits has gone on."""
        self._loop.call_soon(self.slice_finished)

    def slice_finished(self) -> None:
        """Count a slice that came back; the last of them finishes the task."""
        self._slices_left -= 1
        if self._slices_left == 0:
            self.memory.release()
            if self._finished is not None and not self._finished.done():
                self._finished.set_result(None)
            self._on_finished(self)

    def settle(self, rest: Status) -> bool:
        """End the task: rows that are not in become `rest`. False if it had settled already."""
        if self._result is not None:
            return False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.pending:
            self._gate.close()  # from here on no thread is inside the caller's memory, and none enters
            status = self._work.copy()  # late rows still go to the original
            status[status == PENDING] = rest
        else:
            status = self._work
        status.setflags(write=False)
        settled = self.pending == 0 or not self.memory.direct
        self._result = TaskResult(status, FailureSet(status, self._errors, self.ids, self.shards), settled)
        if settled:
            self.memory.release()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
        if self.pending:
            for call in (*self._abandoned, *self._hurried):
                call()
        self._abandoned.clear()
        self._hurried.clear()
        return True


_ONE_PENDING: Final = np.full(1, PENDING, dtype=np.uint8)
