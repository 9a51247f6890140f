"""The dump lane: shards are encoded into slots, and handed on from there while others are being encoded."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from ...abc import Batch
from ...coding import CODING_BEHIND, CODING_CHECKSUM, RAW, Codings, EncodedRows
from ...native import execute
from ...tasks import WHOLE_BLOCK, group_blocks
from ...types import I64, U8, U64, Bools, Durability, Status
from .codecs import Codec, Context, failure_of, make_codec
from .lane import LaneMeans, live_rows
from .units import Geometry, Units, distinct, in_order, parts_of
from .workers import all_of

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

__all__ = ["Encoder"]

PAGE = 4096


class Encoder:
    """Takes batches, and dumps them encoded.

    Blocks that are all there are packed into one row for the stage below; shards of others go one by one.
    """

    def __init__(self, means: LaneMeans, codec: Codec) -> None:
        self.means = means
        self._codec = codec
        self._plain = make_codec("raw")

    async def dump(self, batch: Batch) -> None:
        """Take the rows of `batch` that are still wanted."""
        rows = live_rows(batch)
        while len(rows):
            first, group = group_blocks(np.ascontiguousarray(batch.ids[rows]))
            rows, group = in_order(rows, group)
            step = self.means.part_blocks(len(first), slots_a_block=2)
            parts = parts_of(group, len(first), step)
            again = await all_of([self._dump_part(batch, rows[part], group[part]) for part in parts])
            rows = np.sort(np.concatenate(again))
            rows = rows[batch.live()[rows]]

    async def _dump_part(self, batch: Batch, rows: I64, group: I64) -> I64:
        """Dump the rows of some blocks; returns those of blocks that a task gave up, which others may want."""
        ids, group = distinct(batch.ids, rows, group)
        if batch.durability != "synced":
            rows, group, ids = await self._skip_stored(batch, rows, group, ids)
            if not len(rows):
                return rows
        encoding = _Encoding(self.means.geometry, batch, rows, group, ids)
        slots = self.means.slots
        leased = await slots.lease(len(ids) * (2 if encoding.units.scattered else 1))
        try:
            encoding.bases = slots.address(leased[: len(ids)])
            encoding.staging = slots.address(leased[len(ids) :]) if encoding.units.scattered else None
            await self.means.workers.run(lambda context: encoding.run(self._codec, self._plain, context))
            return await self._hand_on(encoding)
        finally:
            slots.release(leased)

    async def _skip_stored(self, batch: Batch, rows: I64, group: I64, ids: U8) -> tuple[I64, I64, U8]:
        """Report the rows of blocks that are stored already: encoding is dear, asking is not. Returns the others."""
        stored = await self.means.lower.lookup(ids)
        if not stored.any():
            return rows, group, ids
        self.means.counts["already_stored"] += int(stored.sum())
        batch.report(rows[stored[group]], Status.OK)
        rest = ~stored[group]
        return rows[rest], (np.cumsum(~stored) - 1)[group[rest]], np.ascontiguousarray(ids[~stored])

    async def _hand_on(self, encoding: _Encoding) -> I64:
        """Dump below what was encoded, and report; returns the rows of blocks that a closed gate has kept."""
        encoding.judge(self.means)
        again = encoding.rows[encoding.cancelled[encoding.group]]
        sending: list[Coroutine[Any, Any, None]] = []
        if (encoding.complete & ~encoding.failed).any():
            sending.append(self._send_blocks(encoding))
        if (~encoding.complete & ~encoding.failed).any():
            sending.append(self._send_shards(encoding))
        if sending:
            await all_of(sending)
        return again

    async def _send_blocks(self, encoding: _Encoding) -> None:
        blocks = np.flatnonzero(encoding.complete & ~encoding.failed)
        encoded = encoding.packed(blocks, lossy=not self._codec.lossless)
        whole = np.full(len(blocks), WHOLE_BLOCK, dtype=np.int64)
        status = await self._send(encoding, encoding.ids[blocks], whole, encoding.bases[blocks], encoded)
        of_block = np.full(len(encoding.ids), Status.OK, dtype=np.uint8)
        of_block[blocks] = status
        mine = np.isin(encoding.group, blocks)
        encoding.batch.report(encoding.rows[mine], of_block[encoding.group[mine]])

    async def _send_shards(self, encoding: _Encoding) -> None:
        units = np.flatnonzero(~(encoding.complete | encoding.failed)[encoding.unit_group])
        group, shard = encoding.unit_group[units], encoding.unit_shard[units]
        encoded = encoding.apart(units, lossy=not self._codec.lossless)
        addresses = encoding.codings["target"][units]
        status = await self._send(encoding, encoding.ids[group], shard, addresses, encoded)
        of_unit = np.full(len(encoding.codings), Status.OK, dtype=np.uint8)
        of_unit[units] = status
        mine = np.isin(encoding.unit_of_row, units)
        encoding.batch.report(encoding.rows[mine], of_unit[encoding.unit_of_row[mine]])

    async def _send(self, encoding: _Encoding, ids: U8, shards: I64, addresses: U64, encoded: EncodedRows) -> U8:
        counts = self.means.counts
        counts["shards"] += encoded.codecs.size
        counts["raw_shards"] += int((encoded.codecs == RAW).sum())
        counts["raw_bytes"] += encoded.codecs.size * self.means.geometry.shard_size
        counts["stored_bytes"] += int(encoded.lengths.sum())
        durability: Durability = encoding.batch.durability
        ids, addresses = np.ascontiguousarray(ids), addresses.reshape(-1, 1)
        row_bytes = self.means.geometry.slot_bytes if shards[0] < 0 else self.means.geometry.shard_size
        return await self.means.lower.dump_encoded(ids, shards, addresses, row_bytes, encoded, durability)


class _Encoding:
    """Some blocks on their way into slots. Arrays of g are by block, arrays of u by distinct shard.

    Attributes
    ----------
    rows, group, unit_of_row
        Of the batch: (n,); the last one is that of a row's first shard.
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
        self.units = Units(
            geometry, batch.piece_sizes, batch.addresses[rows], batch.shards[rows], batch.gates[rows], group
        )
        keys = self.units.group * geometry.shards + self.units.shard
        distinct_keys, self._which, unit = np.unique(keys, return_index=True, return_inverse=True)
        self.unit_group, self.unit_shard = np.divmod(distinct_keys, geometry.shards)
        self.unit_of_row = unit[:: len(keys) // len(rows)]
        self.complete: Bools = np.bincount(self.unit_group, minlength=len(ids)) == geometry.shards
        self.failed: Bools = np.zeros(len(ids), dtype=np.bool_)
        self.cancelled: Bools = np.zeros(len(ids), dtype=np.bool_)

    # ---- in a thread

    def run(self, codec: Codec, plain: Codec, context: Context) -> None:
        """Encode everything."""
        if self.staging is not None:
            copies = self.units.copies(self.staging, to_slots=True)
            execute(copies.reshape(-1))
            shut_out = (copies["result"] < 0).any(axis=1)
            self.cancelled[self.group[shut_out]] = True
        self.codings = self._codings(np.arange(len(self._which)))
        codec.encode(self.codings, context)
        bulky = np.flatnonzero(np.isin(self.unit_group, self._bulky()))
        if len(bulky):  # as it is: not a page would be saved
            again = self._codings(bulky)
            plain.encode(again, context)
            self.codings[bulky] = again

    def _codings(self, units: I64) -> Codings:
        """Codings of distinct shards; those of a whole block one behind another."""
        out = self.units.codings(self._which[units], self.staging, encode=True)
        group, shard = self.unit_group[units], self.unit_shard[units]
        behind = self.complete[group] & (shard > 0)
        out["target"] = self.bases[group] + (shard * self._geometry.shard_size).astype(np.uint64)
        out["flags"] = np.where(behind, CODING_BEHIND | CODING_CHECKSUM, CODING_CHECKSUM)
        return out

    def _bulky(self) -> I64:
        """Return the whole blocks that take as many pages as they did."""
        stored = np.bincount(self.unit_group, np.maximum(self.codings["result"], 0), len(self.ids))
        shrunk = np.bincount(self.unit_group, self.codings["codec"] != RAW, len(self.ids)) > 0
        well = np.bincount(self.unit_group, self.codings["result"] < 0, len(self.ids)) == 0
        return np.flatnonzero(self.complete & shrunk & well & (stored > self._geometry.slot_bytes - PAGE))

    # ---- on the loop

    def judge(self, means: LaneMeans) -> None:
        """Find out which blocks were not encoded, and report those that never will be."""
        bad = self.codings["result"] < 0
        gone = self.codings["result"] == -errno.ECANCELED
        self.cancelled[self.unit_group[gone]] = True
        self.failed |= self.cancelled
        for unit in np.flatnonzero(bad & ~gone).tolist():
            g = int(self.unit_group[unit])
            if not self.failed[g]:
                self.failed[g] = True
                means.counts["encode_errors"] += 1
                failure = failure_of(self.codings[unit])
                self.batch.report(self.rows[self.group == g], Status.IO_ERROR, failure)

    def packed(self, blocks: I64, *, lossy: bool) -> EncodedRows:
        """Return what is known of whole blocks."""
        units = np.flatnonzero(np.isin(self.unit_group, blocks))
        codings = self.codings[units].reshape(len(blocks), -1)
        offsets = (codings["target"] - self.bases[blocks, None]).astype(np.int64)
        return _known(codings, offsets, lossy=lossy)

    def apart(self, units: I64, *, lossy: bool) -> EncodedRows:
        """Return what is known of single shards."""
        codings = self.codings[units].reshape(-1, 1)
        return _known(codings, np.zeros(codings.shape, dtype=np.int64), lossy=lossy)


def _known(codings: Codings, offsets: I64, *, lossy: bool) -> EncodedRows:
    return EncodedRows(
        codecs=np.ascontiguousarray(codings["codec"]),
        offsets=offsets,
        lengths=np.ascontiguousarray(codings["result"]),
        checksums=np.ascontiguousarray(codings["checksum"]),
        parameters=_parameters(codings),
        lossy=np.full(len(codings), lossy),
    )


def _parameters(codings: Codings) -> U8:
    """Of each row, those of a shard that shrank: blocks that did not have none."""
    some = (codings["codec"] != RAW).argmax(axis=1)
    return np.ascontiguousarray(codings["parameters"][np.arange(len(codings)), some])
