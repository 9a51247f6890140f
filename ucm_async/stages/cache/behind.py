"""Writing behind: blocks that are OK since they are in the cache, on their way to the stage below."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...abc import Lower
from ...errors import StoreError
from ...native import WATCH_GONE
from ...tasks import reasons_of
from ...types import ERROR_OF_STATUS, I64, U8, Reasons, Status
from .below import Below
from .fills import PART_BYTES
from .transbuffer import TransBuffer

__all__ = ["WriteBehind"]

_log = logging.getLogger("ucm_async.cache")

WRITES_AT_A_TIME: Final = 4
"""Parts that are under way below."""

TRIES: Final = 3
BACKOFF_S: Final = 0.1
"""Before the second try; before each later one four times as long."""

FAILURES_MAX: Final = 16384
"""Blocks whose failure is kept for the next `flush`; older ones are only in the log."""

_HOPELESS: Final = (Status.CLOSED, Status.CANCELLED)


@dataclass(slots=True, eq=False)
class _Debt:
    """Blocks of one dump: leased, dirty, and not stored below yet."""

    ids: U8
    slots: I64
    generations: npt.NDArray[np.uint32]
    tries: int = 0
    paid: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class WriteBehind:
    """What this process owes to the stage below, bounded by bytes. Belongs to one loop.

    Parameters
    ----------
    buffer, below, lower
        See their modules.
    bytes_max
        Of blocks that may be owed at a time; one block always may.
    counts
        Plain counters, by name.
    """

    def __init__(self, buffer: TransBuffer, below: Below, lower: Lower, bytes_max: int, counts: Counter[str]) -> None:
        self._buffer = buffer
        self._below = below
        self._lower = lower
        self._blocks_max = max(1, bytes_max // buffer.block_size)
        self._counts = counts
        self._reserved = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._queue: deque[_Debt] = deque()
        self._debts: set[_Debt] = set()
        self._writes: set[asyncio.Task[None]] = set()
        self._failures: OrderedDict[bytes, StoreError] = OrderedDict()

    @property
    def blocks_max(self) -> int:
        """Blocks that may be owed at a time."""
        return self._blocks_max

    # ---- the bound

    async def reserve(self, blocks: int) -> None:
        """Wait until `blocks` more may be owed, behind those who came earlier. At most `blocks_max`."""
        if not self._waiting and self._reserved + blocks <= self._blocks_max:
            self._reserved += blocks
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((blocks, granted))
        self._counts["behind_waits"] += 1
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.give_back(blocks)  # the grant and the cancellation crossed
            else:
                self._grant()  # a smaller wish behind this one may fit
            raise

    def give_back(self, blocks: int) -> None:
        """Give back what was reserved and is not needed (any more)."""
        assert 0 <= blocks <= self._reserved, "given back more than was reserved"
        self._reserved -= blocks
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            blocks, granted = self._waiting[0]
            if not granted.done():
                if self._reserved + blocks > self._blocks_max:
                    return
                self._reserved += blocks
                granted.set_result(None)
            self._waiting.popleft()

    # ---- writing

    def add(self, ids: U8, slots: I64, generations: npt.NDArray[np.uint32]) -> None:
        """Owe blocks that were reserved: READY and dirty, and leased once. The lease goes over to this object."""
        step = max(1, PART_BYTES // self._buffer.block_size)
        for at in range(0, len(ids), step):
            part = slice(at, at + step)
            debt = _Debt(ids[part], slots[part], generations[part])
            self._debts.add(debt)
            self._queue.append(debt)
        self._counts["blocks_behind"] += len(ids)
        self._start()

    def _start(self) -> None:
        """Start writes, as many as may be under way. Small debts that wait together go down together."""
        while self._queue and len(self._writes) < WRITES_AT_A_TIME:
            debts = [self._queue.popleft()]
            room = PART_BYTES // self._buffer.block_size - len(debts[0].ids)
            while self._queue and len(self._queue[0].ids) <= room:
                debts.append(self._queue.popleft())
                room -= len(debts[-1].ids)
            write = asyncio.get_running_loop().create_task(self._write(debts), name="ucm-cache-behind")
            self._writes.add(write)
            write.add_done_callback(self._ended)

    def _ended(self, write: asyncio.Task[None]) -> None:
        self._writes.discard(write)
        if not write.cancelled() and write.exception() is not None:
            _log.error("writing behind failed", exc_info=write.exception())
        self._start()

    async def _write(self, debts: list[_Debt]) -> None:
        """Write debts below; what becomes of each is settled, whatever happens."""
        ids = np.concatenate([debt.ids for debt in debts])
        slots = np.concatenate([debt.slots for debt in debts])
        generations = np.concatenate([debt.generations for debt in debts])
        status = np.full(len(ids), Status.CANCELLED, dtype=np.uint8)
        reasons: Reasons = {}
        try:
            status, reasons = await self._below.dump(ids, slots, "stored")
            await self._undo_deleted(ids, slots, generations, status)
        finally:
            at = 0
            for debt in debts:
                mine = np.arange(at, at + len(debt.ids))
                at += len(debt.ids)
                self._settle(debt, status[mine], reasons_of(reasons, mine))

    async def _undo_deleted(self, ids: U8, slots: I64, generations: npt.NDArray[np.uint32], status: U8) -> None:
        """Delete below what somebody deleted, in whatever process, while it was written: he could not see it there."""
        told = np.empty(len(slots), dtype=np.uint8)
        self._buffer.table.watch(slots, generations, told)
        gone = (told == WATCH_GONE) & (status == Status.OK)
        if gone.any():
            await self._lower.delete(np.ascontiguousarray(ids[gone]))

    def _settle(self, debt: _Debt, status: U8, reasons: Reasons) -> None:
        """Give back what is stored; what is not is tried again, or given up."""
        stored = status == Status.OK
        self._buffer.table.clean(debt.slots[stored])
        debt.tries += 1
        hopeless = np.isin(status, _HOPELESS) if debt.tries < TRIES else ~stored
        again = ~stored & ~hopeless
        if hopeless.any():
            self._give_up(debt.ids[hopeless], status[hopeless], reasons_of(reasons, np.flatnonzero(hopeless)))
        self._counts["blocks_stored_behind"] += int(np.count_nonzero(stored))
        self._buffer.table.release(debt.slots[~again])
        self.give_back(int(np.count_nonzero(~again)))
        debt.ids, debt.slots, debt.generations = debt.ids[again], debt.slots[again], debt.generations[again]
        if again.any():
            self._counts["behind_retries"] += len(debt.ids)
            delay = BACKOFF_S * 4 ** (debt.tries - 1)
            asyncio.get_running_loop().call_later(delay, self._try_again, debt)
        else:
            self._debts.discard(debt)
            debt.paid.set_result(None)

    def _try_again(self, debt: _Debt) -> None:
        self._queue.append(debt)
        self._start()

    def _give_up(self, ids: U8, status: U8, reasons: Reasons) -> None:
        """Make blocks misses again, and keep the reason for `flush`."""
        self._buffer.table.drop(np.ascontiguousarray(ids))
        self._counts["behind_failures"] += len(ids)
        for at, number in enumerate(status.tolist()):
            self.not_written(_WHY, ids[at].tobytes(), Status(number), reasons.get(at))

    def not_written(self, what: str, block_id: bytes, status: Status, reason: StoreError | None) -> None:
        """Keep as a failure that the stage below did not take a block, and its `reason`, if it gave one."""
        error = ERROR_OF_STATUS[status](f"{what}: {reason.reason}" if reason else what, block_id=block_id)
        error.__cause__ = reason
        self.failed(error)

    def failed(self, error: StoreError) -> None:
        """Keep a failure that the next `flush` returns, and log it now."""
        _log.error("%s", error)
        self._failures[error.block_id] = error
        if len(self._failures) > FAILURES_MAX:
            self._failures.popitem(last=False)

    # ---- the end of debts

    async def flush(self) -> dict[bytes, StoreError]:
        """Wait until what is owed now is stored or given up; returns, once, what failed since the last time."""
        if self._debts:
            await asyncio.wait([debt.paid for debt in self._debts])
        failures, self._failures = self._failures, OrderedDict()
        return dict(failures)

    async def settle(self, ids: U8) -> None:
        """Wait until none of these blocks is owed any more."""
        wanted = set(map(bytes, ids))
        owing = [debt.paid for debt in self._debts if not wanted.isdisjoint(map(bytes, debt.ids))]
        if owing:
            await asyncio.wait(owing)

    async def aclose(self) -> None:
        """Write what is owed, or say what could not be."""
        await self.flush()
        if self._writes:
            await asyncio.wait(self._writes)

    def statistics(self) -> Mapping[str, Any]:
        """Return plain counters."""
        return {
            "owed_bytes": sum(len(debt.ids) for debt in self._debts) * self._buffer.block_size,
            "owed_bytes_max": self._blocks_max * self._buffer.block_size,
            "waiting": len(self._waiting),
            "failures": len(self._failures),
        }


_WHY: Final = "it was in the cache, but could not be written to the stage below"
