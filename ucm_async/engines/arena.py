"""The memory that belongs to the library: one prefaulted mapping, cut into slots of one size.

A slot is leased before an operation that the kernel does, and given back at its completion, never at a cancellation.
Everything here runs on one loop; only the mapping itself is made in a thread, because prefaulting takes its time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping as MappingABC
from typing import Any, Final

import numpy as np

from ..errors import StoreClosedError, WouldBlock
from ..types import I64, U8, U64
from .system import current_system

__all__ = ["SLOT_ALIGNMENT", "Arena"]

SLOT_ALIGNMENT: Final = 4096


class Arena:
    """Fixed-size slots in prefaulted memory, leased in order of arrival.

    Parameters
    ----------
    slot_bytes
        Bytes of a slot, rounded up to a multiple of `SLOT_ALIGNMENT`.
    slots
        How many there are.
    fd
        Share the memory from the start of this file, which must be long enough; -1 for memory of this process.

    Attributes
    ----------
    base, length
        Address and bytes of the whole.
    slot_bytes, slots
        As rounded.

    Notes
    -----
    The constructor prefaults, which takes tenths of a second a gigabyte: on a loop, use ``await Arena.create(...)``.
    Not thread-safe.
    """

    def __init__(self, slot_bytes: int, slots: int, *, fd: int = -1) -> None:
        if slot_bytes <= 0 or slots <= 0:
            raise ValueError(f"slot_bytes {slot_bytes} and slots {slots} must be positive")
        self.slot_bytes = -(-slot_bytes // SLOT_ALIGNMENT) * SLOT_ALIGNMENT
        self.slots = slots
        self._mapping = current_system().map_memory(self.slot_bytes * slots, fd)
        self.base = self._mapping.address
        self.length = self.slot_bytes * slots
        self._free: I64 = np.arange(slots - 1, -1, -1, dtype=np.int64)  # a stack: what was used last is still in cache
        self._left = slots
        self._leased = np.zeros(slots, dtype=np.bool_)
        self._waiters: deque[tuple[int, asyncio.Future[I64]]] = deque()
        self._leased_max = 0
        self._leases = 0
        self._waits = 0
        self._closed = False

    @classmethod
    async def create(cls, slot_bytes: int, slots: int, *, fd: int = -1) -> Arena:
        """Make an arena while the loop goes on. Parameters as of the class; OSError where there is no memory."""
        return await asyncio.to_thread(cls, slot_bytes, slots, fd=fd)

    def lease_nowait(self, n: int) -> I64:
        """Take `n` slots: int64, shape (n,).

        Raises
        ------
        WouldBlock
            Not as many are free, or others wait already.
        ValueError
            More than there are.
        StoreClosedError
            The arena is closed.
        """
        self._check(n)
        if self._waiters or n > self._left:
            raise WouldBlock(f"{n} slots wanted, {self._left} of {self.slots} free, {len(self._waiters)} waiting")
        return self._take(n)

    async def lease(self, n: int) -> I64:
        """Take `n` slots, int64, shape (n,), waiting behind those who came earlier. Errors as `lease_nowait`.

        Nothing is leased if the wait is cancelled.
        """
        self._check(n)
        if not self._waiters and n <= self._left:
            return self._take(n)
        self._waits += 1
        granted: asyncio.Future[I64] = asyncio.get_running_loop().create_future()
        self._waiters.append((n, granted))
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.release(granted.result())  # the grant and the cancellation crossed
            else:
                self._grant()  # a smaller wish behind this one may fit
            raise

    def release(self, slots: I64) -> None:
        """Give slots back; int64, shape (n,).

        Raises
        ------
        RuntimeError
            One of them is not leased, or is named twice. None is released then.
        """
        if len(slots) == 0:
            return
        before = self.leased
        was_leased = self._leased[slots]
        if was_leased.all():
            self._leased[slots] = False
            if int(np.count_nonzero(self._leased)) == before - len(slots):
                self._free[self._left : self._left + len(slots)] = slots[::-1]
                self._left += len(slots)
                self._grant()
                return
            self._leased[slots] = True
        raise RuntimeError(f"slots released twice, or never leased: {slots.tolist()}")

    def address(self, slots: I64) -> U64:
        """Return where the slots start: uint64, the shape of `slots`."""
        return np.uint64(self.base) + slots.astype(np.uint64) * np.uint64(self.slot_bytes)

    def view(self) -> U8:
        """Return all slots: uint8, shape (slots, slot_bytes). Keeps the mapping alive."""
        memory: Any = self._mapping
        octets: U8 = np.frombuffer(memory, dtype=np.uint8, count=self.length)
        return octets.reshape(self.slots, self.slot_bytes)

    def close(self) -> None:
        """Refuse new leases and those that wait; unmap, or leave that to the last view. Idempotent.

        The caller sees to it that the kernel has no request left that touches the memory.
        """
        if self._closed:
            return
        self._closed = True
        while self._waiters:
            _, granted = self._waiters.popleft()
            if not granted.done():
                granted.set_exception(StoreClosedError("the arena is closed"))
        with contextlib.suppress(BufferError):  # somebody looks at it still; the mapping goes with the last view
            self._mapping.close()

    @property
    def leased(self) -> int:
        """How many slots are leased."""
        return self.slots - self._left

    def statistics(self) -> MappingABC[str, Any]:
        """Return plain counters."""
        return {
            "slots": self.slots,
            "slot_bytes": self.slot_bytes,
            "leased": self.leased,
            "leased_max": self._leased_max,
            "leases": self._leases,
            "waits": self._waits,
            "waiting": len(self._waiters),
            "page_mode": self._mapping.page_mode,
        }

    def _check(self, n: int) -> None:
        if self._closed:
            raise StoreClosedError("the arena is closed")
        if not 0 <= n <= self.slots:
            raise ValueError(f"{n} slots wanted, the arena has {self.slots}")

    def _take(self, n: int) -> I64:
        self._left -= n
        slots = self._free[self._left : self._left + n][::-1].copy()
        self._leased[slots] = True
        self._leases += 1
        self._leased_max = max(self._leased_max, self.leased)
        return slots

    def _grant(self) -> None:
        """Serve the waiters in order, as far as the free slots go."""
        while self._waiters:
            n, granted = self._waiters[0]
            if not granted.done() and n > self._left:
                return
            self._waiters.popleft()
            if not granted.done():
                granted.set_result(self._take(n))
