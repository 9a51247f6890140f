"""Two native contexts behind one engine: a driver for batches, and a direct way for what is small.

The driver has threads of its own: the loop is woken once a batch, and I/O goes on at full depth while Python is busy.
A thread takes its time to wake, though. So a batch that is over soon is submitted by the loop itself, which then also
does the little work that is no transfer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from ..native import AioContext, Driver, UringContext
from .base import Context, ContextEngine
from .requests import (
    FLAG_CACHED,
    OP_CHECKSUM,
    OP_CLOSE,
    OP_COPY,
    OP_MASK,
    OP_MOVE,
    OP_NOP,
    OP_OPEN,
    OP_READ,
    OP_READV,
    OP_WRITE,
    OP_WRITEV,
    Requests,
)

__all__ = ["DIRECT_DEPTH", "HELPERS", "RingEngine", "is_small"]

HELPERS: Final = 2
"""Threads of a driver that run what is no transfer."""

DIRECT_DEPTH: Final = 16
"""Transfers of the direct way that may be with the kernel, beside those of the driver."""

SMALL_CHAINS_MAX: Final = 2
SMALL_REQUESTS_MAX: Final = 32
SMALL_BYTES_MAX: Final = 128 << 10
SMALL_VECTORS_MAX: Final = 64


def is_small(requests: Requests, chunk: int, *, writes: bool = True) -> bool:
    """Tell whether the loop itself may submit a batch, and run what is no transfer. Pure.

    Parameters
    ----------
    requests, chunk
        The arguments of ``submit``.
    writes
        Whether the kernel takes writes without waiting for the disk.

    Returns
    -------
    bool
        True if there are at most `SMALL_CHAINS_MAX` chains, which transfer at most `SMALL_BYTES_MAX` bytes, and copy
        and check each of them at most once; and if nothing in them may wait for a disk: no open without
        ``FLAG_CACHED``, no sync, no change to a directory. Requests without a chain must be transfers.
    """
    count = len(requests)
    if count > SMALL_CHAINS_MAX * chunk or count > SMALL_REQUESTS_MAX:
        return False
    transferred = worked = 0
    for opcode, address, length in zip(
        requests["opcode"].tolist(), requests["address"].tolist(), requests["length"].tolist(), strict=True
    ):
        code = opcode & OP_MASK
        if (code in (OP_WRITE, OP_WRITEV) and not writes) or (chunk == 1 and not OP_READ <= opcode <= OP_WRITEV):
            return False
        if code in (OP_READ, OP_WRITE):
            transferred += length
        elif code in (OP_READV, OP_WRITEV):
            transferred += _bytes_of_vectors(address, length)
        elif code in (OP_COPY, OP_CHECKSUM, OP_MOVE):
            worked += length
        elif code not in (OP_NOP, OP_CLOSE) and opcode != OP_OPEN | FLAG_CACHED:
            return False
    return transferred <= SMALL_BYTES_MAX and worked <= 2 * SMALL_BYTES_MAX


def _bytes_of_vectors(address: int, count: int) -> int:
    if count > SMALL_VECTORS_MAX:
        return SMALL_BYTES_MAX + 1
    return sum((ctypes.c_uint64 * (2 * count)).from_address(address)[1::2])


class RingEngine(ContextEngine):
    """A driver, and a ring of the loop's own.

    Parameters
    ----------
    make_direct, make_driver
        Make the contexts, which then belong to the engine.

    Attributes
    ----------
    writes_wait
        Whether submitting a write may wait for the disk.

    Raises
    ------
    OSError
        Whatever the two raise; nothing stays behind.
    """

    writes_wait: ClassVar[bool] = False

    def __init__(self, make_direct: Callable[[], AioContext | UringContext], make_driver: Callable[[], Driver]) -> None:
        self._direct = make_direct()
        try:
            self._driver = make_driver()
        except BaseException:
            self._direct.close()
            raise
        self._batches_direct = 0
        super().__init__(self._driver, self._direct)

    def submit_small(self, requests: Requests, chunk: int, on_done: Callable[[], None]) -> bool:
        """See `ucm_async.abc.Engine.submit_small`."""
        if self._closing is not None or self._direct.waiting:
            return False
        self._begin(self._direct, requests, on_done, chunk)
        self._batches_direct += 1
        return True

    def _choose(self, requests: Requests, chunk: int) -> Context:
        if self._direct.waiting or not is_small(requests, chunk, writes=not self.writes_wait):
            return self._driver
        self._batches_direct += 1
        return self._direct

    def statistics(self) -> Mapping[str, Any]:
        """Return plain counters; of the batches so many were ``driven``, by so many ``helpers``, and ``direct``."""
        return {
            **super().statistics(),
            "helpers": self._driver.threads,
            "driven": self._batches - self._batches_direct,
            "direct": self._batches_direct,
        }
