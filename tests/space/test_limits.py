"""How much is too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async import ConfigError, StoreConfig
from ucm_async.space.limits import GIB, SpaceLimits

LIMITS = SpaceLimits(capacity=1000, quota=400)
BYTES = st.integers(0, 2000)


def test_from_a_configuration() -> None:
    config = StoreConfig(
        block_size=4096,
        posix_capacity_gb=0.5,
        namespace_quota_gb=0.25,
        space_watermark_gb=2,
        space_high=0.8,
        space_low=0.7,
    )
    assert SpaceLimits.of(config) == SpaceLimits(GIB // 2, GIB // 4, 2 * GIB, 0.8, 0.7)
    assert not SpaceLimits.of(StoreConfig(block_size=4096)).bounded
    with pytest.raises(ConfigError, match=r"space_low: 0\.9, must be at most space_high \(0\.8\)"):
        StoreConfig(block_size=4096, space_high=0.8)


def test_over() -> None:
    assert LIMITS.over(1000, 400) == 0
    assert LIMITS.over(1001, 0) == 1
    assert LIMITS.over(900, 410) == 10
    assert SpaceLimits().over(1 << 50, 1 << 50) < 0
    assert SpaceLimits(quota=5).over(1 << 50, 6) == 1


def test_excess_begins_at_the_high_mark_and_ends_at_the_low_one() -> None:
    assert LIMITS.excess(950, 0) == 0
    assert LIMITS.excess(951, 0) == 51
    assert LIMITS.excess(950, 0, collecting=True) == 50
    assert LIMITS.excess(900, 0, collecting=True) == 0
    assert LIMITS.excess(500, 390) == 30
    assert LIMITS.excess(920, 0, waiting=8) == 20
    assert LIMITS.excess(880, 0, waiting=200) == 80
    assert LIMITS.excess(900, 300, waiting=401) == 0  # it never fits the quota: nothing goes for it
    assert LIMITS.with_marks(1.0, 1.0).excess(1000, 400) == 0
    assert SpaceLimits().excess(1 << 50, 1 << 50, waiting=1 << 20) == 0


def test_the_watermark() -> None:
    limits = SpaceLimits(watermark=1600)
    assert limits.below_mark(1600) == 0
    assert limits.below_mark(1599) == 101
    assert limits.below_mark(1600, collecting=True) == 100
    assert limits.below_mark(1700, collecting=True) == 0
    assert limits.below_mark(1605, waiting=10) == 95
    assert limits.below_mark(1700, waiting=150) == 50
    assert SpaceLimits().below_mark(-5, waiting=10) == 0


@given(charged=BYTES, here=BYTES, waiting=st.integers(0, 100))
def test_without_the_excess_there_is_room(charged: int, here: int, waiting: int) -> None:
    """What must go is enough for who waits, and after it nothing must."""
    here = min(here, charged)
    excess = LIMITS.excess(charged, here, waiting=waiting)
    if waiting and excess <= here:
        assert LIMITS.over(charged - excess + waiting, here - excess + waiting) <= 0
    assert LIMITS.excess(charged - excess, max(0, here - excess)) == 0
