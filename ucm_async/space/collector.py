"""Removing what is cold, in small steps beside the traffic, until enough has gone."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from ..types import I64, U8, Bools
from .hotness import Hotness

__all__ = ["STEP_BLOCKS", "Collectable", "Collector", "Shortage"]

_log = logging.getLogger("ucm_async.space")

STEP_BLOCKS: Final = 16
"""Blocks that go at a time: some milliseconds of unlinks."""

REST_SHARE: Final = 1.0
"""After each step the collector rests for so many times as long as the step took, unless a dump waits for room."""

REST_S_MAX: Final = 0.1


@dataclass(frozen=True, slots=True)
class Shortage:
    """How many bytes should go.

    Attributes
    ----------
    total
        Wherever they are.
    places
        From each place.
    """

    total: int
    places: Sequence[int]

    def __bool__(self) -> bool:
        return self.total > 0 or any(one > 0 for one in self.places)

    def helps(self, places: I64) -> Bools:
        """Tell whether it helps if a block of each of these places goes: bool, the shape of `places`."""
        if self.total > 0:
            return np.ones(len(places), dtype=np.bool_)
        return np.asarray(np.array(self.places)[places] > 0)


class Collectable(Protocol):
    """What the collector needs of a stage; see `ucm_async.space.SpaceUser`."""

    def busy(self, ids: U8) -> Bools:
        """Tell which blocks must stay."""

    def places(self, ids: U8) -> I64:
        """Tell where blocks are."""

    async def remove(self, ids: U8) -> int:
        """Remove blocks; returns their bytes."""

    async def purge(self) -> int:
        """Remove what is of no use to anybody; returns its bytes."""


class Collector:
    """Collects when it is told to, one run at a time.

    Parameters
    ----------
    hotness
        What is cold.
    user
        Who removes it.
    shortage
        Looked at before each step.
    hurry
        Whether somebody waits for the room: then there is no rest between steps.
    catch_up
        Awaited before each step: accesses that were only noted are counted.
    learn
        Awaited when a run begins, and with True when no cold block is left in `hotness`: adds what other stores know,
        or what is on the disk; returns whether there was anything new.
    told
        Entered with the ids of blocks while they are being removed.
    on_freed
        Told the bytes after each step.
    """

    def __init__(
        self,
        hotness: Hotness,
        user: Collectable,
        shortage: Callable[[], Shortage],
        hurry: Callable[[], bool],
        catch_up: Callable[[], Awaitable[None]],
        learn: Callable[[bool], Awaitable[bool]],
        told: Callable[[U8], AbstractContextManager[None]],
        on_freed: Callable[[int], None],
    ) -> None:
        self._hotness = hotness
        self._user = user
        self._shortage = shortage
        self._hurry = hurry
        self._catch_up = catch_up
        self._learn = learn
        self._told = told
        self._on_freed = on_freed
        self._counts: Counter[str] = Counter(runs=0, steps=0, blocks=0, bytes=0, purged_bytes=0)

    def statistics(self) -> dict[str, Any]:
        """Return plain counters."""
        return dict(self._counts)

    async def run(self) -> bool:
        """Collect until there is no shortage; False if nothing more could be removed. Hold the lease meanwhile."""
        self._counts["runs"] += 1
        await self._learn(False)
        if self._shortage():
            purged = await self._user.purge()
            self._counts["purged_bytes"] += purged
            self._on_freed(purged)
        while shortage := self._shortage():
            if not await self._step(shortage) and not await self._learn(True):
                return False
        return True

    def _step_blocks(self, shortage: Shortage) -> int:
        """Return how many blocks go next: no more than are needed, as large as they were so far."""
        size = self._counts["bytes"] // max(1, self._counts["blocks"])
        wanted = max(shortage.total, *shortage.places)
        return max(1, min(STEP_BLOCKS, -(-wanted // size))) if size else 1

    async def _step(self, shortage: Shortage) -> bool:
        """Remove some blocks; False if none could be."""
        user, loop = self._user, asyncio.get_running_loop()

        def keep(ids: U8) -> Bools:
            return np.asarray(user.busy(ids) | ~shortage.helps(user.places(ids)))

        await self._catch_up()
        ids = await self._hotness.coldest(self._step_blocks(shortage), keep)
        if not len(ids):
            return False
        started = loop.time()
        with self._told(ids):
            freed = await user.remove(ids)
        self._hotness.forget(ids)
        self._counts["steps"] += 1
        self._counts["blocks"] += len(ids)
        self._counts["bytes"] += freed
        self._on_freed(freed)
        if not self._hurry():
            await asyncio.sleep(min((loop.time() - started) * REST_SHARE, REST_S_MAX))
        return True
