"""The order in which blocks go."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.space.hotfile import pack_hotness, unpack_hotness
from ucm_async.space.hotness import EPOCH_S, HALF_LIFE_S, WEIGHT_LOAD, WEIGHT_LOOKUP, Hotness
from ucm_async.types import U8, Bools, block_ids


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def numbers_of(ids: U8) -> list[int]:
    """Ids of `some` back to what they were made from."""
    return [int.from_bytes(one.tobytes(), "little") for one in ids]


def some(*numbers: int) -> U8:
    return np.array([list(number.to_bytes(16, "little")) for number in numbers], dtype=np.uint8).reshape(-1, 16)


async def order(hotness: Hotness, count: int = 1 << 20) -> list[int]:
    return numbers_of(await hotness.coldest(count))


async def test_the_least_recent_goes_first() -> None:
    clock = Clock()
    hotness = Hotness(100, clock)
    for number in (3, 1, 2):
        clock.now += 1
        hotness.touch(some(number), WEIGHT_LOAD)
    assert await order(hotness) == [3, 1, 2]
    clock.now += 1
    hotness.touch(some(3), WEIGHT_LOAD)
    assert await order(hotness) == [1, 2, 3]
    hotness.forget(some(1, 7))
    assert await order(hotness) == [2, 3]
    assert len(hotness) == 2


async def test_accesses_in_one_batch(now: float = 1.7e9) -> None:
    """Every one counts; and of what was asked for together, the end of the prefix goes first."""
    hotness = Hotness(100, lambda: now)
    hotness.touch(some(1, 2, 3, 4, 2), WEIGHT_LOAD)
    assert await order(hotness) == [4, 3, 1, 2]
    hotness.touch(some(4, 4, 4), WEIGHT_LOAD)
    assert await order(hotness) == [3, 1, 2, 4]


async def test_often_and_long_ago_against_once_and_now() -> None:
    """Two accesses are worth one a half-life later; with weights accordingly."""
    clock = Clock()
    hotness = Hotness(100, clock)
    for _ in range(4):
        hotness.touch(some(1), WEIGHT_LOAD)
    clock.now += 1.9 * HALF_LIFE_S
    hotness.touch(some(2), WEIGHT_LOAD)
    assert await order(hotness) == [2, 1]
    clock.now += 0.2 * HALF_LIFE_S
    hotness.touch(some(3), WEIGHT_LOAD)
    assert await order(hotness) == [2, 1, 3]
    hotness.touch(some(4), WEIGHT_LOOKUP)
    assert (await order(hotness))[0] == 4


async def test_what_must_stay_is_passed_over_and_asked_for_again() -> None:
    clock = Clock()
    hotness = Hotness(20_000, clock)
    count = 20_000
    hotness.merge(some(*range(count)), np.arange(count, dtype=np.float64))
    kept: set[int] = set(range(0, count, 2))

    def keep(ids: U8) -> Bools:
        return np.array([one in kept for one in numbers_of(ids)])

    assert numbers_of(await hotness.coldest(5, keep)) == [1, 3, 5, 7, 9]
    kept = set(range(19_990))
    assert numbers_of(await hotness.coldest(5, keep)) == [19_990, 19_991, 19_992, 19_993, 19_994]
    kept = set(range(count))
    assert len(await hotness.coldest(5, keep)) == 0
    kept = set()
    assert len(await hotness.coldest(count)) == count


async def test_none_is_returned_twice_in_one_call() -> None:
    hotness = Hotness(10_000)
    hotness.touch(some(*range(6000)), WEIGHT_LOAD)
    assert len(await hotness.coldest(10)) == 10  # leaves a plan that is partly used
    found = await order(hotness)
    assert len(found) == len(set(found)) >= 5990


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.25, 1.0]), st.floats(0, 5000)), max_size=60))
def test_numbers_are_those_of_the_formula(accesses: list[tuple[int, float, float]]) -> None:
    hotness = Hotness(64)
    expected: dict[int, float] = {}
    for number, weight, at in accesses:
        hotness.touch(some(number), weight, EPOCH_S + at)
        expected[number] = expected.get(number, 0.0) + weight * 2 ** (at / HALF_LIFE_S)
    ids, numbers = hotness.snapshot()
    found = dict(zip(numbers_of(ids), (2**numbers).tolist(), strict=True))
    assert found == pytest.approx(expected)
    assert len(hotness) == len(expected)


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 40), max_size=20)), max_size=30))
def test_it_holds_what_was_touched_and_not_forgotten(steps: list[tuple[bool, list[int]]]) -> None:
    hotness = Hotness(1000)
    model: set[int] = set()
    for add, numbers in steps:
        if add:
            hotness.touch(some(*numbers), WEIGHT_LOAD)
            model |= set(numbers)
        else:
            hotness.forget(some(*numbers))
            model -= set(numbers)
        assert len(hotness) == len(model)
    assert set(numbers_of(hotness.snapshot()[0])) == model


async def test_it_is_bounded_and_forgets_cold_ones() -> None:
    clock = Clock()
    hotness = Hotness(1000, clock)
    for number in range(10):
        clock.now += HALF_LIFE_S
        hotness.touch(block_ids(range(number * 500, number * 500 + 500)), WEIGHT_LOAD)
        assert len(hotness) <= 1000
    hotness.touch(block_ids(range(10_000, 13_000)), WEIGHT_LOAD)  # more at once than there is room for
    assert 900 < len(hotness) <= 1000
    clock.now += 50 * HALF_LIFE_S
    hot = block_ids(range(50))
    hotness.touch(hot, WEIGHT_LOAD)
    clock.now += HALF_LIFE_S
    for number in range(20):
        clock.now += HALF_LIFE_S / 2
        hotness.touch(hot, WEIGHT_LOAD)
        hotness.touch(block_ids(range(20_000 + number * 100, 20_100 + number * 100)), WEIGHT_LOAD)
    known = {one.tobytes() for one in hotness.snapshot()[0]}
    assert all(one.tobytes() in known for one in hot)


async def test_it_grows_while_it_is_used() -> None:
    hotness = Hotness(300_000)
    assert hotness.room == 65_536
    ids = block_ids(range(20_000))
    for start in range(0, len(ids), 10_000):
        hotness.touch(ids[start : start + 10_000], WEIGHT_LOAD)
    growing = asyncio.ensure_future(hotness.grow(65_537))
    await asyncio.sleep(0)
    more = block_ids(range(100_000, 103_000))
    hotness.touch(more, WEIGHT_LOAD)
    hotness.forget(ids[:2000])
    hotness.forget(more[:1000])
    await growing
    assert hotness.room == 262_144
    left = np.concatenate((ids[2000:], more[1000:]))
    assert hotness.unknown(left).mean() < 0.001  # the table may lose an id
    assert hotness.unknown(np.concatenate((ids[:2000], more[:1000]))).mean() > 0.999
    assert abs(len(hotness) - len(left)) <= 3
    await hotness.grow(1 << 40)
    assert hotness.room == 300_000


async def test_what_the_table_forgets_is_collected_all_the_same() -> None:
    """A full table forgets ids; their blocks still have a number, are returned, and can be forgotten."""
    hotness = Hotness(4000)
    ids = block_ids(range(4000))
    hotness.touch(ids, WEIGHT_LOAD)
    assert hotness.unknown(ids).any()
    seen: set[bytes] = set()
    while len(some := await hotness.coldest(100)):
        hotness.forget(some)
        assert not seen & {one.tobytes() for one in some}
        seen |= {one.tobytes() for one in some}
    assert seen == {one.tobytes() for one in ids}
    assert len(hotness) == 0


def test_a_plan_beside_accesses_is_only_late() -> None:
    """Both read and write the numbers at a time; what changed is passed over."""
    hotness = Hotness(4096)
    hotness.touch(some(*range(4096)), WEIGHT_LOAD)
    slots, numbers = hotness._make_plan(1, np.zeros(0, dtype=np.int64))
    assert len(slots) == 4096
    assert (np.diff(numbers) >= 0).all()


def test_on_disk_and_back() -> None:
    ids, numbers = block_ids(range(7)), np.arange(7) + 0.5
    content = pack_hotness(ids, numbers)
    again, values = unpack_hotness(content)
    assert again.tolist() == ids.tolist()
    assert values.tolist() == numbers.tolist()
    assert len(unpack_hotness(pack_hotness(ids[:0], numbers[:0]))[0]) == 0


@given(st.data())
def test_damage_is_noticed(data: st.DataObject) -> None:
    content = bytearray(pack_hotness(block_ids(range(5)), np.arange(5.0)))
    at = data.draw(st.integers(0, len(content) - 1))
    cut = data.draw(st.booleans())
    if cut:
        del content[at:]
    elif 24 <= at < 28 or at >= 32 or at < 16:  # not the unit, nor what is reserved
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        return
    with pytest.raises(ValueError):
        unpack_hotness(bytes(content))
