"""The simulated loop: time jumps, threads run inline, and what cannot be repeated is refused."""

from __future__ import annotations

import asyncio
import threading
import time

import anyio.to_thread
import pytest

from ucm_async.testing.simulation.clock import SimulatedLoop, SimulationError


async def test_time_jumps() -> None:
    began, loop = time.monotonic(), asyncio.get_running_loop()
    await asyncio.gather(*(asyncio.sleep(delay) for delay in range(31)))
    assert loop.time() == pytest.approx(30)
    assert time.monotonic() - began < 15


async def test_timers_run_in_order_and_at_their_time() -> None:
    loop, seen = asyncio.get_running_loop(), []
    for delay in (0.3, 1e-7, 0.1, 2e-7):
        loop.call_later(delay, lambda delay=delay: seen.append((delay, loop.time())))
    await asyncio.sleep(1)
    assert [delay for delay, _ in seen] == [1e-7, 2e-7, 0.1, 0.3]
    assert all(at == pytest.approx(delay, abs=1e-9) for delay, at in seen)


async def test_a_deadline_is_kept_to_the_instant() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(loop.create_future(), 7.5)
    assert loop.time() == pytest.approx(7.5)


@pytest.mark.parametrize("to_thread", [asyncio.to_thread, anyio.to_thread.run_sync])
async def test_threads_run_inline(to_thread: object) -> None:
    """In this thread, without a running loop, and what they raise arrives."""

    def work() -> tuple[int, bool]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return threading.get_ident(), True
        return threading.get_ident(), False

    to_thread = anyio.to_thread.run_sync if to_thread is not asyncio.to_thread else to_thread
    assert await to_thread(work) == (threading.get_ident(), True)
    with pytest.raises(ZeroDivisionError):
        await to_thread(lambda: 1 // 0)
    assert threading.active_count() == 1 or all("anyio" not in one.name.lower() for one in threading.enumerate())


async def test_real_io_is_refused() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(SimulationError, match="add_reader"):
        loop.add_reader(0, print)
    with pytest.raises(SimulationError, match="create_connection"):
        await asyncio.open_connection("localhost", 1)


async def test_calls_from_threads_are_refused() -> None:
    loop, raised = asyncio.get_running_loop(), []

    def call() -> None:
        try:
            loop.call_soon_threadsafe(print)
        except SimulationError as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert raised


def run(main: object, stop_s: float = 1e6) -> None:
    loop = SimulatedLoop(stop_s)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_waiting_for_nothing() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(SimulationError, match="nothing will ever happen"):
        run(main)


def test_spinning() -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(SimulationError, match="the clock stands still"):
        run(main)


def test_never_done() -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(10)

    with pytest.raises(SimulationError, match="still not done after 100 simulated seconds"):
        run(main, 100)
