"""io_uring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..native import UringContext
from .base import ContextEngine

if TYPE_CHECKING:
    from .arena import Arena

__all__ = ["UringEngine"]


class UringEngine(ContextEngine):
    """A ring of the kernel's, with completions by eventfd.

    Parameters
    ----------
    depth
        How many requests may be with the kernel at once.
    max_bytes
        How many bytes may be, 0 for no bound.
    force_async
        Have the kernel's own workers do every request: buffered files would block the submitting call otherwise.
    memory
        Registered with the ring if the kernel allows it: requests inside it then save the pinning of pages.

    Raises
    ------
    OSError
        ENOSYS without the extension or io_uring, EPERM where it is forbidden, ENOMEM past a limit.
    """

    name = "uring"

    def __init__(
        self, depth: int, max_bytes: int = 0, *, force_async: bool = False, memory: Arena | None = None
    ) -> None:
        ring = UringContext(depth, max_bytes, force_async)
        self._memory = memory  # the ring has its pages pinned
        self._registered = memory is not None and ring.register_memory(memory.base, memory.length)
        self._force_async = force_async
        super().__init__(ring)

    def statistics(self) -> Mapping[str, Any]:
        """Return plain counters, and whether the arena is ``registered``."""
        return {**super().statistics(), "registered": self._registered, "force_async": self._force_async}
