"""io_uring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..native import Driver, UringContext
from .ring import DIRECT_DEPTH, HELPERS, RingEngine

if TYPE_CHECKING:
    from .arena import Arena

__all__ = ["UringEngine"]


class UringEngine(RingEngine):
    """A ring of the kernel's, with completions by eventfd.

    Parameters
    ----------
    depth
        How many transfers of batches may be with the kernel at once.
    max_bytes
        How many bytes may be, 0 for no bound.
    force_async
        Have the kernel's own workers do every request: buffered files would block the submitting call otherwise.
    memory
        Registered with the driver's ring if the kernel allows it: transfers inside it then save the pinning of pages.
    helpers
        Threads that run what is no transfer.

    Raises
    ------
    OSError
        ENOSYS without the extension or io_uring, EPERM where it is forbidden, ENOMEM past a limit.
    """

    name = "uring"

    def __init__(
        self,
        depth: int,
        max_bytes: int = 0,
        *,
        force_async: bool = False,
        memory: Arena | None = None,
        helpers: int = HELPERS,
    ) -> None:
        super().__init__(
            lambda: UringContext(min(depth, DIRECT_DEPTH), max_bytes, force_async),
            lambda: Driver("uring", depth, max_bytes, helpers, force_async, "ucm-uring"),
        )
        self._memory = memory  # the ring has its pages pinned
        self._registered = memory is not None and self._driver.register_memory(memory.base, memory.length)
        self._force_async = force_async

    def statistics(self) -> Mapping[str, Any]:
        """Return plain counters, and whether the arena is ``registered``."""
        return {**super().statistics(), "registered": self._registered, "force_async": self._force_async}
