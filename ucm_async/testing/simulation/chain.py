"""A chain of requests on a simulated disk: what each one does, and what the next one knows of it.

The rules are those of ``ext/copy.c`` and ``ext/chain.h``. Every request takes a time of its own, so the steps of chains
that were submitted together interleave, and between two pieces of one transfer anything may happen.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from ...engines import requests as rq
from ...native import crc32c, execute
from .faults import FILE_S, MEMORY_S, TRANSFER_S
from .memory import IOVECS_MAX, Ranges, is_closed, ranges_of, take

if TYPE_CHECKING:
    from .process import SimulatedProcess

__all__ = ["Chain"]

FLAGS: Final = rq.FLAG_LINK | rq.FLAG_CHAIN | rq.FLAG_CACHED | rq.FLAG_IF_WELL
CANCELED: Final = -errno.ECANCELED
READS: Final = (rq.OP_READ, rq.OP_READV)
MEMORY: Final = (rq.OP_COPY, rq.OP_CHECKSUM, rq.OP_MOVE)
DIRECT_ALIGN: Final = 512

Row = tuple[int, int, int, int, int, int, int]
"""A request as Python numbers: opcode, fd, offset, address, length, gate, result."""


class Chain:
    """Requests that run one after another.

    Parameters
    ----------
    requests
        The chain's own part of the batch; results appear there.
    process
        Whose descriptors and memory it works on.

    Attributes
    ----------
    running
        The request that is under way: its place in the chain.
    """

    __slots__ = (
        "_descriptor", "_moved", "_previous", "_process", "_ranges", "_requests", "_results", "_rows", "_token",
        "_total", "_well", "running",
    )  # fmt: skip

    def __init__(self, requests: rq.Requests, process: SimulatedProcess) -> None:
        self.running = 0
        self._requests = requests
        self._results = requests["result"]
        self._rows: list[Row] = requests.tolist()
        self._process = process
        self._descriptor = -errno.EBADF  # of the last OP_OPEN, or what its links end with
        self._previous = rq.PENDING_RESULT
        self._well = True
        self._ranges: Ranges = []
        self._moved = 0
        self._total = 0
        self._token: tuple[Ranges, bool] | None = None

    @property
    def unfinished(self) -> int:
        """How many requests are still to come, with the one under way."""
        return len(self._rows) - self.running

    def begin(self) -> float | None:
        """Run what takes no time, then begin the next request.

        Returns
        -------
        float or None
            Seconds until `go_on` is to be called; None when the chain is through.
        """
        while self.running < len(self._rows):
            row = self._rows[self.running]
            code = row[0] & rq.OP_MASK
            early = self._refusal(row, code)
            if early is not None:
                self._finish(early, went_well=early >= 0)
                continue
            if rq.OP_READ <= code <= rq.OP_WRITEV:
                self._begin_transfer(row, code)
                return self._process.faults.duration_s(TRANSFER_S)
            return self._process.faults.duration_s(MEMORY_S if code in MEMORY else FILE_S)
        return None

    def go_on(self) -> float | None:
        """Do what the time was for; returns as `begin`, or the seconds that the rest of a transfer takes."""
        row = self._rows[self.running]
        code = row[0] & rq.OP_MASK
        if rq.OP_READ <= code <= rq.OP_WRITEV:
            more = self._go_on_with_transfer(row, code)
            if more is not None:
                return more
        elif code in MEMORY:
            self._work_on_memory()
        else:
            result = self._process.file_operation(row, self._fd(row))
            if code == rq.OP_OPEN:
                self._descriptor = result if result >= 0 else CANCELED
            elif code == rq.OP_CLOSE and row[0] & rq.FLAG_LINK:
                self._descriptor = -errno.EBADF
            self._finish(result, went_well=result >= 0)
        return self.begin()

    def abandon(self) -> None:
        """Do nothing more to the disk, and fail as a whole: the process is dead, and what it had open is closed.

        What only works on memory is done: the Python objects that go on without a process have no reason to fail there.
        """
        if all(row[0] & rq.OP_MASK in MEMORY for row in self._rows):
            execute(self._requests)
        else:
            self._results[:] = -errno.EIO
        self.running = len(self._rows)

    # ---- one request

    def _refusal(self, row: Row, code: int) -> int | None:
        """Return the result of a request that ends at once; None if it is to be run."""
        opcode = row[0]
        if opcode & rq.FLAG_IF_WELL and not self._well:
            return CANCELED
        if opcode & ~(rq.OP_MASK | FLAGS) or not (code <= rq.OP_FSYNC or code in MEMORY):
            return -errno.EINVAL
        if code == rq.OP_NOP:
            return 0
        if code in MEMORY:
            return self._refusal_of_work(row)
        if opcode & rq.FLAG_LINK and self._descriptor < 0:
            return self._descriptor
        return self._refusal_of_transfer(row, code) if code <= rq.OP_WRITEV else None

    def _refusal_of_work(self, row: Row) -> int | None:
        if row[0] & rq.FLAG_CHAIN and self._previous < 0:
            return -errno.EINVAL if self._previous == rq.PENDING_RESULT else CANCELED
        return None

    def _refusal_of_transfer(self, row: Row, code: int) -> int | None:
        _, _, offset, address, length, gate, _ = row
        if is_closed(gate):
            return CANCELED
        if code in (rq.OP_READV, rq.OP_WRITEV) and length > IOVECS_MAX:
            return -errno.EINVAL
        opened = self._process.opened(self._fd(row))
        if opened is None or not (opened.readable if code in READS else opened.writable):
            return -errno.EBADF
        if not address and length:
            return -errno.EFAULT
        ranges = ranges_of(code, address, length)
        if opened.direct and any(n % DIRECT_ALIGN for n in (offset, *(n for one in ranges for n in one))):
            return -errno.EINVAL
        return None

    def _fd(self, row: Row) -> int:
        return self._descriptor if row[0] & rq.FLAG_LINK else row[1]

    def _finish(self, result: int, *, went_well: bool) -> None:
        self._results[self.running] = result
        self._previous = result
        self._well = self._well and went_well
        self.running += 1

    # ---- transfers

    def _begin_transfer(self, row: Row, code: int) -> None:
        self._ranges = ranges_of(code, row[3], row[4])
        self._moved = 0
        self._total = sum(length for _, length in self._ranges)
        self._token = self._process.memory.begin(self._ranges, code in READS, _NAMES[code])

    def _go_on_with_transfer(self, row: Row, code: int) -> float | None:
        """Move a piece; returns how long the rest takes, None if there is none."""
        process = self._process
        generator = process.faults.generator
        left = self._total - self._moved
        last = left <= PIECE_MIN or generator.random() < SHARE_WHOLE
        size = left if last else generator.randrange(1, -(-left // PIECE_MIN)) * PIECE_MIN
        move = process.read_piece if code in READS else process.write_piece
        result = move(self._fd(row), row[2] + self._moved, self._ranges, self._moved, size)
        self._moved += max(result, 0)
        if last or result < size:
            self._end_transfer(self._moved if result >= 0 else result)
            return None
        return process.faults.duration_s(TRANSFER_S)

    def _end_transfer(self, result: int) -> None:
        assert self._token is not None
        self._process.memory.end(self._token)
        self._token = None
        self._finish(result, went_well=result == self._total)

    # ---- copies and checksums

    def _work_on_memory(self) -> None:
        """Run a copy or a checksum, and those that follow it directly."""
        stop = self.running + 1
        while stop < len(self._rows) and self._joins(self._rows[stop]):
            stop += 1
        for row in self._rows[self.running : stop]:
            if row[0] & rq.OP_MASK != rq.OP_CHECKSUM:
                self._process.memory.look([(row[3], row[4])], True, "a copy")
                self._process.memory.look([(row[2], row[4])], False, "a copy")
            else:
                self._process.memory.look([(row[3], row[4])], False, "a checksum")
        first = self._rows[self.running]
        if first[0] & rq.FLAG_CHAIN:
            self._finish_chained(first)
            return
        execute(self._requests[self.running : stop])
        for result in self._results[self.running : stop].tolist():
            self._finish(result, went_well=result >= 0)

    def _joins(self, row: Row) -> bool:
        """Tell whether a request can run in one call with the copies before it: what is so well knows no more."""
        return row[0] & rq.OP_MASK in MEMORY and self._well and self._process.faults.generator.random() < SHARE_JOINED

    def _finish_chained(self, row: Row) -> None:
        """Run one request that goes on from the result of another kind of request, or in a call of its own."""
        at = self.running
        alone = self._requests[at : at + 1].copy()
        alone["opcode"] &= ~FLAGS & 0xFFFFFFFF
        execute(alone)
        result = int(alone["result"][0])
        if result >= 0:
            result = crc32c(take([(row[3], row[4])], 0, row[4]), self._previous)
        self._finish(result, went_well=result >= 0)


PIECE_MIN: Final = 512
"""Transfers are moved in whole multiples of this; not fewer bytes, or O_DIRECT would see odd addresses."""

SHARE_WHOLE: Final = 0.6
"""How often the rest of a transfer comes in one piece."""

SHARE_JOINED: Final = 0.7
"""How often a copy runs in one call with the one before it, with nothing in between."""

_NAMES: Final[dict[int, str]] = {
    rq.OP_READ: "a read",
    rq.OP_READV: "a read",
    rq.OP_WRITE: "a write",
    rq.OP_WRITEV: "a write",
}
