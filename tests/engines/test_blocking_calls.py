"""The guard sees what it should, and only that."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from blockbuster import BlockingError

from ucm_async.testing.blocking_calls import OS_FUNCTIONS, forbidden

HERE = "tests.engines"
CALLS = {
    "open": lambda fd: os.close(os.open("/dev/null", os.O_RDONLY)),
    "pread": lambda fd: os.pread(fd, 1, 0),
    "preadv": lambda fd: os.preadv(fd, [bytearray(1)], 0),
    "pwrite": lambda fd: os.pwrite(fd, b"x", 0),
    "pwritev": lambda fd: os.pwritev(fd, [b"x"], 0),
    "readv": lambda fd: os.readv(fd, [bytearray(1)]),
    "writev": lambda fd: os.writev(fd, [b"x"]),
    "fsync": lambda fd: os.fsync(fd),
    "fdatasync": lambda fd: os.fdatasync(fd),
    "ftruncate": lambda fd: os.ftruncate(fd, 1),
}


@pytest.fixture
def fd(tmp_path: Path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_every_call_is_tried() -> None:
    assert set(CALLS) == set(OS_FUNCTIONS)


@pytest.mark.parametrize("name", OS_FUNCTIONS)
async def test_blocking_on_a_loop(name: str, fd: int) -> None:
    with forbidden(HERE), pytest.raises(BlockingError, match=rf"os\.{name}"):
        CALLS[name](fd)


async def test_a_thread_may_block(fd: int) -> None:
    with forbidden(HERE):
        assert await asyncio.to_thread(lambda: os.pwrite(fd, b"x", 0)) == 1


def test_without_a_loop(fd: int) -> None:
    with forbidden(HERE):
        assert os.pwrite(fd, b"x", 0) == 1


async def test_others_and_the_excluded_may_block(fd: int) -> None:
    with forbidden("ucm_async.tasks"):
        os.fsync(fd)
    with forbidden(HERE, excluded=[__name__]):
        os.fsync(fd)


async def test_nothing_stays_forbidden(fd: int) -> None:
    with forbidden(HERE):
        pass
    os.fsync(fd)
