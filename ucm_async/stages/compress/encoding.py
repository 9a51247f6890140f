"""The dump lane: shards are encoded into slots, and handed on from there while others are being encoded."""

from __future__ import annotations

import errno
from functools import partial

import numpy as np

from ...abc import Batch
from ...coding import CODING_BEHIND, CODING_CHECKSUM, MIXED, RAW, Codings, EncodedRows
from ...native import execute
from ...tasks import WHOLE_BLOCK, group_blocks
from ...types import I64, U8, U64, Bools, Reasons, Status
from .codecs import Codec, Context, failure_of, make_codec
from .lane import LaneMeans, live_rows
from .units import Geometry, Units, distinct, in_order, parts_of, shares_of
from .unserved import Unserved
from .workers import all_of

__all__ = ["Encoder"]

PAGE = 4096


class Encoder:
    """Takes batches, and dumps them encoded.

    Blocks that are all there are packed into one row for the stage below; shards of others go one by one.
    """

    def __init__(self, means: LaneMeans, codec: Codec, unserved: Unserved) -> None:
        self.means = means
        self._codec = codec
        self._unserved = unserved
        self._plain = make_codec("raw")

    async def dump(self, batch: Batch) -> None:
        """Take the rows of `batch` that are still wanted."""
        rows = live_rows(batch)
        removed = await self._unserved.make_way(batch.ids[rows])
        self.means.counts["made_way"] += removed
        if batch.durability != "synced":
            rows = await self._skip_stored(batch, rows)
        while len(rows):
            first, group = group_blocks(np.ascontiguousarray(batch.ids[rows]))
            rows, group = in_order(rows, group)
            step = self.means.part_blocks(len(first), slots_a_block=2)
            parts = parts_of(group, len(first), step)
            again = await all_of([self._dump_part(batch, rows[part], group[part]) for part in parts])
            rows = np.sort(np.concatenate(again))
            rows = rows[batch.live()[rows]]

    async def _skip_stored(self, batch: Batch, rows: I64) -> I64:
        """Report the rows of blocks that are stored already: encoding is dear, asking is not. Returns the others."""
        if not len(rows):
            return rows
        first, group = group_blocks(np.ascontiguousarray(batch.ids[rows]))
        stored = await self.means.lower.holds(np.ascontiguousarray(batch.ids[rows[first]]))
        if not stored.any():
            return rows
        self.means.counts["already_stored"] += int(stored.sum())
        batch.report(rows[stored[group]], Status.OK)
        return rows[~stored[group]]

    async def _dump_part(self, batch: Batch, rows: I64, group: I64) -> I64:
        """Dump the rows of some blocks; returns those of blocks that a task gave up, which others may want."""
        ids, group = distinct(batch.ids, rows, group)
        means = self.means
        encoding = Encoding(means.geometry, batch, rows, group, ids)
        leased = await means.slots.lease(len(ids) * (2 if encoding.units.scattered else 1))
        try:
            encoding.prepare(means.slots.address(leased))
            shares = shares_of(len(ids), means.threads)
            await all_of(
                [means.workers.run(partial(encoding.run, share, self._codec, self._plain)) for share in shares]
            )
            return await self._hand_on(encoding)
        finally:
            means.slots.release(leased)

    async def _hand_on(self, encoding: Encoding) -> I64:
        """Dump below what was encoded, and report; returns the rows of blocks that a closed gate has kept."""
        self._report_failures(encoding)
        good = ~encoding.failed
        sending = []
        if (good & encoding.complete).any():
            sending.append(self._send_blocks(encoding, np.flatnonzero(good & encoding.complete)))
        if (good & ~encoding.complete).any():
            sending.append(
                self._send_shards(encoding, np.flatnonzero((good & ~encoding.complete)[encoding.unit_group]))
            )
        if sending:
            await all_of(sending)
        return encoding.rows[encoding.cancelled[encoding.group]]

    def _report_failures(self, encoding: Encoding) -> None:
        """Report the blocks that could not be encoded, which are a mistake of ours."""
        for g, unit in encoding.judge().items():
            self.means.counts["encode_errors"] += 1
            failure = failure_of(encoding.codings[unit])
            encoding.batch.report(encoding.rows[encoding.group == g], Status.IO_ERROR, failure)

    async def _send_blocks(self, encoding: Encoding, blocks: I64) -> None:
        """Dump whole blocks, packed."""
        encoded = encoding.packed(blocks, lossy=not self._codec.lossless)
        whole = np.full(len(blocks), WHOLE_BLOCK, dtype=np.int64)
        ids, addresses = encoding.ids[blocks], encoding.bases[blocks]
        row_bytes = self.means.geometry.slot_bytes
        status, reasons = await self._send(encoding.batch, ids, whole, addresses, encoded, row_bytes)
        encoding.report(blocks, status, reasons, encoding.group)

    async def _send_shards(self, encoding: Encoding, units: I64) -> None:
        """Dump single shards. If others of their block came from another codec, they are stored as they are."""
        mixed = await self._send_units(encoding, units)
        if len(mixed):
            await self.means.workers.run(partial(encoding.run_plain, mixed, self._plain))
            self.means.counts["mixed_shards"] += len(mixed)
            await self._send_units(encoding, mixed[~encoding.cancelled[encoding.unit_group[mixed]]])

    async def _send_units(self, encoding: Encoding, units: I64) -> I64:
        """Dump single shards; returns those that must be stored as they are, which are not reported."""
        if not len(units):
            return units
        encoded = encoding.apart(units, lossy=not self._codec.lossless)
        ids, shards = encoding.ids[encoding.unit_group[units]], encoding.unit_shard[units]
        addresses = encoding.codings["target"][units]
        row_bytes = self.means.geometry.shard_size
        status, reasons = await self._send(encoding.batch, ids, shards, addresses, encoded, row_bytes)
        mixed = np.zeros(len(units), dtype=np.bool_)
        mixed[[i for i, reason in reasons.items() if getattr(reason, "errno", 0) == MIXED]] = True
        encoding.report(units, status, reasons, encoding.unit_of_row, but=mixed)
        return units[mixed]

    async def _send(
        self, batch: Batch, ids: U8, shards: I64, addresses: U64, encoded: EncodedRows, row_bytes: int
    ) -> tuple[U8, Reasons]:
        counts = self.means.counts
        counts["shards"] += encoded.codecs.size
        counts["raw_shards"] += int((encoded.codecs == RAW).sum())
        counts["raw_bytes"] += encoded.codecs.size * self.means.geometry.shard_size
        counts["stored_bytes"] += int(encoded.lengths.sum())
        lower = self.means.lower
        return await lower.dump_encoded(ids, shards, addresses.reshape(-1, 1), row_bytes, encoded, batch.durability)


class Encoding:
    """Some blocks on their way into slots. Arrays of g are by block, arrays of u by distinct shard.

    Attributes
    ----------
    rows, group, unit_of_row
        Rows of the batch, (n,), ascending by block; the last one is that of a row's first shard.
    ids
        (g, 16).
    bases, staging
        Addresses of the slots, (g,); on the raw side only where shards are scattered.
    complete, failed, cancelled
        Bool (g,): all shards are there; the block was not encoded; because a gate had closed.
    unit_group, unit_shard, codings
        (u,), by block and shard.
    """

    bases: U64
    staging: U64 | None
    codings: Codings

    def __init__(self, geometry: Geometry, batch: Batch, rows: I64, group: I64, ids: U8) -> None:
        self._geometry = geometry
        self.batch, self.rows, self.group, self.ids = batch, rows, group, ids
        pieces, shards, gates = batch.addresses[rows], batch.shards[rows], batch.gates[rows]
        self.units = Units(geometry, batch.piece_sizes, pieces, shards, gates, group)
        keys = self.units.group * geometry.shards + self.units.shard
        distinct_keys, self._which, unit = np.unique(keys, return_index=True, return_inverse=True)
        self.unit_group, self.unit_shard = np.divmod(distinct_keys, geometry.shards)
        self.unit_of_row = unit[:: len(keys) // len(rows)]
        self.complete: Bools = np.bincount(self.unit_group, minlength=len(ids)) == geometry.shards
        self.failed: Bools = np.zeros(len(ids), dtype=np.bool_)
        self.cancelled: Bools = np.zeros(len(ids), dtype=np.bool_)

    def prepare(self, slots: U64) -> None:
        """Write the codings, into `slots`, as many as blocks, or twice as many if shards are scattered."""
        blocks = len(self.ids)
        self.bases, self.staging = slots[:blocks], slots[blocks:] if self.units.scattered else None
        self.codings = out = self.units.codings(self._which, self.staging, encode=True)
        behind = self.complete[self.unit_group] & (self.unit_shard > 0)  # whole blocks are packed
        out["target"] = self.bases[self.unit_group] + (self.unit_shard * self._geometry.shard_size).astype(np.uint64)
        out["flags"] = np.where(behind, CODING_BEHIND | CODING_CHECKSUM, CODING_CHECKSUM)

    def run(self, blocks: range, codec: Codec, plain: Codec, context: Context) -> None:
        """Encode some of the blocks; in a thread, while others do the same with others."""
        if self.staging is not None:
            start, stop = np.searchsorted(self.group, (blocks.start, blocks.stop)).tolist()
            copies = self.units.copies(slice(start, stop), self.staging, to_slots=True)
            execute(copies.reshape(-1))
            self.cancelled[self.group[start:stop][(copies["result"] < 0).any(axis=1)]] = True
        start, stop = np.searchsorted(self.unit_group, (blocks.start, blocks.stop)).tolist()
        codings = self.codings[start:stop]
        before = codings.copy()
        codec.encode(codings, context)
        for at in self._bulky(
            codings, self.unit_group[start:stop] - blocks.start, self.complete[blocks.start : blocks.stop]
        ):
            codings[at] = before[at]
            plain.encode(codings[at], context)

    def run_plain(self, units: I64, plain: Codec, context: Context) -> None:
        """Encode single shards anew, as they are; in a thread."""
        codings = self.codings[units]
        plain.encode(codings, context)
        self.codings[units] = codings
        self.cancelled[self.unit_group[units[codings["result"] < 0]]] = True  # a gate has closed

    def _bulky(self, codings: Codings, group: I64, complete: Bools) -> list[slice]:
        """Return where the shards of whole blocks are that took as many pages as before: not a page would be saved."""
        result = codings["result"]
        stored = np.bincount(group, np.maximum(result, 0), len(complete))
        shrunk = np.bincount(group, codings["codec"] != RAW, len(complete)) > 0
        well = np.bincount(group, result < 0, len(complete)) == 0
        bulky = np.flatnonzero(complete & shrunk & well & (stored > self._geometry.slot_bytes - PAGE))
        ends = np.searchsorted(group, bulky, side="right").tolist()
        return [slice(end - self._geometry.shards, end) for end in ends]

    def judge(self) -> dict[int, int]:
        """Note what was not encoded; returns blocks that never will be, and a shard of each that says why."""
        result = self.codings["result"]
        bad = np.flatnonzero(result < 0)
        gone = result[bad] == -errno.ECANCELED
        self.cancelled[self.unit_group[bad[gone]]] = True
        self.failed = self.cancelled.copy()
        wrong = {int(self.unit_group[unit]): unit for unit in bad[~gone].tolist()}
        wrong = {g: unit for g, unit in wrong.items() if not self.failed[g]}
        self.failed[list(wrong)] = True
        return wrong

    def report(self, sent: I64, status: U8, reasons: Reasons, of_row: I64, *, but: Bools | bool = False) -> None:
        """Report the rows whose block, or shard, was sent, `but` those of some; `of_row` has that of each row."""
        for i in np.flatnonzero((status != Status.OK) & ~np.asarray(but)).tolist():
            self.batch.report(self.rows[of_row == sent[i]], Status(status[i]), reasons.get(i))
        good = np.zeros(int(of_row.max()) + 1, dtype=np.bool_)
        good[sent[status == Status.OK]] = True
        self.batch.report(self.rows[good[of_row]], Status.OK)

    def packed(self, blocks: I64, *, lossy: bool) -> EncodedRows:
        """Return what is known of whole blocks."""
        codings = self.codings
        if len(blocks) < len(self.ids):
            chosen = np.zeros(len(self.ids), dtype=np.bool_)
            chosen[blocks] = True
            codings = codings[chosen[self.unit_group]]
        codings = codings.reshape(len(blocks), -1)
        return _known(codings, (codings["target"] - self.bases[blocks, None]).astype(np.int64), lossy=lossy)

    def apart(self, units: I64, *, lossy: bool) -> EncodedRows:
        """Return what is known of single shards."""
        codings = self.codings[units].reshape(-1, 1)
        return _known(codings, np.zeros(codings.shape, dtype=np.int64), lossy=lossy)


def _known(codings: Codings, offsets: I64, *, lossy: bool) -> EncodedRows:
    # Parameters are those of a shard that shrank; a header of a block that has none does not say them.
    some = (codings["codec"] != RAW).argmax(axis=1)
    return EncodedRows(
        codecs=codings["codec"].copy(),
        offsets=offsets,
        lengths=codings["result"].copy(),
        checksums=codings["checksum"].copy(),
        parameters=codings["parameters"][np.arange(len(codings)), some],
        lossy=np.full(len(codings), lossy),
    )
