"""Slices, and the batches that a lane makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..coding import EncodedRows
from ..errors import StoreError
from ..types import I64, PENDING, U8, U64, Bools, Durability, Reasons, Status
from .memory import as_sizes
from .reasons import reasons_of
from .task import Task

__all__ = ["Slice", "SliceBatch", "make_batches"]


class Slice:
    """Consecutive rows of one task: the unit of every queue. Holds views, no copies."""

    __slots__ = ("pending", "start", "status", "stop", "task")

    def __init__(self, task: Task, start: int, stop: int) -> None:
        self.task = task
        self.start = start
        self.stop = stop
        self.pending = stop - start
        self.status = task.rows(start, stop)

    @property
    def nbytes(self) -> int:
        """Bytes of the caller's memory that the slice covers."""
        return (self.stop - self.start) * self.task.memory.row_bytes

    @property
    def is_all(self) -> bool:
        """True if the slice is its whole task."""
        return self.start == 0 and self.stop == len(self.task.ids)

    @property
    def ids(self) -> U8:
        """Block ids of the rows."""
        return self.task.ids[self.start : self.stop]

    @property
    def shards(self) -> I64:
        """Shards of the rows."""
        return self.task.shards[self.start : self.stop]

    @property
    def addresses(self) -> U64:
        """Where the pieces of the rows lie."""
        return self.task.memory.addresses[self.start : self.stop]

    @property
    def piece_sizes(self) -> tuple[int, ...]:
        """Bytes of each piece."""
        return self.task.memory.piece_sizes

    @property
    def gate(self) -> int:
        """For ``REQUEST.gate``."""
        return self.task.gate_address

    @property
    def encoded(self) -> EncodedRows | None:
        """What is known of encoded rows, a view; None for a caller's bytes."""
        encoded = self.task.encoded
        return None if encoded is None else encoded.rows(slice(self.start, self.stop))

    def succeed(self) -> None:
        """Settle every row, none of which was reported yet, as OK."""
        self.status.fill(0)  # Status.OK, which numpy would take its time to convert
        task = self.task
        # Whoever waits goes on first. Nobody does if the task settles inside of its own submit.
        finish = task.finish_slice_soon if task.awaited else task.slice_finished
        count, self.pending = self.pending, 0
        task.rows_in(count)
        finish()

    def report(self, rows: npt.NDArray[Any], status: Status | U8, error: StoreError | Reasons | None = None) -> None:
        """Settle `rows` (counted from the slice's start). The first report of a row counts."""
        fresh = self.status[rows] == PENDING
        if not fresh.all():
            status, error = _of_some(status, error, fresh)
            rows = rows[fresh]
        if len(rows) == 0:
            return
        self.status[rows] = status
        if error:
            self._note(rows, error)
        self.pending -= len(rows)
        self.task.rows_in(len(rows))
        if self.pending == 0:
            self.task.slice_finished()

    def _note(self, rows: I64, error: StoreError | Reasons) -> None:
        errors = error if isinstance(error, Mapping) else dict.fromkeys(range(len(rows)), error)
        for at, one in errors.items():
            self.task.note_error(self.start + int(rows[at]), one)

    def report_rest(self, status: Status, error: StoreError | None = None) -> None:
        """Settle every row that was not reported."""
        if self.pending:
            self.report(np.flatnonzero(self.status == PENDING), status, error)


class SliceBatch:
    """Slices of one lane that travel together; implements `ucm_async.abc.Batch`."""

    __slots__ = (
        "_ends", "addresses", "direct", "durability", "encoded", "gates", "ids", "piece_sizes", "shards", "slices",
    )  # fmt: skip

    def __init__(self, slices: Sequence[Slice]) -> None:
        self.slices = slices
        first = slices[0].task
        self.direct = first.memory.direct
        self.durability: Durability = first.durability
        self.encoded = slices[0].encoded
        self.piece_sizes: I64 = as_sizes(first.memory.piece_sizes)
        self._ends = np.cumsum([one.stop - one.start for one in slices])
        self.ids: U8 = _join([one.ids for one in slices])
        self.shards: I64 = _join([one.shards for one in slices])
        self.addresses: U64 = _join([one.addresses for one in slices])
        self.gates: U64 = np.repeat(
            np.array([one.task.gate_address for one in slices], dtype=np.uint64),
            [one.stop - one.start for one in slices],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def live(self) -> Bools:
        """Bool, shape (n,): rows whose task still waits for them."""
        return _join([np.full(len(one.status), one.task.alive) & (one.status == PENDING) for one in self.slices])

    def patience_s(self) -> float:
        """Seconds until the nearest deadline of those that still wait; infinite if nobody does."""
        return min((one.task.time_left_s() for one in self.slices if one.task.alive), default=math.inf)

    def when_hurried(self, call: Callable[[], None]) -> None:
        """Call `call` whenever a deadline moves closer; see `ucm_async.abc.Batch.when_hurried`."""
        for one in self.slices:
            one.task.when_hurried(call)

    def when_abandoned(self, call: Callable[[], None]) -> None:
        """Call `call`, perhaps several times, from when nobody waits for any row of the batch any more."""

        def check() -> None:
            if not any(one.task.alive for one in self.slices):
                call()

        for one in self.slices:
            one.task.when_abandoned(check if len(self.slices) > 1 else call)

    def report(self, rows: npt.NDArray[Any], status: Status | U8, error: StoreError | Reasons | None = None) -> None:
        """Settle `rows` (int indexes or bool mask); see `ucm_async.abc.Batch.report`."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        if len(self.slices) == 1:
            self.slices[0].report(rows, status, error)
            return
        owner = np.searchsorted(self._ends, rows, side="right")
        for i in np.unique(owner).tolist():
            mine = owner == i
            start = int(self._ends[i]) - len(self.slices[i].status)
            self.slices[i].report(rows[mine] - start, *_of_some(status, error, mine))

    def report_rest(self, status: Status, error: StoreError | None = None) -> None:
        """Settle every row that was not reported."""
        for one in self.slices:
            one.report_rest(status, error)


def _of_some(
    status: Status | U8, error: StoreError | Reasons | None, chosen: Bools
) -> tuple[Status | U8, StoreError | Reasons | None]:
    """Return what of a report is about the chosen ones of its rows."""
    if isinstance(status, np.ndarray):
        status = status[chosen]
    if isinstance(error, Mapping):
        error = reasons_of(error, np.flatnonzero(chosen))
    return status, error


def _join(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def make_batches(slices: Sequence[Slice]) -> list[SliceBatch]:
    """Put slices together that a stage can treat alike: same cut of the rows, same kind of memory, same durability.

    Encoded slices stay alone: a stage writes into what is known of their rows.
    """
    if len(slices) == 1:
        return [SliceBatch(slices)]
    groups: dict[tuple[object, ...], list[Slice]] = {}
    for one in slices:
        memory = one.task.memory
        alone = id(one) if one.task.encoded is not None else 0
        groups.setdefault((memory.piece_sizes, memory.direct, one.task.durability, alone), []).append(one)
    return [SliceBatch(group) for group in groups.values()]
