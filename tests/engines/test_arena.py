"""The arena leases each slot to one at a time, first come first served."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.engines.arena import SLOT_ALIGNMENT, Arena
from ucm_async.errors import StoreClosedError, WouldBlock


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(5000, 8)
    yield arena
    arena.close()


def test_slots_are_aligned_and_apart(arena: Arena) -> None:
    assert arena.slot_bytes == 2 * SLOT_ALIGNMENT
    slots = arena.lease_nowait(8)
    addresses = arena.address(slots)
    assert addresses.dtype == np.uint64
    assert (addresses % SLOT_ALIGNMENT == 0).all()
    assert sorted(slots.tolist()) == list(range(8))
    assert (np.diff(np.sort(addresses)) == arena.slot_bytes).all()


def test_the_view_shows_what_the_addresses_name(arena: Arena) -> None:
    view = arena.view()
    assert view.shape == (8, arena.slot_bytes)
    slots = arena.lease_nowait(3)
    view[slots[1]] = 7
    assert view.ctypes.data + int(slots[1]) * arena.slot_bytes == int(arena.address(slots)[1])
    assert (arena.view()[slots[1]] == 7).all()


def test_lease_nowait_refuses_what_is_not_there(arena: Arena) -> None:
    first = arena.lease_nowait(6)
    with pytest.raises(WouldBlock, match="3 slots wanted, 2 of 8 free"):
        arena.lease_nowait(3)
    arena.release(first)
    assert len(arena.lease_nowait(8)) == 8


@pytest.mark.parametrize("n", [9, -1])
def test_more_than_there_are(arena: Arena, n: int) -> None:
    with pytest.raises(ValueError, match="the arena has 8"):
        arena.lease_nowait(n)


async def test_more_than_there_are_is_not_waited_for(arena: Arena) -> None:
    with pytest.raises(ValueError, match="the arena has 8"):
        await arena.lease(9)


def test_nothing_is_a_lease_too(arena: Arena) -> None:
    arena.release(arena.lease_nowait(0))
    assert arena.leased == 0


@pytest.mark.parametrize("again", [lambda slots: slots, lambda slots: slots[:1], lambda slots: np.array([7])])
def test_double_release(arena: Arena, again) -> None:
    slots = arena.lease_nowait(3)
    arena.release(slots)
    with pytest.raises(RuntimeError, match="released twice"):
        arena.release(again(slots))
    assert arena.leased == 0


def test_a_slot_named_twice_releases_none(arena: Arena) -> None:
    slots = arena.lease_nowait(3)
    with pytest.raises(RuntimeError, match="released twice"):
        arena.release(np.array([slots[0], slots[1], slots[0]]))
    assert arena.leased == 3
    arena.release(slots)
    assert arena.leased == 0


async def test_waiters_are_served_in_order(arena: Arena) -> None:
    held = await arena.lease(8)
    order: list[int] = []

    async def want(n: int) -> None:
        slots = await arena.lease(n)
        order.append(n)
        await asyncio.sleep(0)
        arena.release(slots)

    wanting = [asyncio.create_task(want(n)) for n in (5, 1, 7)]
    await asyncio.sleep(0)
    arena.release(held[:4])
    await asyncio.sleep(0)
    assert order == []  # four are free, and the one who came later wants one: it waits behind the one who wants five
    with pytest.raises(WouldBlock):
        arena.lease_nowait(1)
    arena.release(held[4:])
    await asyncio.gather(*wanting)
    assert order == [5, 1, 7]
    assert arena.leased == 0
    assert arena.statistics()["waits"] == 3


async def test_a_cancelled_waiter_leaves_the_way_free(arena: Arena) -> None:
    held = await arena.lease(6)
    first = asyncio.create_task(arena.lease(8))
    second = asyncio.create_task(arena.lease(2))
    await asyncio.sleep(0)
    first.cancel()
    assert len(await second) == 2
    with pytest.raises(asyncio.CancelledError):
        await first
    assert arena.leased == 8
    arena.release(held)


async def test_a_grant_that_crosses_a_cancellation_is_given_back(arena: Arena) -> None:
    held = await arena.lease(8)
    waiter = asyncio.create_task(arena.lease(4))
    await asyncio.sleep(0)
    arena.release(held)  # grants
    waiter.cancel()  # before the waiter ran
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert arena.leased == 0


async def test_close_wakes_the_waiters() -> None:
    arena = Arena(4096, 2)
    await arena.lease(2)
    waiter = asyncio.create_task(arena.lease(1))
    await asyncio.sleep(0)
    arena.close()
    arena.close()
    with pytest.raises(StoreClosedError):
        await waiter
    with pytest.raises(StoreClosedError):
        arena.lease_nowait(1)


def test_a_view_outlives_the_arena() -> None:
    arena = Arena(4096, 2)
    view = arena.view()
    view[:] = 3
    arena.close()
    assert (view == 3).all()


async def test_create_does_not_block_the_loop() -> None:
    """The guard of these tests sees to it; the arena is the same."""
    arena = await Arena.create(1 << 20, 4)
    assert arena.slots == 4
    arena.close()


def test_shared_memory_is_shared(tmp_path) -> None:
    fd = (
        os.memfd_create("arena") if hasattr(os, "memfd_create") else os.open(tmp_path / "arena", os.O_RDWR | os.O_CREAT)
    )
    try:
        os.ftruncate(fd, 8192)
        os.pwrite(fd, b"there before", 0)
        arena = Arena(4096, 2, fd=fd)
        assert bytes(arena.view()[0, :12]) == b"there before"
        arena.view()[1] = 9
        assert os.pread(fd, 1, 4096) == b"\x09"
        arena.close()
    finally:
        os.close(fd)


@pytest.mark.parametrize(("slot_bytes", "slots"), [(0, 1), (1, 0), (-1, 1)])
def test_bad_sizes(slot_bytes: int, slots: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Arena(slot_bytes, slots)


def test_statistics(arena: Arena) -> None:
    arena.release(arena.lease_nowait(5))
    arena.lease_nowait(2)
    statistics = arena.statistics()
    assert statistics["slots"] == 8
    assert statistics["leased"] == 2
    assert statistics["leased_max"] == 5
    assert statistics["page_mode"] in ("huge", "partly huge", "4k")


@given(st.integers(0, 2**32), st.lists(st.integers(0, 8), max_size=60))
def test_no_slot_is_ever_leased_twice(seed: int, wishes: list[int]) -> None:
    arena = Arena(4096, 8)
    generator = random.Random(seed)
    held: list[np.ndarray] = []
    for n in wishes:
        try:
            held.append(arena.lease_nowait(n))
        except WouldBlock:
            assert n > 8 - sum(map(len, held))
            arena.release(held.pop(generator.randrange(len(held))))
        taken = [slot for slots in held for slot in slots.tolist()]
        assert len(set(taken)) == len(taken) == arena.leased
    arena.close()
