"""Loading blocks as they are stored, for a stage above that decodes them: one read a block, as long as it is."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ..abc import Batch
from ..coding import EncodedRows
from ..engines import requests as rq
from ..engines.chains import ChainTable, addresses_of
from ..engines.waits import completed
from ..errors import BackendIOError, CorruptError
from ..types import I64, U8, Bools, Status
from .encoded_header import check_encoded_headers
from .header import used_bytes
from .loading import ATTEMPTS_MAX, BlockLoader

__all__ = ["EncodedBlockLoader"]

PlaceT = TypeVar("PlaceT")

READ_STEP, HEADER_STEP = 1, 2
"""Of each chain; before them a step that leads to the block, after them one that ends it."""


@dataclass(slots=True)
class EncodedReading(Generic[PlaceT]):
    """Blocks of a batch while they are read. All arrays are by block.

    Attributes
    ----------
    rows, group
        int64 (n,): rows of the batch; and 0, 1, …: each is a block.
    ids, place
        The blocks, and where they lie, as the stage has it.
    slots
        int64 (n,): where the headers go.
    chains
        Of four steps: lead, read, CHECKSUM of the header, end.
    apart, spoilt
        The blocks are read for the second time; rows to be read again, whose block was somewhere else by then.
    """

    batch: Batch
    rows: I64
    group: I64
    ids: U8
    place: PlaceT
    slots: I64
    chains: ChainTable
    apart: bool
    spoilt: list[int] = field(default_factory=list)


class EncodedBlockLoader(BlockLoader[PlaceT]):
    """Brings batches of decoded bytes, and of encoded ones. A subclass says where blocks lie, as for `BlockLoader`."""

    def _stored_bytes(self, place: PlaceT) -> I64:
        """Return how long each block may be where it lies, header and all: int64, shape (n,) or (1,) for all alike."""
        return np.full(1, self._layout.file_bytes)

    async def load_encoded(self, batch: Batch) -> None:
        """Read the blocks of `batch`, whole ones, into its memory, and fill in its `encoded` part.

        Nobody compares the checksums of shards here: who decodes takes them in the same pass.
        """
        step = self.transfer.heads.slots // 2
        for start in range(0, len(batch), step):
            await self._load_encoded_rows(batch, np.arange(start, min(start + step, len(batch))))

    async def _load_encoded_rows(self, batch: Batch, rows: I64) -> None:
        heads = self.transfer.heads
        slots = await heads.lease(len(rows))
        try:
            for again in (False, True):
                rows = await self._read_encoded(batch, rows, slots[: len(rows)], again=again)
                if not len(rows):
                    break
        finally:
            heads.release(slots)

    async def _read_encoded(self, batch: Batch, rows: I64, slots: I64, *, again: bool) -> I64:
        """Read and report; returns the rows whose blocks were moved meanwhile, the first time."""
        ids, every = np.ascontiguousarray(batch.ids[rows]), np.arange(len(rows))
        reading = EncodedReading(batch, rows, every, ids, self._locate(ids), slots, ChainTable(len(rows), 4), again)
        self._put_chains(reading)
        blocks = self._present(reading)
        for attempt in range(ATTEMPTS_MAX):
            if not len(blocks):
                break
            table = reading.chains.rows(blocks)
            self._before_attempt(table, attempt)
            await completed(self.transfer.engine.submit(table.reshape(-1), reading.chains.steps))
            last = attempt == ATTEMPTS_MAX - 1
            blocks = blocks[await self._judge_encoded(reading, blocks, table["result"], last=last)]
        return np.array(reading.spoilt, dtype=np.int64)

    def _put_chains(self, reading: EncodedReading[PlaceT]) -> None:
        """Read header and shards with one request, up to the end of the file."""
        layout, batch, table = self._layout, reading.batch, reading.chains.table
        bases = self.transfer.heads.address(reading.slots)
        vectors = np.zeros((len(reading.rows), 2), dtype=rq.IOVEC)
        vectors["address"][:, 0], vectors["length"][:, 0] = bases, layout.header_bytes
        vectors["address"][:, 1] = batch.addresses[reading.rows, 0]
        vectors["length"][:, 1] = self._stored_bytes(reading.place) - layout.header_bytes
        reads = rq.new_requests(len(reading.rows))
        reads["opcode"] = rq.OP_READV
        reads["address"] = addresses_of(vectors)
        reads["length"] = 2
        self._aim(reading.place, reads, np.arange(len(reads)))
        reading.chains.keep += (vectors, self._put_ends(reading.place, table))
        table[:, READ_STEP] = reads
        self._put_header_checksum(table[:, HEADER_STEP], bases)
        table["opcode"][:, HEADER_STEP] = rq.OP_CHECKSUM  # also after a short read: an encoded block is shorter
        counts = self.transfer.counts
        counts["blocks"] += len(reads)
        counts["rows"] += len(reads)
        counts["reads"] += len(reads)

    async def _judge_encoded(
        self, reading: EncodedReading[PlaceT], blocks: I64, results: npt.NDArray[np.int64], *, last: bool
    ) -> Bools:
        """Report `blocks`; bool, of their shape: True where another attempt may help."""
        layout, opened, read = self._layout, results[:, 0], results[:, READ_STEP]
        headers = self.transfer.heads.view()[reading.slots[blocks], : used_bytes(layout.shards)]
        own = results[:, HEADER_STEP]
        check = check_encoded_headers(layout, headers, reading.ids[blocks], self._namespace, own, read)
        there = (opened >= 0) & (read >= layout.header_bytes)
        good = there & check.good
        moved = np.array([self._moved(reading, block) for block in blocks.tolist()], dtype=np.bool_) & (read >= 0)
        if moved.any():  # what was read may be of two blocks, and only checksums of shards would tell
            self._look_again(reading, reading.rows[blocks[moved]])
            good &= ~moved
        if good.any():
            self._hand_over(reading, blocks[good], check.encoded.rows(good), read[good])
        short = (opened >= 0) & (read >= 0)
        rest = ~good & ~moved
        later = np.zeros(len(blocks), dtype=np.bool_) if last else rest & (short | (opened == -errno.EAGAIN))
        for i in np.flatnonzero(rest & ~later).tolist():
            why = check.why[i] if there[i] else f"the file is truncated: {read[i]} bytes"
            await self._report_one(reading, int(blocks[i]), int(opened[i]), int(read[i]), why)
        return np.asarray(later)

    def _hand_over(self, reading: EncodedReading[PlaceT], blocks: I64, known: EncodedRows, read: I64) -> None:
        """Report blocks that came, and what is known of them."""
        encoded, rows = reading.batch.encoded, reading.rows[blocks]
        assert encoded is not None
        encoded.put(rows, known)
        reading.batch.report(rows, Status.OK)
        self.transfer.counts["bytes"] += int(read.sum())
        self._came(reading, blocks)

    async def _report_one(self, reading: EncodedReading[PlaceT], block: int, opened: int, read: int, why: str) -> None:
        """Report a block that did not come, or is corrupt, which `why` tells; that is set aside."""
        row, counts = reading.rows[block : block + 1], self.transfer.counts
        if opened < 0:
            status, error = self._unreachable(reading, block, -opened)
            counts["missing" if status == Status.MISS else "open_errors"] += 1
            reading.batch.report(row, status, error)
        elif read < 0:
            counts["read_errors"] += 1
            reading.batch.report(row, Status.IO_ERROR, BackendIOError.from_errno(-read, "read"))
        else:
            counts["corrupt"] += 1
            failure = await self._set_aside(reading, block)
            why += f"; it could not be set aside: {failure}" if failure else ""
            reading.batch.report(row, Status.CORRUPT, CorruptError(why))
