"""Loading blocks as they are stored, for a stage above that decodes them: one read a block, as long as it is."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ..abc import Batch
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
    rows
        int64 (n,): rows of the batch.
    ids, place
        The blocks, and where they lie, as the stage has it.
    slots
        int64 (n,): where the headers go.
    chains
        Of four steps: lead, read, CHECKSUM of the header, end.
    """

    batch: Batch
    rows: I64
    ids: U8
    place: PlaceT
    slots: I64
    chains: ChainTable


class EncodedBlockLoader(BlockLoader[PlaceT]):
    """Brings batches of decoded bytes, and of encoded ones. A subclass says where blocks lie, as for `BlockLoader`."""

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
            again = False
            while len(rows):
                rows = await self._read_encoded(batch, rows, slots[: len(rows)], again=again)
                again = True
        finally:
            heads.release(slots)

    async def _read_encoded(self, batch: Batch, rows: I64, slots: I64, *, again: bool) -> I64:
        """Read and report; returns the rows whose blocks were moved meanwhile, once."""
        ids = np.ascontiguousarray(batch.ids[rows])
        reading = EncodedReading(batch, rows, ids, self._locate(ids), slots, ChainTable(len(rows), 4))
        self._put_chains(reading)
        moved: list[int] = []
        blocks = np.arange(len(rows))
        for attempt in range(ATTEMPTS_MAX):
            table = reading.chains.rows(blocks)
            self._before_attempt(table, attempt)
            await completed(self.transfer.engine.submit(table.reshape(-1), reading.chains.steps))
            last = attempt == ATTEMPTS_MAX - 1
            later = await self._judge_encoded(reading, blocks, table["result"], moved, last=last)
            blocks = blocks[later]
            if not len(blocks):
                break
        if again and moved:
            self.transfer.counts["missing"] += len(moved)
            batch.report(np.array(moved), Status.MISS)
            moved = []
        return np.array(moved, dtype=np.int64)

    def _put_chains(self, reading: EncodedReading[PlaceT]) -> None:
        """Read header and shards with one request, up to the end of the file."""
        layout, batch, table = self._layout, reading.batch, reading.chains.table
        bases = self.transfer.heads.address(reading.slots)
        vectors = np.zeros((len(reading.rows), 2), dtype=rq.IOVEC)
        vectors["address"][:, 0], vectors["length"][:, 0] = bases, layout.header_bytes
        vectors["address"][:, 1] = batch.addresses[reading.rows, 0]
        vectors["length"][:, 1] = layout.file_bytes - layout.header_bytes
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
        self,
        reading: EncodedReading[PlaceT],
        blocks: I64,
        results: npt.NDArray[np.int64],
        moved: list[int],
        *,
        last: bool,
    ) -> Bools:
        """Report `blocks`, but collect the rows of moved ones; returns which deserve another attempt."""
        opened, read = results[:, 0], results[:, READ_STEP]
        headers = self.transfer.heads.view()[reading.slots[blocks], : used_bytes(self._layout.shards)]
        ids = reading.ids[blocks]
        check = check_encoded_headers(self._layout, headers, ids, self._namespace, results[:, HEADER_STEP], read)
        there = (opened >= 0) & (read >= self._layout.header_bytes)
        good = there & check.good
        if good.any():
            self.transfer.counts["bytes"] += int(read[good].sum())
            encoded, rows = reading.batch.encoded, reading.rows[blocks[good]]
            assert encoded is not None
            encoded.put(rows, check.encoded.rows(good))
            reading.batch.report(rows, Status.OK)
            self._came(reading, blocks[good])
        short = (opened >= 0) & (read >= 0) & ~good
        later = np.zeros(len(blocks), dtype=np.bool_) if last else short | (opened == -errno.EAGAIN)
        for i in np.flatnonzero(~good & ~later).tolist():
            block, row = int(blocks[i]), reading.rows[blocks[i : i + 1]]
            if opened[i] < 0:
                status, error = self._unreachable(reading, block, -int(opened[i]))
                self.transfer.counts["missing" if status == Status.MISS else "open_errors"] += 1
                reading.batch.report(row, status, error)
            elif self._moved(reading, block):
                moved += row.tolist()
            elif read[i] < 0:
                self.transfer.counts["read_errors"] += 1
                failure = BackendIOError.from_errno(-int(read[i]), "read")
                reading.batch.report(row, Status.IO_ERROR, failure)
            else:
                why = check.why[i] if there[i] else f"the file is truncated: {read[i]} bytes"
                await self._report_encoded_corrupt(reading, block, why)
        return np.asarray(later)

    async def _report_encoded_corrupt(self, reading: EncodedReading[PlaceT], block: int, why: str) -> None:
        self.transfer.counts["corrupt"] += 1
        failure = await self._set_aside(reading, block)
        if failure:
            why += f"; it could not be set aside: {failure}"
        reading.batch.report(reading.rows[block : block + 1], Status.CORRUPT, CorruptError(why))
