"""Slots of several classes: a block takes the smallest that holds what a codec left of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ucm_async as ucm
from ucm_async import Status
from ucm_async.blocks.layout import BlockLayout
from ucm_async.engines.system import System
from ucm_async.errors import ConfigError
from ucm_async.native import crc32c
from ucm_async.stages.slab.exchange import NEVER, Segments, colder_segments, coldest_of
from ucm_async.stages.slab.layout import SlabGeometry, check_segment, pack_segment, slot_sizes
from ucm_async.types import U8, Bools

from .support import GIB, PAGE, data_files, disk_usage, home, keys, slots_below, stage_statistics

BLOCK = 64 << 10
SLOT = BLOCK + PAGE
BITS = {"half": 0, "most": 4, "all": 8}
"""Bits of the exponents of each kind of block: what Huffman's code leaves is a half, three quarters, or all of it."""


def blocks_of(ids: U8, kind: str) -> U8:
    """Blocks of bf16, uint8 (n, BLOCK): signs and mantissas say nothing, and exponents as much as the kind has bits."""
    out = np.empty((len(ids), BLOCK // 2), dtype=np.uint16)
    for row, one in enumerate(ids):
        generator = np.random.default_rng(int.from_bytes(one.tobytes(), "little"))
        exponents = generator.integers(0, 1 << BITS[kind], BLOCK // 2, dtype=np.uint16)
        out[row] = exponents << 7 | generator.integers(0, 2, BLOCK // 2, dtype=np.uint16) << 15
        out[row] |= generator.integers(0, 1 << 7, BLOCK // 2, dtype=np.uint16)
    return out.view(np.uint8)


def store_keys(directory: Path, capacity: float, **changes: Any) -> dict[str, Any]:
    """Keys of a store with room for `capacity` blocks as they are."""
    sizes = {"block_size": BLOCK, "shard_size": BLOCK // 4, "dtype": "bfloat16", "compress_codec": "huffman"}
    return keys(directory, posix_capacity_gb=capacity * SLOT / GIB) | sizes | changes


async def dump(store: ucm.Store, first: int, count: int, kind: str) -> Bools:
    ids = ucm.block_ids(range(first, first + count))
    result = await store.dump(ids, None, blocks_of(ids, kind))
    assert set(result.status.tolist()) <= {Status.OK, Status.NO_SPACE}, dict(result.failures)
    return result.ok


async def check(store: ucm.Store, first: int, count: int, kind: str) -> Bools:
    """Load blocks by number: what comes is right; returns which came."""
    ids = ucm.block_ids(range(first, first + count))
    out = np.zeros((count, BLOCK), dtype=np.uint8)
    result = await store.load(ids, None, out)
    assert set(result.status.tolist()) <= {Status.OK, Status.MISS}, dict(result.failures)
    assert (out[result.ok] == blocks_of(ids, kind)[result.ok]).all()
    return result.ok


def segments(store: ucm.Store) -> dict[int, int]:
    """Segments by the bytes of their slots."""
    (slab,) = stage_statistics(store)["slabs"]
    return dict(slab["segments"])


def stored(store: ucm.Store) -> int:
    (slab,) = stage_statistics(store)["slabs"]
    return int(slab["slots"]["stored"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that slots are stamped with; `now` may be moved."""
    moved = SimpleNamespace(now=0.0)
    monkeypatch.setattr(System, "now", lambda self: time.time() + moved.now)
    return moved


# ---- pure


@given(st.integers(1, 1 << 22), st.integers(1, 400))
def test_sizes(page_parts: int, shards: int) -> None:
    layout = BlockLayout.of(page_parts * shards, page_parts)
    sizes = slot_sizes(layout)
    assert sizes[-1] == layout.file_bytes
    assert 1 <= len(sizes) <= 32
    assert list(sizes) == sorted(set(sizes))
    geometry = SlabGeometry(sizes, 7)
    needed = np.arange(layout.header_bytes + PAGE, layout.file_bytes + 1, max(PAGE, layout.file_bytes // 99))
    for nbytes, kind in zip(needed.tolist(), geometry.kinds_for(needed).tolist(), strict=True):
        assert sizes[kind] >= nbytes
        assert kind == 0 or sizes[kind - 1] < nbytes
        assert sizes[kind] - nbytes < PAGE + layout.block_size / 32


@given(st.lists(st.integers(0, 15), min_size=1, max_size=5), st.integers(1, 300))
def test_lengths_tell_how_segments_are_cut(kinds: list[int], slots: int) -> None:
    """Whatever they conclude explains every file; where a segment of whole blocks is among them, it is the truth."""
    geometry = SlabGeometry(slot_sizes(BlockLayout.of(BLOCK, BLOCK)), slots)
    lengths = [geometry.segment_bytes(kind) for kind in kinds]
    found = SlabGeometry.of_files(geometry.sizes, lengths)
    assert found is not None
    assert {found.segment_bytes(found.kind_of_file(length)) for length in lengths} == set(lengths)
    if geometry.largest in kinds:
        assert found == geometry
        assert [found.kind_of_file(length) for length in lengths] == kinds


def choose(*rows: tuple[int, float, float, float, bool]) -> list[int]:
    """Segments 10, 11, … that should go for class 5, at 200; of each kind, warmth, oldest, latest stamp, in use."""
    kinds, warmth, oldest, latest, in_use = (np.array(column) for column in zip(*rows, strict=True))
    there = Segments(10 + np.arange(len(rows)), kinds, warmth, oldest, latest, in_use)
    return list(colder_segments(there, 5, coldest_of(there, 5, 200), 198))


def test_the_colder_class_gives_up_a_segment() -> None:
    ours, nothing = (5, 100, 90, 130, False), (NEVER, NEVER, NEVER, False)
    assert choose(ours, (7, 80, 10, 140, False)) == [11]
    assert choose(ours, (7, 80, 10, 140, False), (3, 70, 60, 80, False)) == [12, 11]
    assert choose(ours, (7, 95, 10, 140, False)) == [], "ours are colder"
    assert choose(ours, (7, 80, 10, 140, True)) == []
    assert choose(ours, (7, 80, 10, 198, False)) == [], "somebody has just asked"
    assert choose(ours) == []
    assert choose(ours, (7, *nothing)) == [11]
    assert choose((5, *nothing), (7, 190, 180, 195, False)) == [11], "we have nothing to lose"


# ---- what it is for


@pytest.mark.parametrize(("kind", "more"), [("half", 1.6), ("most", 1.15)])
async def test_a_cap_holds_more_blocks(kind: str, more: float, tmp_path: Path) -> None:
    """As many more as they are shorter, but for the header and a part of a page."""
    capacity = 320
    async with ucm.open_store("Compress|Slab", **store_keys(tmp_path, capacity)) as store:
        for first in range(0, 1000, 50):
            assert (await dump(store, first, 50, kind)).all()
        assert stored(store) > more * capacity
        assert len(segments(store)) == 1
        assert (await check(store, 0, 1000, kind)).sum() == stored(store)
        used = stage_statistics(store)["space"]["used_bytes"]
        assert used == await asyncio.to_thread(disk_usage, tmp_path) <= capacity * SLOT


async def test_plain_blocks_have_one_class(tmp_path: Path) -> None:
    async with ucm.open_store("Slab", **store_keys(tmp_path, 64)) as store:
        for first in range(0, 120, 30):
            assert (await dump(store, first, 30, "half")).all()
        assert list(segments(store)) == [SLOT]
        assert stage_statistics(store)["segments_exchanged"] == 0
        assert (await check(store, 90, 30, "half")).all()


async def test_shards_one_at_a_time_have_the_largest_slots(tmp_path: Path) -> None:
    """Nobody knows how long the others will be, so the block has room for all of them from the first on."""
    async with ucm.open_store("Compress|Slab", **store_keys(tmp_path, 64)) as store:
        ids = ucm.block_ids(range(8))
        rows = blocks_of(ids, "half").reshape(8, 4, -1)
        for shard in (2, 0, 3, 1):
            assert (await store.dump(ids, [shard] * 8, rows[:, shard].copy())).ok.all()
        assert list(segments(store)) == [SLOT]
        assert (await dump(store, 100, 8, "half")).all()
        assert (await check(store, 0, 8, "half")).all()
        assert (await check(store, 100, 8, "half")).all()


# ---- one class against another


async def test_a_full_store_takes_blocks_of_other_lengths(tmp_path: Path, clock: SimpleNamespace) -> None:
    """Longer ones have room nowhere, and get it at once; shorter ones take the place of what is coldest."""
    async with ucm.open_store("Compress|Slab", **store_keys(tmp_path, 64)) as store:
        for turn, kind in enumerate(("half", "all", "most", "half", "all")):
            for first in range(0, 200, 40):
                clock.now += 3
                assert (await dump(store, 1000 * turn + first, 40, kind)).all()
            assert (await check(store, 1000 * turn + 180, 20, kind)).all()
            used = stage_statistics(store)["space"]["used_bytes"]
            assert used == await asyncio.to_thread(disk_usage, tmp_path) <= 64 * SLOT
        assert stage_statistics(store)["segments_exchanged"] > 0


async def test_nobody_is_refused_for_his_length(tmp_path: Path) -> None:
    """Where everything else was asked for just now, a class that is short of slots gets a segment all the same."""
    async with ucm.open_store("Compress|Slab", **store_keys(tmp_path, 64)) as store:
        for turn, kind in enumerate(("half", "all", "most")):
            assert (await dump(store, 1000 * turn, 60, "half")).all()
            assert (await dump(store, 1000 * turn + 100, 40, kind)).all()
        assert stage_statistics(store)["segments_exchanged"] > 0


async def test_the_space_of_cold_blocks_goes_over(tmp_path: Path, clock: SimpleNamespace) -> None:
    """A store that was filled without a codec holds as many blocks with one as a new store, after some time."""
    async with ucm.open_store("Slab", **store_keys(tmp_path, 160)) as store:
        assert (await dump(store, 0, 150, "half")).all()
    async with ucm.open_store("Compress|Slab", **store_keys(tmp_path, 160)) as store:
        for first in range(1000, 1400, 10):
            clock.now += 3
            assert (await dump(store, first, 10, "half")).all()
        assert stored(store) > 1.6 * 160
        assert list(segments(store)) == [min(segments(store))], "nobody has asked for the others"
        assert not (await check(store, 0, 150, "half")).any()
        assert (await check(store, 1200, 200, "half")).all()


async def test_what_is_asked_for_stays(tmp_path: Path, clock: SimpleNamespace) -> None:
    """Blocks of a class that is in use are not driven out by a stream of others that nobody asks for again."""
    async with ucm.open_store("Compress|Slab", **store_keys(tmp_path, 160)) as store:
        assert (await dump(store, 0, 60, "all")).all()
        for first in range(1000, 2000, 20):
            clock.now += 3
            assert (await dump(store, first, 20, "half")).all()
            assert (await check(store, 0, 60, "all")).all()
        assert stage_statistics(store)["evicted"] > 0


# ---- opening


async def mixed(directory: Path) -> None:
    """A closed store with blocks of three lengths, 15 each: 0 …, 100 …, 200 …"""
    async with ucm.open_store("Compress|Slab", **store_keys(directory, 320)) as store:
        for first, kind in zip((0, 100, 200), BITS, strict=True):
            assert (await dump(store, first, 15, kind)).all()
        assert len(segments(store)) == 3


async def all_there(directory: Path, recovered: str, **changes: Any) -> None:
    async with ucm.open_store("Compress|Slab", **store_keys(directory, 320, **changes)) as store:
        (slab,) = stage_statistics(store)["slabs"]
        assert slab["recovered"] == recovered
        assert len(slab["segments"]) == 3
        for first, kind in zip((0, 100, 200), BITS, strict=True):
            assert (await check(store, first, 15, kind)).all()
            assert (await dump(store, first + 50, 20, kind)).all()
            assert (await check(store, first + 50, 20, kind)).all()


@pytest.mark.parametrize("way", ["checkpoint", "headers"])
async def test_classes_are_recovered(way: str, tmp_path: Path) -> None:
    await mixed(tmp_path)
    if way == "headers":
        await asyncio.to_thread((home(tmp_path) / "checkpoint").unlink)
    await all_there(tmp_path, way, recover="strict")


async def test_a_store_that_opens_beside(tmp_path: Path) -> None:
    await mixed(tmp_path)
    async with ucm.open_store("Slab", **store_keys(tmp_path, 320)):
        await all_there(tmp_path, "memory")


@pytest.mark.parametrize("cut", [0, PAGE], ids=["whole", "cut short"])
async def test_a_damaged_segment_is_what_its_length_says(cut: int, tmp_path: Path) -> None:
    """Without its first page, and a page of a slot that holds nothing."""
    await mixed(tmp_path)

    def damage() -> None:
        for path in sorted(home(tmp_path).glob("*.slab"))[:2]:
            with path.open("r+b") as file:
                file.write(bytes(100))
                file.truncate(path.stat().st_size - cut)
        (home(tmp_path) / "checkpoint").unlink()

    await asyncio.to_thread(damage)
    await all_there(tmp_path, "headers")


async def test_an_older_format_is_left_alone(tmp_path: Path) -> None:
    """Also where it may drop what is bad: it is not bad."""
    await mixed(tmp_path)
    (first, *_) = sorted(home(tmp_path).glob("*.slab"))

    def make_old() -> bytes:
        page = bytearray(first.read_bytes()[:PAGE])
        page[12:16] = (1).to_bytes(4, "little")
        page[8:12] = crc32c(page[12:]).to_bytes(4, "little")
        with first.open("r+b") as file:
            file.write(page)
        return bytes(page)

    page = await asyncio.to_thread(make_old)
    with pytest.raises(ConfigError, match=r"000000\.slab': it has format version 1, and this one reads 2"):
        await ucm.open_store("Compress|Slab", **store_keys(tmp_path, 320))
    assert (await asyncio.to_thread(first.read_bytes))[:PAGE] == page
    done = await asyncio.to_thread(command, "stat", str(tmp_path))
    assert done.returncode != 0
    assert "format version 1" in done.stderr


def test_first_pages() -> None:
    page = pack_segment(9, 3 * PAGE, bytes(16), 4)
    assert check_segment(page, None, bytes(16), 4).slot_bytes == 3 * PAGE
    assert check_segment(page, (PAGE, 3 * PAGE), bytes(16), 4).slots == 9
    assert check_segment(page, (PAGE,), bytes(16), 4).why == f"no slots have {3 * PAGE} bytes"
    assert check_segment(page, None, bytes(16), 5).why == "it is another segment"
    assert check_segment(page, None, b"n" * 16, 4).why == "it belongs to another namespace"
    assert check_segment(page[:100], None, bytes(16), 4).why == "it has no first page"
    assert check_segment(bytes(PAGE), None, bytes(16), 4).why == "its first page is none of a segment"
    for at in range(PAGE):
        flipped = page[:at] + bytes([page[at] ^ 4]) + page[at + 1 :]
        assert check_segment(flipped, None, bytes(16), 4).why
        assert not check_segment(flipped, None, bytes(16), 4).version


# ---- tools


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "ucm_async.cli", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("flipped_page", [False, True])
async def test_fsck_knows_classes(flipped_page: bool, tmp_path: Path) -> None:
    await mixed(tmp_path)
    if flipped_page:
        path = sorted(home(tmp_path).glob("*.slab"))[1]

        def flip() -> None:
            with path.open("r+b") as file:
                file.write(b"x")

        await asyncio.to_thread(flip)
    done = await asyncio.to_thread(command, "fsck", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "45" in done.stdout

    def damage() -> None:
        slots = [one for one in slots_below(tmp_path) if one.nbytes == 10 * PAGE or one.nbytes == SLOT]
        used = [one for one in slots if one.read()[:8] == b"UCMKVBLK"]
        used[3].write(b"?", PAGE + 30)
        used[-1].write(b"?", PAGE + 30)

    if not flipped_page:
        await asyncio.to_thread(damage)
        done = await asyncio.to_thread(command, "fsck", "--repair", str(tmp_path))
        assert "2 " in done.stdout
        assert len([one for one in data_files(tmp_path) if one.parent.name == "quarantine"]) == 2
