"""An event loop on a simulated clock: where nothing is ready, time jumps to the next timer.

Thirty simulated seconds take as long as the callbacks in them. The loop has no selector and no thread, so the order of
everything that runs on it follows from what was scheduled, and a run can be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from typing import Any, Final, NoReturn, TypeVar

import anyio.to_thread

__all__ = ["SimulatedLoop", "SimulationError"]

_T = TypeVar("_T")

THREAD_S: Final = 20e-6
"""What a function takes that is handed to a thread."""

TURNS_MAX: Final = 100_000
"""Turns of the loop without a step of the clock: more of them are a loop that never ends."""

_CLOCK_STEP_S: Final = 1e-9
"""Timers that lie closer together than this run in one turn; below what doubles resolve for days."""


class SimulationError(RuntimeError):
    """The simulation cannot go on: nothing will ever happen, or something is asked for that is not simulated."""


class _Clock:
    """Stands where a loop has its selector: it is asked to wait, and lets the time pass instead."""

    def __init__(self, stop_s: float) -> None:
        self.now_s = 0.0
        self.before_time_passes: list[Callable[[], bool]] = []
        self._stop_s = stop_s
        self._turns = 0

    def select(self, timeout: float | None) -> tuple[()]:
        """Let `timeout` seconds pass."""
        if timeout != 0 and any([look() for look in list(self.before_time_passes)]):
            timeout = 0
        if timeout is None:
            raise SimulationError("every task waits, and nothing will ever happen")
        self._turns += 1
        if timeout > 0:
            self.now_s += timeout
            self._turns = 0
        if self._turns > TURNS_MAX:
            raise SimulationError(f"{TURNS_MAX} turns of the loop, and the clock stands still at {self.now_s} s")
        if self.now_s > self._stop_s:
            raise SimulationError(f"still not done after {self._stop_s:g} simulated seconds")
        return ()


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs coroutines in simulated time; use it as ``asyncio.Runner(loop_factory=SimulatedLoop)``.

    What is handed to a thread (`asyncio.to_thread`, `anyio.to_thread.run_sync`, an executor) runs on the loop itself a
    moment later, with no loop visible to it, as in a thread. Real I/O is refused, and so are calls from real threads.

    Parameters
    ----------
    stop_s
        `SimulationError` is raised at this time: something waits that should not.

    Attributes
    ----------
    before_time_passes
        Asked when nothing is left to do at this time; True from one that has found something to do, or to schedule.
    """

    def __init__(self, stop_s: float = 1e6) -> None:
        super().__init__()
        self._selector = self._clock = _Clock(stop_s)
        self._clock_resolution = _CLOCK_STEP_S
        self.before_time_passes = self._clock.before_time_passes

    def time(self) -> float:
        """Simulated seconds since the loop was made."""
        return self._clock.now_s

    def run_forever(self) -> None:
        """See `asyncio.loop.run_forever`."""
        with _anyio_without_threads():
            super().run_forever()

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As ``call_soon``; SimulationError from another thread, whose calls nobody can repeat."""
        if self._thread_id not in (None, threading.get_ident()):  # type: ignore[attr-defined]
            raise SimulationError("a thread calls a simulated loop: what it does cannot be repeated")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:  # type: ignore[override]
        """Run `func` on the loop a moment later; the future brings what it returned."""
        future: asyncio.Future[_T] = self.create_future()

        def run() -> None:
            asyncio._set_running_loop(None)
            try:
                result = func(*args)
            except Exception as error:
                outcome = functools.partial(future.set_exception, error)
            else:
                outcome = functools.partial(future.set_result, result)
            finally:
                asyncio._set_running_loop(self)
            if not future.done():
                outcome()

        self.call_later(THREAD_S, run)
        return future

    def _process_events(self, events: object) -> None:
        """Nothing comes from outside."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector."""


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refuse(self: SimulatedLoop, *args: object, **keys: object) -> NoReturn:
        raise SimulationError(f"{name}: a simulated loop does no real I/O")

    refuse.__name__ = name
    refuse.__doc__ = "Refused: a simulated loop does no real I/O."
    return refuse


for _name in (
    "add_reader", "remove_reader", "add_writer", "remove_writer", "add_signal_handler", "getaddrinfo", "getnameinfo",
    "sock_recv", "sock_recv_into", "sock_sendall", "sock_connect", "sock_accept", "create_connection", "create_server",
    "create_datagram_endpoint", "create_unix_connection", "create_unix_server", "connect_read_pipe",
    "connect_write_pipe", "subprocess_exec", "subprocess_shell",
):  # fmt: skip
    setattr(SimulatedLoop, _name, _refuse(_name))


@contextlib.contextmanager
def _anyio_without_threads() -> Iterator[None]:
    """Have anyio hand functions to the simulated loop: it starts threads by itself, without asking the loop."""
    real = anyio.to_thread.run_sync

    @functools.wraps(real)
    async def run_sync(func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, SimulatedLoop):
            return await real(func, *args, **options)
        async with options.get("limiter") or contextlib.nullcontext():
            running = loop.run_in_executor(None, functools.partial(copy_context().run, func, *args))
            if options.get("abandon_on_cancel"):
                return await running
            with anyio.CancelScope(shield=True):
                return await running

    anyio.to_thread.run_sync = run_sync  # type: ignore[assignment]
    try:
        yield
    finally:
        anyio.to_thread.run_sync = real
