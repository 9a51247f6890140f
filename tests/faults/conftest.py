"""Fixtures of the fault tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest_asyncio

import ucm_async as ucm

from .support import calm, keys, quiet

Opener: TypeAlias = Callable[..., Any]


@pytest_asyncio.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[Opener]:
    """Opens small stores, by default in one directory, and closes them; see `support.keys`."""
    opened: list[ucm.Store] = []
    (tmp_path / "kv").mkdir()

    async def open_one(**changes: Any) -> ucm.Store:
        store = await ucm.open_store("Posix", **keys(tmp_path / "kv", **changes))
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        calm(store)
        await store.aclose()


@pytest_asyncio.fixture
async def store(open_store: Opener) -> AsyncIterator[ucm.Store]:
    """One small store, on the engine that is chosen here by itself; it must hold nothing when the test is over."""
    store = await open_store()
    yield store
    calm(store)
    await quiet(store)
