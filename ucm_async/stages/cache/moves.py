"""Copies between slots and callers: plain ones, for what lies in memory was checked when it came there."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...abc import Batch, Engine
from ...engines import requests as rq
from ...engines.chains import copy_requests
from ...engines.psync import job_size
from ...engines.waits import INLINE_COPY_BYTES_MAX, Haste, completed, patient_in_haste
from ...native import execute
from ...tasks import Cuts, cut_row
from ...types import I64, U64, Bools, Status

__all__ = ["Mover", "cut_moves"]

MOVE_BYTES_MAX: Final = 1 << 20
"""Longer runs are cut, so that one large block keeps all threads busy."""

PATIENCE_S_MIN: Final = 0.0005
"""Rows that are in are reported before a deadline, but not more often than this."""


class Mover:
    """Copies rows of batches on a pool of threads, or on the loop where that is quicker than to wake one.

    Parameters
    ----------
    pool
        Owned by the mover.
    threads
        Of the pool.
    """

    def __init__(self, pool: Engine, threads: int) -> None:
        self._pool = pool
        self._threads = threads

    async def deliver(self, batch: Batch, rows: I64, places: U64) -> None:
        """Copy rows to the caller and report each as soon as it is there; CANCELLED where its task settled first.

        Parameters
        ----------
        batch
            Of a load.
        rows
            int64, shape (n,): rows of the batch.
        places
            uint64, shape (n,): where each row lies in the library's memory.
        """
        if not len(rows):
            return
        moves = _moves(batch, rows, places, to_slots=False)
        results = moves["result"]
        if int(moves["length"].sum()) <= INLINE_COPY_BYTES_MAX:
            execute(moves.reshape(-1))
            _report(batch, rows, results)
            return
        done = self._submit(moves)
        haste = Haste()
        batch.when_hurried(haste)
        try:
            while not await patient_in_haste(done, lambda: max(batch.patience_s() / 2, PATIENCE_S_MIN), haste):
                there = (results != rq.PENDING_RESULT).all(axis=1)
                _report(batch, rows[there], results[there])
        finally:
            await completed(done)
        _report(batch, rows, results)

    async def take(self, batch: Batch, rows: I64, places: U64) -> Bools:
        """Copy rows from the caller; arguments as of `deliver`. False where the task of a row settled first."""
        if not len(rows):
            return np.zeros(0, dtype=np.bool_)
        moves = _moves(batch, rows, places, to_slots=True)
        if int(moves["length"].sum()) <= INLINE_COPY_BYTES_MAX:
            execute(moves.reshape(-1))
        else:
            await completed(self._submit(moves))
        return _let_in(moves["result"])

    def _submit(self, moves: rq.Requests) -> Any:
        flat = moves.reshape(-1)
        return self._pool.submit(flat, job_size(len(flat), 1, self._threads))

    def statistics(self) -> Mapping[str, Any]:
        """See `ucm_async.abc.Engine.statistics`."""
        return self._pool.statistics()

    async def aclose(self) -> None:
        """End the threads."""
        await self._pool.aclose()


def _moves(batch: Batch, rows: I64, places: U64, *, to_slots: bool) -> rq.Requests:
    return copy_requests(
        rq.OP_MOVE,
        cut_moves(tuple(batch.piece_sizes.tolist())),
        slots=places,
        pieces=batch.addresses[rows],
        gates=batch.gates[rows],
        to_slots=to_slots,
    )


def _let_in(results: npt.NDArray[np.int64]) -> Bools:
    """Tell which rows were copied whole: at the others the gate was closed."""
    return np.asarray((results >= 0).all(axis=1))


def _report(batch: Batch, rows: I64, results: npt.NDArray[np.int64]) -> None:
    let_in = _let_in(results)
    if let_in.all():
        batch.report(rows, Status.OK)
        return
    batch.report(rows[let_in], Status.OK)
    batch.report(rows[~let_in], Status.CANCELLED)


@lru_cache(maxsize=64)
def cut_moves(piece_sizes: tuple[int, ...]) -> Cuts:
    """Cut a row at the ends of its pieces, and long pieces every `MOVE_BYTES_MAX` bytes."""
    pieces = cut_row(piece_sizes, sum(piece_sizes))
    parts = -(-pieces.length // MOVE_BYTES_MAX)
    of = np.repeat(np.arange(len(pieces)), parts)
    within = (np.arange(len(of)) - (np.cumsum(parts) - parts)[of]) * MOVE_BYTES_MAX
    nothing = np.zeros(len(of), dtype=np.int64)
    return Cuts(
        pieces.offset[of] + within,
        np.minimum(pieces.length[of] - within, MOVE_BYTES_MAX),
        pieces.piece[of],
        pieces.piece_offset[of] + within,
        shard=nothing,
        continues=nothing.astype(np.bool_),
        last=nothing[:1],
    )
