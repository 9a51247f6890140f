"""Arena memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ucm_async.native import NATIVE

from .tools import native

HUGE = 2 << 20


def shared(length: int) -> int:
    fd = os.memfd_create("arena", os.MFD_CLOEXEC)
    os.ftruncate(fd, length)
    return fd


@pytest.mark.parametrize("huge", [True, False])
@pytest.mark.parametrize("length", [1, 4096, HUGE - 1, HUGE, 3 * HUGE + 5])
def test_anonymous(length: int, huge: bool) -> None:
    area = native.Mapping(length, huge=huge)
    assert area.address % HUGE == 0
    assert area.length == length
    assert area.page_mode in ("huge", "partly huge", "4k")
    assert huge or area.page_mode == "4k"
    memory = np.frombuffer(area, np.uint8)
    assert len(memory) == length
    assert not memory.any()
    memory[:] = 7
    assert memory.ctypes.data == area.address


@pytest.mark.parametrize("huge", [True, False])
@pytest.mark.parametrize("length", [100, HUGE, 3 * HUGE + 8192])
def test_shared(length: int, huge: bool) -> None:
    fd = shared(length)
    first, second = native.Mapping(length, fd, huge), native.Mapping(length, fd, huge)
    os.close(fd)
    one, two = np.frombuffer(first, np.uint8), np.frombuffer(second, np.uint8)
    one[-1] = 9
    assert two[-1] == 9 and not two[:-1].any()
    assert first.address != second.address and second.address % HUGE == 0


@pytest.mark.parametrize("of_a_file", [False, True])
def test_populating_in_steps(of_a_file: bool) -> None:
    length = 3 * HUGE + 5000
    fd = shared(length) if of_a_file else -1
    area = native.Mapping(length, fd, populate=False)
    if of_a_file:
        assert os.fstat(fd).st_blocks == 0
    memory = np.frombuffer(area, np.uint8)
    memory[2 * HUGE - 1] = 7  # what is there stays
    for offset in range(0, length, HUGE):
        area.populate(offset, min(HUGE, length - offset))
    if of_a_file:
        assert os.fstat(fd).st_blocks * 512 >= length
        os.close(fd)
    assert memory[2 * HUGE - 1] == 7 and memory.sum() == 7


def test_populating_what_is_not_there() -> None:
    area = native.Mapping(HUGE + 4096, populate=False)
    for offset, length, name in ((-HUGE, 1, "offset"), (4096, 1, "offset"), (0, 0, "length"), (HUGE, 4097, "length")):
        with pytest.raises(ValueError, match=name):
            area.populate(offset, length)
    with pytest.raises(ValueError, match="length"):
        area.populate(0, HUGE + 4097)
    area.populate(HUGE, 4096)
    area.close()
    with pytest.raises(ValueError, match="closed"):
        area.populate(0, 1)


def test_populating_where_there_is_no_room() -> None:
    fd = shared(2 * HUGE)
    area = native.Mapping(2 * HUGE, fd, populate=False)
    os.ftruncate(fd, HUGE)  # as if the file system had nothing left behind there
    area.populate(0, HUGE)
    if NATIVE:
        with pytest.raises(OSError, match="No space"):
            area.populate(HUGE, HUGE)
    os.close(fd)


def test_what_is_in_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 5000)
    fd = os.open(path, os.O_RDWR)
    area = native.Mapping(15000, fd)
    os.close(fd)
    assert bytes(area) == b"abc" * 5000


def test_close_and_exports() -> None:
    area = native.Mapping(4096)
    view = memoryview(area)
    view[0] = 1
    with pytest.raises(BufferError, match="in use"):
        area.close()
    view.release()
    area.close()
    area.close()
    assert area.address == 0 and area.length == 4096
    with pytest.raises(BufferError, match="closed"):
        memoryview(area)


def test_memory_lives_as_long_as_its_views() -> None:
    memory = np.frombuffer(native.Mapping(HUGE), np.uint8)
    memory[:] = 1
    assert int(memory.sum()) == HUGE


@pytest.mark.parametrize("length", [0, -1, 2**63 - 1])
def test_wrong_lengths(length: int) -> None:
    with pytest.raises(ValueError, match="length"):
        native.Mapping(length)


def test_too_large_for_this_machine() -> None:
    with pytest.raises(OSError):
        native.Mapping(2**47)


def test_a_file_that_is_too_short() -> None:
    fd = shared(4096)
    with pytest.raises(ValueError, match="4096 bytes"):
        native.Mapping(4097, fd)
    os.close(fd)


def test_descriptors_that_cannot_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        native.Mapping(4096, 10**6)
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(PermissionError):
        native.Mapping(4096, fd)
    os.close(fd)


def test_mappings_go_away() -> None:
    def mapped_kib() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4

    native.Mapping(HUGE).close()
    before = mapped_kib()
    for _ in range(50):
        native.Mapping(8 * HUGE).close()
    for _ in range(50):
        native.Mapping(8 * HUGE)
    assert mapped_kib() < before + 8 * HUGE // 1024
