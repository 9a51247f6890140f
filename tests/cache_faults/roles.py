"""What the processes of the fault tests do. Each role is a coroutine; it is told and answers by messages."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import resource
import threading
import time
import traceback
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import ucm_async as ucm
from tests.faults.support import content, poisoned
from tests.native.tables import MUTEX_OFFSET
from ucm_async import Status
from ucm_async.stages.cache import CacheStage, segment

from .stages import stage_of
from .support import inspect
from .workload import Workload

__all__ = ["play"]


def play(role: str, pipe: Connection, about: dict[str, Any]) -> None:
    """Begin and end of a process."""
    warnings.simplefilter("error")
    run = ucm.run if about.get("loop") == "uvloop" else asyncio.run
    try:
        run(ROLES[role](Link(pipe), about))
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))
        os._exit(1)


class Link:
    """The messages of one process, on its loop."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._inbox: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self._reading = False

    def say(self, *message: Any) -> None:
        self._pipe.send(message)

    async def hear(self) -> tuple[Any, ...]:
        """Wait for the next message."""
        if not self._reading:
            self._reading = True
            asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._read)
        return await self._inbox.get()

    def _read(self) -> None:
        try:
            while self._pipe.poll():
                self._inbox.put_nowait(self._pipe.recv())
        except (EOFError, ConnectionResetError):
            os._exit(2)  # the test is gone


# ---- the worker


async def worker(link: Link, about: dict[str, Any]) -> None:
    """Works at random until told to `pause` or `end`; tells every few milliseconds what it has stored."""
    async with ucm.open_store(about["pipeline"], **about["keys"]) as store:
        workload = Workload(store, about["seed"], about.get("tasks", 4))
        link.say("ready")
        word = "work"
        while word != "end":
            if word == "work":
                word = await _work(link, workload)
            await store.flush()
            still = await at_rest(store)
            link.say("paused", {"slow": workload.slow, "counts": dict(workload.counts), "held": still})
            if word == "pause":
                (word,) = await link.hear()
    link.say("closed")


async def _work(link: Link, workload: Workload) -> str:
    """Work until there is a message; returns it."""
    work = asyncio.create_task(workload.run())
    hearing = asyncio.create_task(link.hear())
    while not hearing.done() and not work.done():
        await asyncio.wait([hearing, work], timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
        if workload.stored:
            stored, workload.stored = workload.stored, []
            link.say("stored", stored)
    workload.paused = True
    await work
    return str(hearing.result()[0])


def held(store: ucm.Store) -> dict[str, Any]:
    """What the store's Cache holds that an idle one does not; only what is not zero."""
    stage = store.statistics().pipeline["Cache"]["stage"]
    found = {
        "leases": stage["buffer"]["leases"],
        "lent": stage["lent"],
        "waiting": stage["waiting"],
        "owed": stage["behind"]["owed_bytes"],
        **{f"share of {name}": share["taken"] for name, share in stage["admission"].items()},
        **{f"bypass of {lane}": stage[lane]["bypass"]["leased"] for lane in ("load", "dump")},
    }
    return {name: count for name, count in found.items() if count}


async def at_rest(store: ucm.Store) -> dict[str, Any]:
    """Wait until nothing is held any more; returns what is for ever."""
    for _ in range(500):
        if not held(store):
            break
        await asyncio.sleep(0.01)
    return held(store)


# ---- the puppet


class Puppet:
    """Does with its store what it is told. Keys are numbers; what is OK is checked here."""

    def __init__(self, store: ucm.Store) -> None:
        self.store = store
        self.lent = AsyncExitStack()
        self.views: dict[int, memoryview | None] = {}

    async def load(self, numbers: list[int], timeout: float | None = None) -> list[str]:
        ids = ucm.block_ids(numbers)
        out = poisoned(len(ids))
        result = await self.store.load(ids, None, out, timeout=timeout)
        status = [Status(int(one)).name for one in result.status]
        for row, expected in enumerate(content(ids)):
            assert status[row] != "OK" or np.array_equal(out[row], expected), f"{numbers[row]} has other bytes"
        return status

    async def dump(self, numbers: list[int], durability: Any = "stored", timeout: float | None = None) -> list[str]:
        ids = ucm.block_ids(numbers)
        result = await self.store.dump(ids, None, content(ids), durability=durability, timeout=timeout)
        return [Status(int(one)).name for one in result.status]

    async def lease(self, numbers: list[int]) -> list[bool]:
        """Keep views until `release`; tells which there are."""
        views = await self.lent.enter_async_context(self.store.lease(ucm.block_ids(numbers)))
        self.views |= dict(zip(numbers, views, strict=True))
        return [view is not None for view in views]

    async def views_are_right(self) -> bool:
        there = {number: view for number, view in self.views.items() if view is not None}
        return all(view == content(ucm.block_ids([number]))[0].data for number, view in there.items())

    async def release(self) -> None:
        self.views.clear()
        await self.lent.aclose()

    async def lookup(self, numbers: list[int]) -> list[bool]:
        found: list[bool] = (await self.store.lookup(ucm.block_ids(numbers))).tolist()
        return found

    async def delete(self, numbers: list[int]) -> None:
        await self.store.delete(ucm.block_ids(numbers))

    async def flush(self) -> list[str]:
        return [str(error) for error in (await self.store.flush()).values()]

    async def counts(self) -> dict[str, int]:
        """Of the Cache's stage."""
        return dict(self.store.statistics().pipeline["Cache"]["stage"]["counts"])

    async def buffer(self) -> dict[str, Any]:
        return dict(self.store.statistics().pipeline["Cache"]["stage"]["buffer"])

    async def at_rest(self) -> dict[str, Any]:
        return await at_rest(self.store)


async def puppet(link: Link, about: dict[str, Any]) -> None:
    """Opens a store, says "ready" or why it was "refused", and does what it is told, side by side, until "close"."""
    if "uid" in about:  # once everything is imported, which another user may not be allowed to
        async with ucm.open_store(about["pipeline"], **about["keys"] | {"share_buffer_enable": False}):
            os.setuid(about["uid"])
    if "address_space" in about:
        resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes() + about["address_space"],) * 2)
    try:
        store = await ucm.open_store(about["pipeline"], **about["keys"])
    except ucm.ConfigError as error:
        link.say("refused", str(error))
        return
    link.say("ready")
    await _serve(link, Puppet(store))


async def _serve(link: Link, doll: Puppet) -> None:
    async with asyncio.TaskGroup() as group:
        while (message := await link.hear())[0] != "close":
            group.create_task(_obey(link, doll, *message))
        await doll.release()
    await doll.store.aclose()
    link.say("closed")


def mapped_bytes() -> int:
    """Address space of this process that is in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


async def _obey(link: Link, doll: Puppet, verb: str, args: tuple[Any, ...]) -> None:
    method: Callable[..., Awaitable[Any]] = getattr(doll, verb)
    link.say(verb, await method(*args))


# ---- others


async def mutex(link: Link, about: dict[str, Any]) -> None:
    """Takes the mutex of a segment's table, and stands still."""
    with inspect(about["unique_id"]) as table:
        address = np.frombuffer(table.memory, np.uint8).ctypes.data + MUTEX_OFFSET
        assert ctypes.CDLL(None).pthread_mutex_lock(ctypes.c_void_p(address)) == 0
        link.say("locked")
        await link.hear()


async def visitor(link: Link, about: dict[str, Any]) -> None:
    """Opens and closes a store several times, and uses it in between."""
    for visit in range(about["visits"]):
        async with ucm.open_store(about["pipeline"], **about["keys"]) as store:
            assert await Puppet(store).load([visit, 1, 2]) == ["OK"] * 3
    link.say("closed")


class Halt:
    """Stands in for a function or a class, and does not let anybody call it before it is told to."""

    def __init__(self, target: Any, going_on: threading.Event, link: Link) -> None:
        self._target, self._going_on, self._link = target, going_on, link

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        if not self._going_on.is_set():
            self._link.say("here")
            self._going_on.wait()
        return self._target(*args, **keywords)


async def halting(link: Link, about: dict[str, Any]) -> None:
    """A puppet that stands still before it calls what `segment` has, while it opens or closes its store."""
    going_on = threading.Event()
    *within, name = about["point"].split(".")
    owner: Any = getattr(segment, within[0]) if within else segment
    halt = Halt(getattr(owner, name), going_on, link)
    halts = (lambda *args: halt(*args)) if within else halt
    if about["when"] == "opening":
        setattr(owner, name, halts)
    opening = asyncio.ensure_future(ucm.open_store(about["pipeline"], **about["keys"])._open())
    if about["when"] == "opening":
        assert await link.hear() == ("go on",)
        going_on.set()
    store = await opening
    if about["when"] == "closing":
        setattr(owner, name, halts)
    link.say("ready")
    await _serve(link, Puppet(store))


class Forking(Puppet):
    """A puppet that can have children."""

    async def fork(self, end: str) -> list[str]:
        """Have a child that tries to use the store; returns what that raises, by name."""
        reading, writing = os.pipe()
        if (pid := _fork()) == 0:
            told = asyncio.new_event_loop().run_until_complete(self._try_everything())
            os.write(writing, " ".join(told).encode())
            if end == "with finalizers":
                table = stage_of(self.store, CacheStage)._buffer.table
                del table
                self.store.__dict__.clear()
                gc.collect()
            os._exit(0)
        os.close(writing)
        assert os.waitpid(pid, 0)[1] == 0
        with os.fdopen(reading) as file:
            return file.read().split()

    async def _try_everything(self) -> list[str]:
        ids, told = ucm.block_ids([0]), []
        calls: list[Callable[[], Any]] = [
            lambda: self.store.load(ids, None, poisoned(1)),
            lambda: self.store.dump(ids, None, poisoned(1)),
            lambda: self.store.lookup(ids),
            lambda: self.store.lookup_on_prefix(ids),
            lambda: self.store.delete(ids),
            lambda: self.store.flush(),
            lambda: self.store.lease(ids).__aenter__(),
            lambda: self.store.aclose(),
        ]
        for call in calls:
            try:
                await call()
            except Exception as error:
                told.append(type(error).__name__)
        return told

    async def fork_and_wait(self) -> int:
        """Have a child that does nothing; returns its pid."""
        if (pid := _fork()) == 0:
            while True:
                time.sleep(1)
        return pid


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads is the point
        return os.fork()


async def forking(link: Link, about: dict[str, Any]) -> None:
    store = await ucm.open_store(about["pipeline"], **about["keys"])
    link.say("ready")
    await _serve(link, Forking(store))


ROLES: dict[str, Callable[[Link, dict[str, Any]], Any]] = {
    "worker": worker,
    "puppet": puppet,
    "mutex": mutex,
    "visitor": visitor,
    "halting": halting,
    "forking": forking,
}
