"""Word of changes in a table that several processes change, brought to an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..native import BlockTable, Watcher

__all__ = ["TableWatcher"]


class TableWatcher:
    """The real one: a thread that sleeps on the table's futex, and an eventfd that the running loop listens to.

    Nothing is missed by who arms it, looks at the table, and only then waits.

    Parameters
    ----------
    table
        Joined; it stays alive as long as this.
    on_change
        Called on the loop, once after each `arm`, some time after the first change that followed.
    """

    def __init__(self, table: BlockTable, on_change: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_change = on_change
        self._watcher = Watcher(table)
        self._loop.add_reader(self._watcher.fileno(), self._told)

    def arm(self) -> None:
        """Ask for a call at the first change after now."""
        self._watcher.arm()

    def disarm(self) -> None:
        """Do not, after all; a call that is on its way comes all the same."""
        self._watcher.disarm()

    def _told(self) -> None:
        self._watcher.clear()
        self._on_change()

    async def aclose(self) -> None:
        """End the thread. Nobody is called any more."""
        self._loop.remove_reader(self._watcher.fileno())
        await asyncio.to_thread(self._watcher.close)
