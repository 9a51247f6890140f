"""An asyncio-native KV-cache store for LLM inference.

General layout: this file only names what is public. Small things (statuses, block ids, errors, the configuration) are
imported at once; `Store` and what hangs on it (asyncio, anyio, the engines) when first asked for, so that ``import
ucm_async`` stays cheap for tools and worker processes that may never open a store. The way of a block through the rooms
is told in the documentation, "Design".
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .config import StoreConfig
from .errors import (
    BackendIOError,
    BlockMissError,
    BusyError,
    ConfigError,
    CorruptError,
    DeadlineError,
    NoSpaceError,
    ShutDownError,
    StoreClosedError,
    StoreError,
    TaskCancelledError,
    UcmError,
    UnknownNameError,
    WouldBlock,
    WrongLoopError,
)
from .types import BlockIds, Durability, Status, block_ids

if TYPE_CHECKING:
    from .store import Store, open_store, run
    from .tasks import Task, TaskResult

__version__ = "0.1.0"

__all__ = [
    "BackendIOError",
    "BlockIds",
    "BlockMissError",
    "BusyError",
    "ConfigError",
    "CorruptError",
    "DeadlineError",
    "Durability",
    "NoSpaceError",
    "ShutDownError",
    "Status",
    "Store",
    "StoreClosedError",
    "StoreConfig",
    "StoreError",
    "Task",
    "TaskCancelledError",
    "TaskResult",
    "UcmError",
    "UnknownNameError",
    "WouldBlock",
    "WrongLoopError",
    "__version__",
    "block_ids",
    "open_store",
    "run",
]

_LAZY = {
    "Store": "store",
    "open_store": "store",
    "run": "store",
    "Task": "tasks",
    "TaskResult": "tasks",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
