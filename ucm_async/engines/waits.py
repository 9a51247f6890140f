"""Ways to wait for an engine, or for anything else that goes on by itself, that keep hold of what it works on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from ..abc import Engine
from ..native import execute
from .requests import Requests

__all__ = ["Haste", "completed", "kept", "patient", "patient_in_haste", "run_copies"]

INLINE_COPY_BYTES_MAX: Final = 128 << 10
"""So much is copied and checked on the loop itself: about 15 µs, less than a hop to another thread and back."""


async def run_copies(requests: Requests, pool: Engine, chunk: int) -> None:
    """Run copies and checksums: a few on the loop, more in the pool, `chunk` requests a job."""
    if int(requests["length"].sum()) <= INLINE_COPY_BYTES_MAX:
        execute(requests)
    else:
        await completed(pool.submit(requests, chunk))


async def completed(future: asyncio.Future[Any]) -> None:
    """Wait for a batch that works on slots, or on a caller's memory: a cancellation waits for it, too."""
    cancellation: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        raise cancellation


async def kept(future: asyncio.Future[None], *memory: object) -> None:
    """Wait for a batch that works on `memory`, which lives until the batch is done, though the wait be cancelled."""
    future.add_done_callback(lambda _: memory)
    await asyncio.shield(future)


class Haste:
    """Call it when the time of somebody who waits with `patient` has become shorter; for one that waits at a time."""

    __slots__ = ("_hurry",)

    def __init__(self) -> None:
        self._hurry: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Have the time that is left be asked again, if anybody waits."""
        if self._hurry is not None:
            self._hurry()

    @contextlib.contextmanager
    def heard_by(self, hurry: Callable[[], None]) -> Iterator[None]:
        """Call `hurry` inside the ``with`` block."""
        self._hurry = hurry
        try:
            yield
        finally:
            self._hurry = None


async def patient(future: asyncio.Future[None], seconds: float) -> bool:
    """Wait for `future` up to `seconds` without cancelling it; tell whether it is done."""
    return await patient_in_haste(future, lambda: seconds, Haste())


async def patient_in_haste(future: asyncio.Future[None], seconds: Callable[[], float], haste: Haste) -> bool:
    """Wait as `patient`, but ask for the `seconds` from now on again whenever `haste` is called."""
    if future.done():
        return True
    loop = future.get_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    def start() -> asyncio.TimerHandle:
        return loop.call_later(max(0.0, min(seconds(), _TIMER_S_MAX)), wake)

    timer = start()

    def hurry() -> None:
        nonlocal timer
        timer.cancel()
        timer = start()

    future.add_done_callback(wake)
    try:
        with haste.heard_by(hurry):
            await waiter
    finally:
        timer.cancel()
        future.remove_done_callback(wake)
    return future.done()


_TIMER_S_MAX: Final = 86_400.0
