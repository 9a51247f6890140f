"""The load lane: blocks are read as they are stored, and decoded into the caller's memory while others are read."""

from __future__ import annotations

import errno
from functools import partial

import numpy as np

from ...abc import Batch
from ...coding import CODING_CHECKSUM, Codings, EncodedRows
from ...errors import CorruptError, StoreError, UnknownCodecError
from ...native import execute
from ...tasks import group_blocks, reasons_of
from ...types import I64, U8, U64, Bools, Reasons, Status
from .codecs import Context, codec_name, decode, failure_of
from .lane import LaneMeans, live_rows
from .units import Geometry, Units, distinct, in_order, parts_of, shares_of
from .unserved import Unserved
from .workers import all_of

__all__ = ["Decoder"]


class Decoder:
    """Brings batches from blocks of any codec.

    What cannot be served is CORRUPT, stays where it is, and is `unserved` from then on.
    """

    def __init__(self, means: LaneMeans, unserved: Unserved) -> None:
        self.means = means
        self._unserved = unserved

    async def load(self, batch: Batch) -> None:
        """Bring the rows of `batch` that are still wanted."""
        rows = live_rows(batch)
        if not len(rows):
            return
        first, group = group_blocks(np.ascontiguousarray(batch.ids[rows]))
        rows, group = in_order(rows, group)
        step = self.means.part_blocks(len(first), slots_a_block=2)
        parts = parts_of(group, len(first), step)
        await all_of([self._load_part(batch, rows[part], group[part]) for part in parts])

    async def _load_part(self, batch: Batch, rows: I64, group: I64) -> None:
        """Load the rows of some blocks."""
        ids, group = distinct(batch.ids, rows, group)
        decoding = Decoding(self.means.geometry, batch, rows, group, ids)
        slots = self.means.slots
        leased = await slots.lease(len(ids) * (2 if decoding.units.scattered else 1))
        try:
            decoding.bases = slots.address(leased[: len(ids)])
            decoding.staging = slots.address(leased[len(ids) :]) if decoding.units.scattered else None
            addresses = decoding.bases.reshape(-1, 1)
            status, decoding.encoded, reasons = await self.means.lower.load_encoded(
                ids, addresses, self.means.geometry.slot_bytes
            )
            if self._choose(decoding, status, reasons).any():
                decoding.prepare()
                shares = shares_of(len(ids), self.means.threads)
                await all_of([self.means.workers.run(partial(decoding.run, share)) for share in shares])
                await self._settle(decoding)
        finally:
            slots.release(leased)

    def _choose(self, decoding: Decoding, status: U8, reasons: Reasons) -> Bools:
        """Report the rows of blocks that did not come, or are refused; returns which rows are to be decoded."""
        batch, rows, of_row = decoding.batch, decoding.rows, status[decoding.group]
        missing = of_row != Status.OK
        if missing.any():
            batch.report(rows[missing], of_row[missing], reasons_of(reasons, decoding.group[missing]))
        chosen = ~missing & batch.live()[rows]
        batch.report(rows[~missing & ~chosen], Status.CANCELLED)
        lossy = chosen & decoding.encoded.lossy[decoding.group]
        self.means.counts["lossy_rows"] += int(lossy.sum())
        if self._unserved.refuse_lossy and lossy.any():
            self._unserved.add(decoding.ids[np.unique(decoding.group[lossy])])
            for g in np.unique(decoding.group[lossy]).tolist():
                number = int(decoding.encoded.codecs[g].max())
                why = f"the block is stored with loss, by codec {codec_name(number)!r}, and refuse_lossy is set"
                batch.report(rows[lossy & (decoding.group == g)], Status.CORRUPT, CorruptError(why))
            self.means.counts["lossy_refused"] += int(lossy.sum())
            chosen &= ~lossy
        decoding.chosen = np.asarray(chosen)
        return decoding.chosen

    async def _settle(self, decoding: Decoding) -> None:
        """Report what was decoded; what is corrupt is set aside before anybody hears of it."""
        batch, rows = decoding.batch, decoding.rows
        good = decoding.rows_well()
        batch.report(rows[good], Status.OK)
        self.means.counts["rows"] += int(good.sum())
        if len(self._unserved):
            self._unserved.discard(decoding.ids[np.unique(decoding.group[good])])
        if good.sum() == decoding.chosen.sum():
            return
        failures = decoding.failures()
        corrupt = sorted(g for g, failure in failures.items() if type(failure) is CorruptError)
        if corrupt:
            self.means.counts["corrupt"] += len(corrupt)
            await self.means.lower.set_aside(np.ascontiguousarray(decoding.ids[corrupt]))
        unknown = [g for g, failure in failures.items() if isinstance(failure, UnknownCodecError)]
        self._unserved.add(decoding.ids[unknown])
        bad = decoding.chosen & ~good
        for g, failure in failures.items():
            status = Status.CORRUPT if isinstance(failure, CorruptError) else Status.IO_ERROR
            batch.report(rows[bad & (decoding.group == g)], status, failure)
        batch.report(rows[bad], Status.CANCELLED)  # the rest: their gates had closed


class Decoding:
    """Some blocks on their way out of slots. Arrays of g are by block, arrays of u by shard of a row.

    Attributes
    ----------
    rows, group
        Of the batch, (n,).
    ids, bases, staging
        (g, 16), (g,): blocks, where they are read to, and where they lie on the raw side if shards are scattered.
    encoded
        What the headers say, (g, shards).
    chosen
        Bool (n,): rows that are decoded.
    """

    bases: U64
    staging: U64 | None
    encoded: EncodedRows
    chosen: Bools

    def __init__(self, geometry: Geometry, batch: Batch, rows: I64, group: I64, ids: U8) -> None:
        self.batch, self.rows, self.group, self.ids = batch, rows, group, ids
        self.units = Units(
            geometry, batch.piece_sizes, batch.addresses[rows], batch.shards[rows], batch.gates[rows], group
        )
        self._copied: Bools = np.ones(len(rows), dtype=np.bool_)

    def prepare(self) -> None:
        """Write the codings."""
        self._which = np.flatnonzero(self.chosen[self.units.row])
        self.codings = codings = self.units.codings(self._which, self.staging, encode=False)
        at = self.units.group[self._which], self.units.shard[self._which]
        codings["source"] = self.bases[at[0]] + self.encoded.offsets[at].astype(np.uint64)
        codings["source_length"] = self.encoded.lengths[at]
        codings["codec"] = self.encoded.codecs[at]
        codings["parameters"] = self.encoded.parameters[at[0]]
        codings["flags"] = CODING_CHECKSUM
        self._expected = self.encoded.checksums[at]

    def run(self, blocks: range, context: Context) -> None:
        """Decode the rows of some blocks; in a thread, while others do the same with others."""
        start, stop = np.searchsorted(self.units.group[self._which], (blocks.start, blocks.stop)).tolist()
        decode(self.codings[start:stop], context)
        if self.staging is not None:
            start, stop = np.searchsorted(self.group, (blocks.start, blocks.stop)).tolist()
            rows = start + np.flatnonzero(self.chosen[start:stop])
            copies = self.units.copies(rows, self.staging, to_slots=False)
            execute(copies.reshape(-1))
            self._copied[rows] = (copies["result"] >= 0).all(axis=1)

    def rows_well(self) -> Bools:
        """Bool (n,): rows that are in the caller's memory."""
        well = (self.codings["result"] >= 0) & (self.codings["checksum"] == self._expected)
        row = self.units.row[self._which]
        return np.asarray(self.chosen & self._copied & (np.bincount(row[~well], minlength=len(self.rows)) == 0))

    def failures(self) -> dict[int, StoreError]:
        """Return what is wrong with blocks, by block; nothing for rows whose gates had closed."""
        out: dict[int, StoreError] = {}
        wrong_sum = self.codings["checksum"] != self._expected
        bad = wrong_sum | ((self.codings["result"] < 0) & (self.codings["result"] != -errno.ECANCELED))
        for i in np.flatnonzero(bad).tolist():
            unit = self._which[i]
            group, shard = int(self.units.group[unit]), int(self.units.shard[unit])
            if group in out:
                continue
            failure = None if wrong_sum[i] else failure_of(_one(self.codings, i))
            out[group] = failure or CorruptError(f"the checksum of shard {shard} is wrong")
        return out


def _one(codings: Codings, i: int) -> np.void:
    one: np.void = codings[i]
    return one
