"""What a stage holds: room for what it writes, the order in which blocks go, and collection beside the traffic."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypedDict

from ..abc import AsyncResource
from ..engines.system import current_system
from ..engines.waits import patient
from ..errors import ConfigError
from ..types import U8, Bools
from .collector import Collector, Shortage
from .hotfile import HotFiles
from .hotness import Hotness
from .ledger import Ledger
from .limits import SpaceLimits
from .recorder import Recorder
from .user import SpacePlace, SpaceUser

__all__ = ["SpaceManager"]

_log = logging.getLogger("ucm_async.space")

LOOK_S: Final = 1.0
"""How often a store looks after the ledgers by itself: for stores that died, for free space."""

COUNT_POLL_S: Final = 0.005
COUNT_PATIENCE_S: Final = 0.2
"""So long a store that wants to count waits for what is under way to end, while nothing new begins. In vain, it lets
the others go on, waits for ten times as long, and is twice as patient the next time."""

COUNT_PATIENCE_S_MAX: Final = 5.0

ROOM_POLL_S: Final = 0.02
"""How often who waits for room looks whether another process has made some."""

FULL_SHARE: Final = 0.05
"""Of what the namespace has in a place, so much goes when the file system is full."""


class _Now(TypedDict):
    collecting: bool
    waiting: int


class SpaceManager(AsyncResource):
    """The space of one open store, on its loop.

    The bytes of every write are reserved before it is begun, and the sum over all processes that use the directories
    never exceeds the cap, not even for an instant. `reserve`, `commit`, `release` and `removed` are additions in shared
    memory, without a system call; call them once a batch.

    Parameters
    ----------
    limits
        What may be used.
    places
        One for each backend.
    namespace
        Fingerprint, 16 bytes.
    user
        The stage.
    hot_blocks_max
        How many blocks `hotness` remembers.

    Attributes
    ----------
    hotness
        The order of the blocks, once it is open.
    """

    hotness: Hotness

    def __init__(
        self, limits: SpaceLimits, places: Sequence[SpacePlace], namespace: bytes, user: SpaceUser, hot_blocks_max: int
    ) -> None:
        self._limits = limits
        self._places = places
        self._namespace = namespace
        self._user = user
        self._hot_blocks_max = hot_blocks_max
        self._system = current_system()
        self._loop = asyncio.get_running_loop()
        self._ledgers: list[Ledger] = []
        self._free = [0] * len(places)  # of each file system, so that with the next two it is what is free now
        self._taken = [0] * len(places)
        self._given_back = [0] * len(places)
        self._debt = [0] * len(places)  # bytes to be freed after a disk was found full
        self._waiting: list[int] = []  # sizes of the items that somebody waits to reserve
        self._hopeless = False  # the last collection found nothing to remove
        self._freed = self._loop.create_future()
        self._alarm = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._collecting = False
        self._count_patience_s = COUNT_PATIENCE_S
        self._count_not_before = 0.0
        self._count_error: OSError | None = None

    # ---- life

    async def open(self) -> None:
        """Join the ledgers, read the persisted hotness, and start to look after things.

        What was left inexact by a crash is counted again in the background: `changing` waits for that, loads and
        lookups do not.

        Raises
        ------
        ConfigError
            There is a bound, and a ledger cannot be shared here; or it is full.
        """
        self._ledgers = await asyncio.to_thread(self._join)
        try:
            await self._look_at_disks()
            self.hotness = await asyncio.to_thread(Hotness, self._hot_blocks_max, self._system.now)
            home = min(self._places, key=lambda place: place.directory)
            self._lease = self._ledgers[self._places.index(home)]
            files = HotFiles(self._system, home.root, home.owner)
            self._recorder = Recorder(self.hotness, files, self._user, len(self._places))
            await self._recorder.learn_from_files()
        except BaseException:
            await asyncio.to_thread(self._leave)
            raise
        self._collector = Collector(
            self.hotness,
            self._user,
            self.shortage,
            hurry=lambda: bool(self._waiting),
            catch_up=self._recorder.catch_up,
            learn=self._learn,
            told=self._system.collecting,
            on_freed=self._note_freed,
        )
        self._spawn(self._look_after())

    def _join(self) -> list[Ledger]:
        joined: list[Ledger] = []
        try:
            for place in self._places:
                joined.append(self._join_one(place))
        except BaseException:
            for ledger in joined:
                ledger.leave()
            raise
        return joined

    def _join_one(self, place: SpacePlace) -> Ledger:
        try:
            ledger = Ledger(self._system, place.directory)
            ledger.join(self._namespace, place.owner, place.root, fresh=place.fresh)
        except OSError as error:
            what = f"{str(place.directory)!r}: no memory can be shared between processes here: {error.strerror}"
            if self._limits.bounded:
                raise ConfigError(f"storage_backends: {what}; without bounds on space it would do") from error
            _log.warning("%s; its space is accounted for by this store alone", what)
            ledger = Ledger(self._system, place.directory, private=True)
            ledger.join(self._namespace, place.owner, place.root, fresh=place.fresh)
        return ledger

    async def _look_at_disks(self) -> None:
        """Ask how much is free.

        What is reserved is not on the disk yet, for all we know; what is removed while the question is asked is in the
        answer already.
        """
        if not self._limits.watermark:
            return
        before = [taken - ledger.reserved_own for taken, ledger in zip(self._taken, self._ledgers, strict=True)]
        found = await asyncio.to_thread(lambda: [self._system.free_bytes(place.directory) for place in self._places])
        self._free = [sum(parts) for parts in zip(found, before, map(int.__neg__, self._given_back), strict=True)]

    def _free_now(self, place: int) -> int:
        """Return the bytes that are free, at most, before the system is asked again."""
        return self._free[place] - self._taken[place] + self._given_back[place]

    async def stop(self) -> None:
        """Stop collecting and counting, and persist the hotness. The `user` is not called any more. Idempotent."""
        if self._stopping or not self._ledgers:
            return
        self._stopping = True
        self._alarm.set()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._recorder.persist(self._living)

    async def aclose(self) -> None:
        """Stop, and leave the ledgers. Idempotent. What is still reserved counts no more: its files must be gone."""
        await self.stop()
        await asyncio.to_thread(self._leave)

    def _leave(self) -> None:
        ledgers, self._ledgers = self._ledgers, []
        for ledger in ledgers:
            ledger.leave()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine, name="ucm-space")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("looking after space failed", exc_info=task.exception())

    # ---- room

    def reserve(self, place: int, nbytes: int, count: int = 1) -> int:
        """Reserve room for up to `count` items of `nbytes` each; returns how many got it.

        Starts collection where it is due.
        """
        granted = count
        if self._limits.bounded:
            granted = self._granted(place, nbytes, count)
            if granted < count or self.shortage():
                self._alarm.set()
        else:
            self._ledgers[place].charge(nbytes * count)
        self._taken[place] += nbytes * granted
        return granted

    def _granted(self, place: int, nbytes: int, count: int) -> int:
        limits, ledger = self._limits, self._ledgers[place]
        if limits.watermark:
            count = max(0, min(count, (self._free_now(place) - limits.watermark) // nbytes))
        while count:
            ledger.charge(nbytes * count)
            over = limits.over(*self._sums())
            if over <= 0:
                break
            ledger.release(nbytes * count)
            count = max(0, count + -over // nbytes)
        return count

    def _sums(self) -> tuple[int, int]:
        """Bytes that are charged in all places: to all namespaces, and to this one."""
        charged = sum(ledger.charged() for ledger in self._ledgers)
        return charged, sum(ledger.charged_here() for ledger in self._ledgers) if self._limits.quota else 0

    async def reserve_soon(self, place: int, nbytes: int, count: int, patience_s: float) -> int:
        """As `reserve`; waits up to `patience_s` for collection to make room for the rest. Not inside `changing`."""
        granted = self.reserve(place, nbytes, count)
        if granted == count:
            return granted
        end = self._loop.time() + patience_s
        self._waiting.append(nbytes)
        self._hopeless = False
        try:
            while granted < count and not (self._hopeless or self._stopping) and (left := end - self._loop.time()) > 0:
                self._alarm.set()
                await patient(self._freed, min(left, ROOM_POLL_S))
                granted += self.reserve(place, nbytes, count - granted)
        finally:
            self._waiting.remove(nbytes)
        return granted

    def release(self, place: int, nbytes: int) -> None:
        """Give back what was reserved, once nothing of it is on the disk."""
        self._ledgers[place].release(nbytes)
        self._given_back[place] += nbytes

    def commit(self, place: int, nbytes: int) -> None:
        """Count reserved bytes as used: what was written has its name."""
        self._ledgers[place].commit(nbytes)

    def removed(self, place: int, nbytes: int) -> None:
        """Count used bytes as free, once they are."""
        self._ledgers[place].removed(nbytes)
        self._given_back[place] += nbytes
        self._debt[place] = max(0, self._debt[place] - nbytes)

    def no_space(self, place: int) -> None:
        """Say that the file system is full, or a quota of its: collection starts. The next write is tried as usual."""
        if not self._debt[place]:
            self._debt[place] = max(1, int(self._ledgers[place].used_here() * FULL_SHARE))
        self._alarm.set()

    def shortage(self) -> Shortage:
        """Return how many bytes should go now."""
        if self._stopping:
            return Shortage(0, self._debt[:0])
        limits = self._limits
        now: _Now = {"collecting": self._collecting, "waiting": max(self._waiting, default=0)}
        total = limits.excess(*self._sums(), **now) if limits.bounded else 0
        places = [max(debt, limits.below_mark(self._free_now(p), **now)) for p, debt in enumerate(self._debt)]
        return Shortage(max(total, self._user.shortage()), places)

    # ---- changes, and counting when there are none

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Hold it open while blocks are committed or removed, from before the first effect until all are accounted for.

        Whoever dies inside leaves an account that must be counted again. While somebody counts, entering waits.
        """
        while not self._begin_change():
            await self._wait_for_count()
        try:
            yield
        finally:
            for ledger in self._ledgers:
                ledger.end_change()

    def _begin_change(self) -> bool:
        for position, ledger in enumerate(self._ledgers):
            if not ledger.begin_change():
                for other in self._ledgers[:position]:
                    other.end_change()
                return False
        return True

    async def _wait_for_count(self) -> None:
        for _ in range(20):
            await asyncio.sleep(COUNT_POLL_S)
            if all(ledger.counting == 0 for ledger in self._ledgers):
                return
        await asyncio.to_thread(self._forget_dead)  # perhaps the one who counts

    def _forget_dead(self) -> None:
        for ledger in self._ledgers:
            ledger.forget_dead()

    async def counted(self) -> None:
        """Wait until usage is exact.

        Raises
        ------
        OSError
            The files cannot be counted.
        """
        while not all(ledger.exact for ledger in self._ledgers):
            if self._count_error is not None:
                raise self._count_error
            self._alarm.set()
            await asyncio.sleep(COUNT_POLL_S)

    async def _count(self, place: int) -> None:
        ledger = self._ledgers[place]
        if self._loop.time() < self._count_not_before or not await asyncio.to_thread(ledger.begin_count):
            return
        stored, unfinished = None, 0
        try:
            if await self._all_paused(ledger):
                owners = await asyncio.to_thread(ledger.owners)
                stored, unfinished = await self._user.count(place, owners)
                self._count_error = None
        except OSError as error:
            self._count_error = error
            _log.warning("%s: its files could not be counted: %s", self._places[place].root, error)
        finally:
            await asyncio.to_thread(ledger.end_count, stored, unfinished)

    async def _all_paused(self, ledger: Ledger) -> bool:
        patience_s = self._count_patience_s
        end = self._loop.time() + patience_s
        while not await asyncio.to_thread(ledger.all_paused):
            if self._stopping or self._loop.time() > end:
                self._count_not_before = self._loop.time() + 10 * patience_s
                self._count_patience_s = min(2 * patience_s, COUNT_PATIENCE_S_MAX)
                return False
            await asyncio.sleep(COUNT_POLL_S)
        self._count_patience_s = COUNT_PATIENCE_S
        return True

    # ---- looking after things

    async def _look_after(self) -> None:
        while not self._stopping:
            await self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._alarm.wait(), LOOK_S)
            self._alarm.clear()

    async def _look(self) -> None:
        await asyncio.to_thread(self._forget_dead)
        await self._look_at_disks()
        for place, ledger in enumerate(self._ledgers):
            if not ledger.exact and not self._stopping:
                await self._count(place)
        if not self._collecting and self.shortage():
            self._collecting = True
            self._spawn(self._collect())
        await self._recorder.look()
        if self._recorder.due:
            await self._recorder.persist(self._living)

    async def _collect(self) -> None:
        """Collect, if no other process does."""
        try:
            if not await asyncio.to_thread(self._lease.take_lease):
                return
            try:
                self._hopeless = not await self._collector.run()
            finally:
                await asyncio.to_thread(self._lease.give_lease)
            if self._hopeless:
                self._debt = [0] * len(self._debt)  # the next write that finds the disk full says so again
        finally:
            self._collecting = False

    def _note_freed(self, _: int) -> None:
        freed, self._freed = self._freed, self._loop.create_future()
        freed.set_result(None)

    async def _learn(self, more: bool) -> bool:
        return await self._recorder.learn(more, lambda: self._stopping)

    def _living(self) -> frozenset[str]:
        return frozenset[str]().union(*(ledger.owners() for ledger in self._ledgers))

    # ---- hotness

    def touch(self, ids: U8, weight: float) -> None:
        """Note an access to each of `ids`, uint8 (n, 16), C-contiguous; counted a little later. About 1 µs a call."""
        self._recorder.touch(ids, weight)

    def forget(self, ids: U8) -> None:
        """Forget blocks that are gone."""
        self.hotness.forget(ids)

    async def coldest(self, count: int, keep: Callable[[U8], Bools]) -> U8:
        """Return up to `count` of the coldest blocks, for a stage that makes room by itself; see `Hotness.coldest`.

        One call at a time. None if nothing cold is remembered: other processes may know of blocks that this one does
        not.
        """
        await self._recorder.catch_up()
        return await self.hotness.coldest(count, keep)

    # ---- what happened

    def used(self) -> int:
        """Return the bytes that the committed blocks of this namespace occupy, in all places and by all processes.

        After a crash it is too high until everything was counted; see `counted`.
        """
        return sum(ledger.used_here() for ledger in self._ledgers)

    def statistics(self) -> Mapping[str, Any]:
        """Return plain, JSON-ready numbers: bounds, usage, and what was collected."""
        limits = self._limits
        here = sum(ledger.charged_here() for ledger in self._ledgers)
        used = self.used()
        return {
            "capacity_bytes": limits.capacity,
            "quota_bytes": limits.quota,
            "watermark_bytes": limits.watermark,
            "used_bytes": used,
            "reserved_bytes": here - used,
            "all_namespaces_bytes": sum(ledger.charged() for ledger in self._ledgers),
            "exact": all(ledger.exact for ledger in self._ledgers),
            "shared": not any(ledger.private for ledger in self._ledgers),
            "collecting": self._collecting,
            "collected": self._collector.statistics(),
            "hot_blocks": len(self.hotness),
            "accesses_not_counted": self._recorder.dropped,
        }
