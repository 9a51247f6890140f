"""Names of blocks, against the formula of docs/design/format.md in Python's own integers."""

from __future__ import annotations

import contextlib
import gc
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.native import block_paths, mix_ids

WORD = (1 << 64) - 1
LOW, HIGH = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F

lists_of_ids = st.lists(st.binary(min_size=16, max_size=16), max_size=20)


def mixed(block_id: bytes) -> int:
    low, high = int.from_bytes(block_id[:8], "little"), int.from_bytes(block_id[8:], "little")
    m = (low * LOW & WORD) ^ ((high + (low >> 32)) * HIGH & WORD)
    m ^= m >> 29
    m = m * LOW & WORD
    return m ^ m >> 32


@given(lists_of_ids)
def test_mix(ids: list[bytes]) -> None:
    out = np.zeros(len(ids), dtype=np.uint64)
    mix_ids(b"".join(ids), out)
    assert out.tolist() == [mixed(one) for one in ids]


@given(lists_of_ids)
def test_paths(ids: list[bytes]) -> None:
    out = np.full((len(ids), 36), 0xAA, dtype=np.uint8)
    block_paths(b"".join(ids), out)
    assert [row.tobytes() for row in out] == [b"%02x/%b\0" % (mixed(one) >> 56, one.hex().encode()) for one in ids]


def test_many_at_once() -> None:
    ids = np.random.default_rng(0).integers(0, 256, (5000, 16), dtype=np.uint8)
    out, single = np.empty((5000, 36), dtype=np.uint8), np.empty((1, 36), dtype=np.uint8)
    block_paths(ids, out)
    for i in range(0, 5000, 499):
        block_paths(ids[i : i + 1], single)
        assert (out[i] == single[0]).all()


@pytest.mark.parametrize("function", [mix_ids, block_paths])
@pytest.mark.parametrize("ids, room", [(15, 36), (16, 0), (16, 7), (16, 35), (32, 36), (0, 8)])
def test_lengths_that_do_not_fit(function: object, ids: int, room: int) -> None:
    with pytest.raises(ValueError, match="for each id"):
        function(bytes(ids), bytearray(room))  # type: ignore[operator]


@pytest.mark.parametrize("function", [mix_ids, block_paths])
def test_wrong_objects(function: object) -> None:
    with pytest.raises(TypeError):
        function(1, bytearray(8))  # type: ignore[operator]
    with pytest.raises((TypeError, BufferError)):
        function(b"", b"")  # type: ignore[operator]
    with pytest.raises(TypeError):
        function(b"")  # type: ignore[operator]


def test_buffers_are_released() -> None:
    ids, out = bytearray(16), bytearray(36)
    for room in (out, bytearray(1)):
        with contextlib.suppress(ValueError):
            block_paths(ids, room)
        room.append(0)  # BufferError while exported
    ids.append(0)
    gc.collect()
    assert sys.getrefcount(out) == 2
