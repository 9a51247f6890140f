"""Loading from slots: a chain reads, checks and gathers; a slot that has changed meanwhile is looked for once more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import numpy as np

from ...abc import Batch
from ...blocks.encoded_loading import EncodedBlockLoader
from ...blocks.layout import BlockLayout
from ...blocks.loading import Located
from ...blocks.transfer import Transfer
from ...engines import requests as rq
from ...engines.arena import Arena
from ...errors import BackendIOError, StoreError
from ...space import WEIGHT_LOAD
from ...types import I64, U8, Status
from .slabs import Place, Slabs

__all__ = ["Loader", "SetAside"]

SetAside = Callable[[int, int, int, U8], Awaitable[str]]
"""Told backend, slot, word and id of a bad block; returns why it could not be set aside, empty if it was."""


class Touch(Protocol):
    """As `ucm_async.space.SpaceManager.touch`."""

    def __call__(self, ids: U8, weight: float) -> None: ...


class Loader(EncodedBlockLoader[Place]):
    """Brings batches from the slots of several backends."""

    def __init__(
        self,
        layout: BlockLayout,
        namespace: bytes,
        slabs: Slabs,
        touch: Touch,
        set_aside: SetAside,
        transfer: Transfer,
    ) -> None:
        super().__init__(layout, namespace, transfer)
        self._slabs = slabs
        self._touch = touch
        self._quarantine = set_aside

    async def _load_rows(self, batch: Batch, rows: I64, arena: Arena, *, apart: bool = False) -> list[int]:
        await self._slabs.refresh()
        return await super()._load_rows(batch, rows, arena, apart=apart)

    async def load_encoded(self, batch: Batch) -> None:
        """See `EncodedBlockLoader.load_encoded`."""
        await self._slabs.refresh()
        await super().load_encoded(batch)

    def _locate(self, ids: U8) -> Place:
        return self._slabs.place_to_read(ids)

    def _put_ends(self, place: Place, table: rq.Requests) -> object:
        return None  # nothing is opened, and nothing closed

    def _aim(self, place: Place, reads: rq.Requests, owner: I64) -> None:
        reads["fd"] = place.fds[owner]
        reads["offset"] += place.offsets[owner]

    def _stored_bytes(self, place: Place) -> I64:
        return place.lengths

    def _present(self, reading: Located[Place]) -> I64:
        place = reading.place
        here = place.fds >= 0
        if here.all():
            return super()._present(reading)
        dead = self._slabs.dead[place.backend]
        missing = (place.slots < 0) & ~dead
        rows, batch = reading.rows, reading.batch
        self.transfer.counts["missing"] += int(missing.sum())
        batch.report(rows[missing[reading.group]], Status.MISS)
        batch.report(rows[dead[reading.group]], Status.IO_ERROR, BackendIOError("the backend could not be opened"))
        unopened = ~here & ~dead & ~missing  # a segment that came a moment ago
        if unopened.any():
            self._look_again(reading, rows[unopened[reading.group]])
        return np.flatnonzero(here)

    def _unreachable(self, reading: Located[Place], group: int, number: int) -> tuple[Status, StoreError | None]:
        return Status.IO_ERROR, BackendIOError.from_errno(number, "read")

    def _moved(self, reading: Located[Place], group: int) -> bool:
        place = reading.place
        word = self._slabs.word(int(place.backend[group]), int(place.slots[group]))
        return word != int(place.words[group])

    def _came(self, reading: Located[Place], groups: I64) -> None:
        self._touch(np.ascontiguousarray(reading.ids[groups]), WEIGHT_LOAD)

    async def _set_aside(self, reading: Located[Place], group: int) -> str:
        place = reading.place
        where = int(place.backend[group]), int(place.slots[group]), int(place.words[group])
        return await self._quarantine(*where, reading.ids[group : group + 1])
