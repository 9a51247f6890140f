"""Waiting for blocks that somebody else reads, in this process or another, without spinning."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ...engines.system import current_system
from ...engines.waits import patient
from ...errors import StoreError
from ...native import WATCH_FILLING
from ...types import I64, U8, Reasons, Status
from .transbuffer import TransBuffer

__all__ = ["WAIT_S_MAX", "Waiting"]

WAIT_S_MAX: Final = 0.5
"""So long another's read is waited for, over all calls that want the block: who was stopped must stop nobody else."""

WAIT_S_MIN: Final = 1e-6
"""What is left below that is a rounding error: a timer may not even move the clock by it."""

LOOK_EVERY_S: Final = 0.1
"""So often somebody who waits looks by himself: whether a reader died, which nobody tells."""

FIRST_SEEN_MAX: Final = 4096

REASONS_MAX: Final = 4096
"""Failures whose words are kept for those who have just begun to wait; of older ones only the status is known."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """Slots that one coroutine waits for."""

    slots: I64
    generations: npt.NDArray[np.uint32]
    change: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Waiting:
    """Who waits for which slots. One thread of the process sleeps on the table's futex, and only while anybody waits.

    Made on the loop that it serves.
    """

    def __init__(self, buffer: TransBuffer) -> None:
        self._buffer = buffer
        self._table = buffer.table
        self._loop = asyncio.get_running_loop()
        self._watcher = current_system().watch_table(buffer.table, self.look)
        self._tickets: list[_Ticket] = []
        self._timer: asyncio.TimerHandle | None = None
        self._reaping: asyncio.Task[None] | None = None
        self._first_seen: dict[tuple[int, int], float] = {}
        self._reasons: OrderedDict[tuple[int, int], StoreError] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tickets)

    async def change(self, slots: I64, generations: npt.NDArray[np.uint32], timeout_s: float) -> U8:
        """Wait until one of the slots is not being filled any more, for `timeout_s` seconds at most.

        Parameters
        ----------
        slots, generations
            As a claim gave them.
        timeout_s
            May be infinite.

        Returns
        -------
        numpy.ndarray
            uint8, how each is now: one of the ``WATCH_`` constants.
        """
        ticket = _Ticket(slots, generations)
        self._tickets.append(ticket)
        try:
            self.look()  # only now: a change between a look and a ticket would be missed
            await patient(ticket.change, timeout_s)
        finally:
            self._tickets.remove(ticket)
            if not self._tickets:
                self._rest()
        return self._watch(slots, generations)

    def left_s(self, slots: I64, generations: npt.NDArray[np.uint32]) -> float:
        """Return for how long this process may go on waiting for these slots, in this call and later ones; 0: no more.

        The oldest of them counts.
        """
        now = self._loop.time()
        if len(self._first_seen) > FIRST_SEEN_MAX:
            self._forget()
        keys = zip(slots.tolist(), generations.tolist(), strict=True)
        left_s = WAIT_S_MAX - now + min((self._first_seen.setdefault(key, now) for key in keys), default=now)
        return left_s if left_s > WAIT_S_MIN else 0.0

    def _forget(self) -> None:
        """Forget what is filled by now, or else everything: then somebody waits a while longer."""
        seen = np.array(list(self._first_seen), dtype=np.int64)
        told = self._watch(seen[:, 0].copy(), seen[:, 1].astype(np.uint32))
        kept = seen[told == WATCH_FILLING].tolist() if (told != WATCH_FILLING).any() else []
        self._first_seen = {(slot, generation): self._first_seen[slot, generation] for slot, generation in kept}

    def settle(self, slots: I64, generations: npt.NDArray[np.uint32], status: U8, reasons: Reasons) -> None:
        """Give up slots that this process was filling and whose `status` is not OK, and wake whoever waits.

        The slot has room for the status alone, which is what other processes get to know; for those of this one
        `reasons`, by position, are kept.
        """
        for number in np.unique(status[status != Status.OK]).tolist():
            self._table.fail(slots[status == number], number)
        for at, error in reasons.items():
            self._reasons[int(slots[at]), int(generations[at])] = error
        while len(self._reasons) > REASONS_MAX:
            self._reasons.popitem(last=False)
        self.look()

    def reasons(self, slots: I64, generations: npt.NDArray[np.uint32]) -> Reasons:
        """Return by position why slots that failed did, as far as it was this process that filled them."""
        if not self._reasons:
            return {}
        keys = enumerate(zip(slots.tolist(), generations.tolist(), strict=True))
        return {at: self._reasons[key] for at, key in keys if key in self._reasons}

    def look(self) -> None:
        """Wake those whose slots have changed. Who publishes in this process calls it: quicker than by the thread."""
        if not self._tickets:
            return
        self._watcher.arm()
        waiting = [ticket for ticket in self._tickets if not ticket.change.done()]
        if waiting:
            told = self._watch(
                np.concatenate([ticket.slots for ticket in waiting]),
                np.concatenate([ticket.generations for ticket in waiting]),
            )
            at = 0
            for ticket in waiting:
                if (told[at : at + len(ticket.slots)] != WATCH_FILLING).any():
                    ticket.change.set_result(None)
                at += len(ticket.slots)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_EVERY_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if not self._tickets:
            return
        self.look()
        if self._reaping is None or self._reaping.done():
            self._reaping = self._loop.create_task(self._reap())

    async def _reap(self) -> None:
        await self._buffer.reap()
        self.look()

    def _rest(self) -> None:
        self._watcher.disarm()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self, slots: I64, generations: npt.NDArray[np.uint32]) -> U8:
        told = np.empty(len(slots), dtype=np.uint8)
        self._table.watch(slots, generations, told)
        return told

    async def aclose(self) -> None:
        """End the thread. Nobody may wait any more."""
        self._rest()
        if self._reaping is not None:
            await asyncio.wait([self._reaping])
        await self._watcher.aclose()
        del self._watcher  # which knows this object: the memory must not wait for the collector of cycles
