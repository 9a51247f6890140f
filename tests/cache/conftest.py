"""What every test of the Cache gets: a look that no shared memory is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ucm_async.native import NATIVE
from ucm_async.stages.cache.segment import DIRECTORY, PREFIX


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not NATIVE:
        for item in items:
            if "tests/cache" in str(item.path) and "without_the_extension" not in item.name:
                item.add_marker(pytest.mark.skip(reason="the Cache needs the extension"))


def segments() -> set[str]:
    return {name for name in os.listdir(DIRECTORY) if name.startswith(f"{PREFIX}test-{os.getpid()}-")}


@pytest.fixture(autouse=True)
def no_segments_left() -> Iterator[None]:
    """The last one out removes the segment. What a test that failed left is removed, so that it fails alone."""
    yield
    left = segments()
    for name in left:
        os.unlink(f"{DIRECTORY}/{name}")
    assert not left
