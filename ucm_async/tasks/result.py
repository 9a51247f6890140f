"""What a task leaves behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..errors import StoreError
from ..types import ERROR_OF_STATUS, I64, U8, Bools, Reasons, Status

__all__ = ["FailureSet", "TaskResult"]


class FailureSet(Mapping[int, StoreError]):
    """The rows of a task that did not make it, each with its reason: row -> `StoreError`. Immutable.

    The errors are made when they are asked for; a task without failures costs nothing.
    """

    def __init__(self, status: U8, errors: Reasons, ids: U8, shards: I64) -> None:
        self._status = status
        self._errors = errors
        self._ids = ids
        self._shards = shards

    @property
    def told(self) -> Reasons:
        """The errors that came with their rows' statuses; without the rows of which nothing but that is known."""
        return self._errors

    def __getitem__(self, row: int) -> StoreError:
        if row not in self:
            raise KeyError(row)
        error = self._errors.get(row) or ERROR_OF_STATUS[Status(int(self._status[row]))]()
        return error.at(int(row), self._ids[row].tobytes(), int(self._shards[row]))

    def __iter__(self) -> Iterator[int]:
        return iter(self._status.nonzero()[0].tolist())

    def __len__(self) -> int:
        return int((self._status != Status.OK).sum())

    def __contains__(self, row: object) -> bool:
        if not isinstance(row, (int, np.integer)) or not 0 <= row < len(self._status):
            return False
        return bool(self._status[row] != Status.OK)

    def __repr__(self) -> str:
        shown = [f"{row}: {self[row].reason}" for row in list(self)[:_SHOWN_MAX]]
        more = len(self) - len(shown)
        return f"{{{', '.join(shown)}{f', and {more} more' if more else ''}}}"


@dataclass(frozen=True, slots=True, eq=False)
class TaskResult:
    """How each row of a task ended. The arrays are read-only.

    Attributes
    ----------
    status
        uint8, shape (n,): a `Status` for each row.
    failures
        Row -> `StoreError` of the rows that are not OK.
    settled
        True if nothing of the library touches the caller's memory any more. False only for registered memory after a
        deadline or a cancellation: then wait for ``await task.settled()`` before using it again.

    Notes
    -----
    What lies in the destination of a row that failed is undefined. The rows that are OK are whole and have been
    checked.
    """

    status: U8
    failures: FailureSet
    settled: bool

    @property
    def ok(self) -> Bools:
        """Bool, shape (n,): the rows that made it."""
        ok: Bools = self.status == _OK
        return ok

    @property
    def loaded_prefix(self) -> int:
        """Number of rows before the first failure: what a prefix cache can use."""
        failed = self.status.nonzero()[0]
        return int(failed[0]) if len(failed) else len(self.status)

    def raise_for_failures(self) -> None:
        """Raise what failed, if anything did.

        Raises
        ------
        StoreError
            The error of the first failed row, where one row failed.
        ExceptionGroup
            Of the first hundred errors, where several did.
        """
        rows = list(self.failures)
        if len(rows) == 1:
            raise self.failures[rows[0]]
        if rows:
            shown = [self.failures[row] for row in rows[:_ERRORS_RAISED_MAX]]
            raise ExceptionGroup(f"{len(rows)} of {len(self.status)} rows failed", shown)


_OK: Final = int(Status.OK)
_ERRORS_RAISED_MAX: Final = 100
_SHOWN_MAX: Final = 8
