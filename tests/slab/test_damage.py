"""Bit flips in random places of everything on the disk: every one is found, none is returned.

Some sixty by default; ``UCM_ASYNC_FLIPS=1000`` for more.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status

from .support import (
    BLOCK,
    PAGE,
    RawSlot,
    check,
    content,
    dump,
    find_block,
    home,
    keys,
    slot_counts,
    slots_below,
    stage_statistics,
)

FLIPS = int(os.environ.get("UCM_ASYNC_FLIPS", "64"))
COUNT = 64
HEADER_BYTES = 80 + 4 * 24


def flip(slot: RawSlot, bit: int) -> None:
    at = bit // 8
    slot.write(bytes([slot.read()[at] ^ 1 << bit % 8]), at)


def written_bytes(generator: np.random.Generator) -> int:
    """A random byte of a slot that says something: the rest of the header's page is padding."""
    at = int(generator.integers(HEADER_BYTES + BLOCK))
    return at if at < HEADER_BYTES else at - HEADER_BYTES + PAGE


@pytest.mark.timeout(60 + FLIPS)
async def test_flips_under_an_open_store(tmp_path: Path) -> None:
    """Each block that is damaged is CORRUPT once, then a miss, and can be dumped anew."""
    generator = np.random.default_rng(11)
    async with ucm.open_store("Slab", **keys(tmp_path, capacity=512 + FLIPS)) as store:
        assert (await dump(store, 0, COUNT)).all()
        done = 0
        while done < FLIPS:
            numbers = generator.choice(COUNT, 16, replace=False)
            for number in numbers.tolist():
                block_id = ucm.block_ids([number])[0].tobytes()
                slot = await asyncio.to_thread(find_block, tmp_path, block_id)
                assert slot is not None
                bit = 8 * written_bytes(generator) + int(generator.integers(8))
                await asyncio.to_thread(flip, slot, bit)
            ids = ucm.block_ids(range(COUNT))
            out = np.zeros((COUNT, BLOCK), dtype=np.uint8)
            result = await store.load(ids, None, out)
            bad = np.flatnonzero(result.status == Status.CORRUPT)
            assert bad.tolist() == sorted(numbers.tolist()), "one was not found"
            assert (out[result.ok] == content(ids)[result.ok]).all()
            assert (await check(store, 0, COUNT)).sum() == COUNT - 16
            assert (await dump(store, 0, COUNT)).all()
            done += 16
        assert (await check(store, 0, COUNT)).all()
        assert slot_counts(store)["bad"] == done


@pytest.mark.timeout(60 + FLIPS)
async def test_flips_in_a_closed_store(tmp_path: Path) -> None:
    """Anywhere: slots, first pages, the checkpoint, what was never written. Nothing wrong comes, and the rest does."""
    generator = np.random.default_rng(12)
    async with ucm.open_store("Slab", **keys(tmp_path, capacity=256)) as store:
        assert (await dump(store, 0, COUNT)).all()
    for round_ in range(max(1, FLIPS // 16)):
        hit = await asyncio.to_thread(flip_anywhere, tmp_path, generator, 16)
        if round_ % 2:
            await asyncio.to_thread((home(tmp_path) / "checkpoint").unlink)
        async with ucm.open_store("Slab", **keys(tmp_path, capacity=256)) as store:
            came = await check(store, 0, COUNT, (Status.MISS, Status.CORRUPT))
            assert set(np.flatnonzero(~came).tolist()) <= hit, "a block is gone that was not damaged"
            assert stage_statistics(store)["slabs"][0]["recovered"] in ("headers", "checkpoint")
            assert (await dump(store, 0, COUNT)).all()
            assert (await check(store, 0, COUNT)).all()


def flip_anywhere(directory: Path, generator: np.random.Generator, count: int) -> set[int]:
    """Flip bits in random places of all files; returns the numbers of the blocks that were hit."""
    slots, hit = list(slots_below(directory)), set()
    names = {ucm.block_ids([number])[0].tobytes(): number for number in range(COUNT)}
    for _ in range(count):
        where = int(generator.integers(len(slots) + 3))
        if where >= len(slots):
            path = home(directory) / ("checkpoint" if where == len(slots) else "000000.slab")
            bit = int(generator.integers(8 * min(path.stat().st_size, PAGE)))
            flip(RawSlot(path, 0, PAGE), bit)
            continue
        slot = slots[where]
        number = names.get(slot.read()[16:32])
        if number is not None:
            hit.add(number)
        flip(slot, 8 * int(generator.integers(slot.nbytes)) + int(generator.integers(8)))
    return hit


async def test_a_slot_that_holds_another_block(tmp_path: Path) -> None:
    """A write that went to the wrong place."""
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert (await dump(store, 0, 10)).all()
        slots = [
            await asyncio.to_thread(find_block, tmp_path, ucm.block_ids([number])[0].tobytes()) for number in (3, 4)
        ]
        assert slots[0] is not None and slots[1] is not None
        await asyncio.to_thread(slots[0].write, slots[1].read())
        assert np.flatnonzero(~await check(store, 0, 10, (Status.CORRUPT,))).tolist() == [3]
        assert np.flatnonzero(~await check(store, 0, 10)).tolist() == [3]
