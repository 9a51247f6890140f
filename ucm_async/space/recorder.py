"""Hotness of an open store: accesses are noted now and counted later, what others know is learnt, all is persisted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import numpy as np

from ..types import BLOCK_ID_BYTES, U8
from .hotfile import HotFiles
from .hotness import EPOCH_S, F64, HALF_LIFE_S, POSITION_STEP, Hotness, access_number
from .user import SpaceUser

__all__ = ["Recorder"]

_log = logging.getLogger("ucm_async.space")

NOTES_AT_ONCE: Final = 512
"""Accesses that are counted in one turn of the loop: some 50 µs."""

NOTES_MAX: Final = 1 << 16
"""Accesses noted and not counted yet; what exceeds them is not counted."""

PERSIST_S: Final = 10.0
PERSIST_BLOCKS_A_SECOND: Final = 20_000
"""Hotness is written down every 10 seconds, less often if there is so much of it that this would be more a second."""

GROW_SHARE: Final = 0.75
"""Room is made for more blocks when so much of it is taken."""

WALK_S_MIN: Final = 30.0
"""The disk is not walked again for blocks that nobody remembers before this."""


class Recorder:
    """Keeps a `Hotness` up to date. On one loop.

    Parameters
    ----------
    hotness
        Filled by it.
    files
        Where it is persisted.
    user
        The stage, whose files are walked.
    places
        How many places it has.
    """

    def __init__(self, hotness: Hotness, files: HotFiles, user: SpaceUser, places: int) -> None:
        self.hotness = hotness
        self._files = files
        self._user = user
        self._places = places
        self._loop = asyncio.get_running_loop()
        self._notes: list[tuple[bytes, float]] = []  # ids, and the number of an access to the first of them
        self._noted = 0
        self._draining = False
        self._persisted_at = self._loop.time()
        self._walked_at: float | None = None
        self.dropped = 0

    # ---- accesses

    def touch(self, ids: U8, weight: float) -> None:
        """Note an access to each of `ids`; see `SpaceManager.touch`."""
        room = NOTES_MAX - self._noted
        if len(ids) > room:
            self.dropped += len(ids) - room
            ids = ids[:room]
        first = access_number(self.hotness.clock(), weight)
        for start in range(0, len(ids), NOTES_AT_ONCE):
            self._notes.append((ids[start : start + NOTES_AT_ONCE].tobytes(), first - start * POSITION_STEP))
        self._noted += len(ids)
        if self._noted >= NOTES_AT_ONCE:
            self.drain()

    def drain(self) -> None:
        """Begin to count what was noted, some of it in each turn of the loop."""
        if self._notes and not self._draining:
            self._draining = True
            self._loop.call_soon(self._drain_some)

    def _drain_some(self) -> None:
        if self._notes:  # `catch_up` may have been quicker
            self._count_some()
        self._draining = bool(self._notes)
        if self._draining:
            self._loop.call_soon(self._drain_some)

    def _count_some(self) -> None:
        count, notes = 0, 0
        while notes < len(self._notes) and count < NOTES_AT_ONCE:
            count += len(self._notes[notes][0]) // BLOCK_ID_BYTES
            notes += 1
        taken, self._notes[:notes] = self._notes[:notes], []
        self._noted -= count
        ids = np.frombuffer(b"".join([some for some, _ in taken]), dtype=np.uint8).reshape(-1, BLOCK_ID_BYTES)
        lengths = [len(some) // BLOCK_ID_BYTES for some, _ in taken]
        self.hotness.merge(ids, np.repeat([first for _, first in taken], lengths) - _positions(lengths), np.logaddexp2)

    async def catch_up(self) -> None:
        """Count everything that was noted."""
        while self._notes:
            self._count_some()
            await asyncio.sleep(0)

    # ---- what others know

    async def learn_from_files(self) -> None:
        """Take over what other stores of the namespace wrote down, those that have ended too."""
        for ids, numbers in await asyncio.to_thread(self._files.read_others):
            await self.hotness.grow(len(self.hotness) + len(ids))
            for start in range(0, len(ids), NOTES_AT_ONCE):
                part = slice(start, start + NOTES_AT_ONCE)
                self.hotness.merge(ids[part], numbers[part])
                await asyncio.sleep(0)

    async def learn(self, more: bool, stopping: Callable[[], bool]) -> bool:
        """Find blocks to be collected; see `Collector`.

        Parameters
        ----------
        more
            False at the beginning of a collection: read what others wrote, and walk the disk if that was never done.
            True if nothing cold is left: walk it, unless that was done lately.
        stopping
            Whether to break off.

        Returns
        -------
        bool
            Whether there are blocks that were not known.
        """
        if not more:
            await self.learn_from_files()
        now = self._loop.time()
        if self._walked_at is not None and (not more or now - self._walked_at < WALK_S_MIN):
            return False
        self._walked_at = now
        before = len(self.hotness)
        for place in range(self._places):
            steps = self._user.walk(place)
            while not stopping() and (step := await asyncio.to_thread(next, steps, None)) is not None:
                ids, times = step
                await self.hotness.grow(len(self.hotness) + len(ids))
                new = self.hotness.unknown(ids)
                self.hotness.merge(ids[new], (times[new] - EPOCH_S) / HALF_LIFE_S)
        return len(self.hotness) > before

    # ---- over a restart

    async def look(self) -> None:
        """Do what is to be done from time to time: count what was noted, and make room in good time."""
        self.drain()
        if len(self.hotness) > GROW_SHARE * self.hotness.room:
            await self.hotness.grow(self.hotness.room + 1)

    @property
    def due(self) -> bool:
        """Whether it is time to persist."""
        pause_s = max(PERSIST_S, len(self.hotness) / PERSIST_BLOCKS_A_SECOND)
        return self._loop.time() - self._persisted_at > pause_s

    async def persist(self, living: Callable[[], frozenset[str]]) -> None:
        """Write everything down. A full disk keeps what was written before.

        Parameters
        ----------
        living
            Names of the open stores, asked in a thread: files of others go when what they say is in this one.
        """
        await self.catch_up()
        self._persisted_at = self._loop.time()
        try:
            await asyncio.to_thread(lambda: self._files.write(*self.hotness.snapshot(), living()))
        except OSError as error:
            _log.warning("hotness could not be persisted: %s", error)


def _positions(lengths: list[int]) -> F64:
    """0, 1, 2 … for each of some batches, in the unit of hotness."""
    ends = np.cumsum(lengths)
    return POSITION_STEP * (np.arange(ends[-1]) - np.repeat(ends - lengths, lengths))
