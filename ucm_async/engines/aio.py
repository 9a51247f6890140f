"""Linux native AIO."""

from __future__ import annotations

from ..native import AioContext
from .base import ContextEngine

__all__ = ["AioEngine"]


class AioEngine(ContextEngine):
    """``io_submit``, with completions by eventfd. For O_DIRECT files: it waits for the disk on others.

    Parameters
    ----------
    depth
        How many requests may be with the kernel at once.
    max_bytes
        How many bytes may be, 0 for no bound. Past the device's own queue the submitting call itself would block.

    Raises
    ------
    OSError
        ENOSYS without the extension, EAGAIN where ``fs.aio-max-nr`` is used up.
    """

    name = "aio"

    def __init__(self, depth: int, max_bytes: int = 0) -> None:
        super().__init__(AioContext(depth, max_bytes))
