"""Which event loop a command runs on."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from ..errors import UcmError

__all__ = ["LOOPS", "loop_name", "run_on"]

LOOPS: Final = ("auto", "asyncio", "uvloop")

T = TypeVar("T")


def loop_name(choice: str) -> str:
    """Return "asyncio" or "uvloop" for one of `LOOPS`; "auto" takes uvloop where it is installed.

    Raises
    ------
    UcmError
        uvloop was asked for and is not installed.
    """
    installed = importlib.util.find_spec("uvloop") is not None
    if choice == "uvloop" and not installed:
        raise UcmError("uvloop is not installed (pip install uvloop); use --loop asyncio")
    return "asyncio" if choice == "asyncio" or not installed else "uvloop"


def run_on(name: str, main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a new loop, "asyncio" or "uvloop".

    SIGTERM ends it like Ctrl-C: `main` is cancelled and cleans up, then KeyboardInterrupt is raised.
    """
    factory = None
    if name == "uvloop":
        import uvloop  # noqa: PLC0415  (optional)

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_until_terminated(main))


async def _until_terminated(main: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await main
    except asyncio.CancelledError:
        if terminated:
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
