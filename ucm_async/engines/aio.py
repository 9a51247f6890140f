"""Linux native AIO."""

from __future__ import annotations

from typing import ClassVar

from ..native import AioContext, Driver
from .ring import DIRECT_DEPTH, HELPERS, RingEngine

__all__ = ["AioEngine"]


class AioEngine(RingEngine):
    """``io_submit``, with completions by eventfd. For O_DIRECT files: it waits for the disk on others.

    Parameters
    ----------
    depth
        How many transfers of batches may be with the kernel at once.
    max_bytes
        How many bytes may be, 0 for no bound. Past the device's own queue the submitting call itself would block.
    helpers
        Threads that run what is no transfer.

    Raises
    ------
    OSError
        ENOSYS without the extension, EAGAIN where ``fs.aio-max-nr`` is used up.
    """

    name = "aio"
    writes_wait: ClassVar[bool] = True

    def __init__(self, depth: int, max_bytes: int = 0, *, helpers: int = HELPERS) -> None:
        super().__init__(
            lambda: AioContext(min(depth, DIRECT_DEPTH), max_bytes),
            lambda: Driver("aio", depth, max_bytes, helpers, name="ucm-aio"),
        )
