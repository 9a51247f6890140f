"""Fixtures of the extension's tests."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .tables import SLOTS, Table, new_memory
from .tools import MAKERS, RINGS, U8, noise


@pytest.fixture(params=list(MAKERS))
def context(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each of the contexts."""
    made = MAKERS[request.param]()
    yield made
    made.close()


@pytest.fixture(params=RINGS)
def ring(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A context that the kernel runs."""
    made = MAKERS[request.param]()
    yield made
    made.close()


@pytest.fixture
def data() -> U8:
    """What is in `file`: 256 KiB and a tail that is no multiple of a sector."""
    return noise(256 * 1024 + 1000)


@pytest.fixture
def path(tmp_path: Path, data: U8) -> Path:
    """A file with `data`."""
    made = tmp_path / "file"
    made.write_bytes(data.tobytes())
    return made


@pytest.fixture
def file(path: Path) -> Iterator[int]:
    """A descriptor for reading and writing `path`."""
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def memory() -> mmap.mmap:
    """Room for a block table of `SLOTS`."""
    return new_memory(SLOTS)


@pytest.fixture
def table(memory: mmap.mmap) -> Table:
    """An empty block table, and process 1 in it."""
    return Table(memory, SLOTS, create=True)


@pytest.fixture
def other(table: Table) -> Table:
    """Another process, as far as the table can tell."""
    return Table(table.memory, SLOTS, process=2)
