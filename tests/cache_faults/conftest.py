"""Fixtures of the fault tests of the Cache."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

import ucm_async as ucm
from tests.cache.conftest import no_segments_left
from ucm_async.native import NATIVE
from ucm_async.stages.cache.segment import DIRECTORY

from .processes import Child

__all__ = ["no_segments_left"]

Opener: TypeAlias = Callable[..., Any]
Starter: TypeAlias = Callable[..., Child]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not NATIVE:
        for item in items:
            if "tests/cache_faults" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="the Cache needs the extension"))


@pytest.fixture
def start(no_segments_left: None) -> Iterator[Starter]:
    """Starts processes; none of them outlives the test."""
    started: list[Child] = []

    def start_one(role: str, **about: Any) -> Child:
        started.append(Child(role, **about))
        return started[-1]

    yield start_one
    for child in started:
        child.remove()


@pytest_asyncio.fixture
async def open_store(no_segments_left: None) -> AsyncIterator[Opener]:
    """Opens stores, and closes them."""
    opened: list[ucm.Store] = []

    async def open_one(pipeline: str, **keys: Any) -> ucm.Store:
        opened.append(await ucm.open_store(pipeline, **keys))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.aclose()


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory in memory: where it is said how long something may take, a busy disk must not have a say."""
    with tempfile.TemporaryDirectory(prefix="ucm-faults-", dir=DIRECTORY) as directory:
        yield Path(directory)
