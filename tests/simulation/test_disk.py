"""What the simulated disk promises: what was synced is there after a power cut, a rename is whole or not at all."""

from __future__ import annotations

import errno
import os
import random

import pytest

from ucm_async.testing.simulation.disk import SimulatedDisk
from ucm_async.testing.simulation.faults import Faults

SEEDS = 200


def make_disk(seed: int, **options: int) -> SimulatedDisk:
    return SimulatedDisk(Faults(random.Random(seed)), **options)


def write(disk: SimulatedDisk, path: str, data: bytes, *, sync: bool = False) -> None:
    opened = disk.open(disk.root, path, os.O_RDWR | os.O_CREAT)
    disk.write(opened, 0, data)
    if sync:
        disk.sync(opened)
    disk.close(opened)


def sync_directory(disk: SimulatedDisk, path: str) -> None:
    opened = disk.open(disk.root, path, os.O_RDONLY)
    disk.sync(opened)
    disk.close(opened)


def names(disk: SimulatedDisk, path: str = "/") -> set[str]:
    return set(disk.find(disk.root, path).entries)


def test_what_is_synced_survives_and_the_rest_may() -> None:
    seen = set()
    for seed in range(SEEDS):
        disk = make_disk(seed)
        write(disk, "/a", b"a" * 2048, sync=True)
        sync_directory(disk, "/")
        write(disk, "/a", b"b" * 2048)
        disk.cut_power()
        content = bytes(disk.find(disk.root, "/a").content)
        assert len(content) == 2048
        sectors = {content[at : at + 512] for at in range(0, 2048, 512)}
        assert sectors <= {b"a" * 512, b"b" * 512}
        seen.add(len(sectors))
    assert seen == {1, 2}


def test_sectors_of_4096_bytes_are_whole() -> None:
    for seed in range(SEEDS):
        disk = make_disk(seed, sector_bytes=4096)
        write(disk, "/a", b"a" * 8192, sync=True)
        sync_directory(disk, "/")
        write(disk, "/a", b"b" * 8192)
        disk.cut_power()
        content = bytes(disk.find(disk.root, "/a").content)
        assert {content[:4096], content[4096:]} <= {b"a" * 4096, b"b" * 4096}


def test_data_without_a_synced_name_may_be_gone() -> None:
    there = 0
    for seed in range(SEEDS):
        disk = make_disk(seed)
        write(disk, "/a", b"a", sync=True)
        disk.cut_power()
        there += "a" in names(disk)
    assert 0 < there < SEEDS


def test_a_rename_is_whole_or_not_at_all() -> None:
    outcomes = set()
    for seed in range(SEEDS):
        disk = make_disk(seed)
        disk.mkdir(disk.root, "/from")
        disk.mkdir(disk.root, "/to")
        write(disk, "/from/a", b"a", sync=True)
        sync_directory(disk, "/")
        sync_directory(disk, "/from")
        disk.rename(disk.root, "/from/a", "/to/b", 0)
        disk.cut_power()
        outcomes.add((*names(disk, "/from"), *names(disk, "/to")))
    assert outcomes == {("a",), ("b",)}


def test_a_sync_of_the_target_makes_a_rename_last() -> None:
    for seed in range(SEEDS):
        disk = make_disk(seed)
        disk.mkdir(disk.root, "/from")
        disk.mkdir(disk.root, "/to")
        sync_directory(disk, "/")
        write(disk, "/from/a", b"a", sync=True)
        disk.rename(disk.root, "/from/a", "/to/b", 0)
        sync_directory(disk, "/to")
        disk.cut_power()
        assert names(disk, "/to") == {"b"}
        assert not names(disk, "/from")
        assert bytes(disk.find(disk.root, "/to/b").content) == b"a"


def test_edits_are_lost_one_by_one_and_in_any_order() -> None:
    seen = set()
    for seed in range(SEEDS):
        disk = make_disk(seed)
        for name in "abc":
            write(disk, name, b"")
        disk.cut_power()
        seen.add(frozenset(names(disk)))
    assert len(seen) == 8


def test_a_deleted_file_may_be_back() -> None:
    seen = set()
    for seed in range(SEEDS):
        disk = make_disk(seed)
        write(disk, "/a", b"a", sync=True)
        sync_directory(disk, "/")
        disk.unlink(disk.root, "/a")
        disk.cut_power()
        seen.add("a" in names(disk))
    assert seen == {True, False}


def test_space_is_counted_from_the_medium_after_a_power_cut() -> None:
    for seed in range(SEEDS):
        disk = make_disk(seed)
        for name in "abc":
            write(disk, name, bytes(5000), sync=True)
        disk.unlink(disk.root, "a")
        disk.cut_power()
        assert disk.used_bytes == 8192 * len(names(disk))


def test_noreplace_and_locks() -> None:
    disk = make_disk(0)
    write(disk, "/a", b"a")
    write(disk, "/b", b"b")
    with pytest.raises(FileExistsError):
        disk.rename(disk.root, "/a", "/b", 1)
    first, second = (disk.open(disk.root, "/a", os.O_RDWR) for _ in range(2))
    disk.lock(first)
    with pytest.raises(BlockingIOError):
        disk.lock(second)
    disk.close(first)
    disk.lock(second)


def test_errors_are_those_of_the_system() -> None:
    disk = make_disk(0, direct=False)
    disk.mkdir(disk.root, "/d")
    write(disk, "/f", b"")
    for error, call in (
        (errno.ENOENT, lambda: disk.find(disk.root, "/none/x")),
        (errno.ENOTDIR, lambda: disk.find(disk.root, "/f/x")),
        (errno.EEXIST, lambda: disk.mkdir(disk.root, "/d")),
        (errno.EISDIR, lambda: disk.open(disk.root, "/d", os.O_RDWR)),
        (errno.ENOTDIR, lambda: disk.open(disk.root, "/f", os.O_DIRECTORY)),
        (errno.EINVAL, lambda: disk.open(disk.root, "/f", os.O_DIRECT)),
        (errno.EISDIR, lambda: disk.unlink(disk.root, "/d")),
        (errno.EBADF, lambda: disk.write(disk.open(disk.root, "/f", os.O_RDONLY), 0, b"x")),
    ):
        with pytest.raises(OSError) as raised:
            call()
        assert raised.value.errno == error
