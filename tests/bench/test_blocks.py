from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.bench.blocks import BLOCK_BYTES_MULTIPLE, PAGE_BYTES, SAMPLE_BLOCK_BYTES, BlockMaker, make_blocks, verify
from ucm_async.types import block_ids

SIZES = st.integers(1, 600).map(lambda k: k * BLOCK_BYTES_MULTIPLE)


def pages_of(blocks: np.ndarray) -> list[bytes]:
    return [row[at : at + PAGE_BYTES].tobytes() for row in blocks for at in range(0, blocks.shape[1], PAGE_BYTES)]


@given(SIZES, st.sets(st.integers(0, 10**9), min_size=1, max_size=6))
def test_no_two_pages_of_any_blocks_are_equal(block_bytes: int, hashes: set[int]) -> None:
    blocks = make_blocks(block_ids(hashes), block_bytes)
    assert blocks.shape == (len(hashes), block_bytes)
    pages = pages_of(blocks)
    assert len(set(pages)) == len(pages)


def test_pages_differ_by_more_than_the_stamp_in_order() -> None:
    one, two = make_blocks(block_ids([1, 2]), SAMPLE_BLOCK_BYTES)
    assert (one != two).mean() > 0.5, "two blocks should hold different KV, not the same KV stamped twice"


@given(SIZES, st.integers(0, 2**40), st.data())
def test_any_flipped_bit_is_found_and_counted(block_bytes: int, block_hash: int, data: st.DataObject) -> None:
    ids = block_ids([block_hash, block_hash + 1])
    blocks = make_blocks(ids, block_bytes)
    assert verify(blocks, ids).all()
    at, bit = data.draw(st.integers(0, block_bytes - 1)), data.draw(st.integers(0, 7))
    blocks[1, at] ^= 1 << bit
    assert verify(blocks, ids).tolist() == [True, False]
    assert BlockMaker(block_bytes).wrong_bytes(blocks, ids).tolist() == [0, 1]


def test_swapped_pages_shifted_bytes_and_foreign_blocks_are_found() -> None:
    ids = block_ids(range(4))
    right = make_blocks(ids, 65536)
    swapped = right.copy()
    swapped[0, :PAGE_BYTES] = right[0, PAGE_BYTES : 2 * PAGE_BYTES]
    swapped[0, PAGE_BYTES : 2 * PAGE_BYTES] = right[0, :PAGE_BYTES]
    swapped[1] = np.roll(right[1], 1)
    swapped[2] = right[3]
    assert verify(swapped, ids).tolist() == [False, False, False, True]


def test_memory_is_reused_and_its_old_content_does_not_matter() -> None:
    maker, ids = BlockMaker(8192), block_ids([7, 8])
    memory = np.full((2, 8192), 0xA5, np.uint8)
    assert maker.make(ids, memory) is memory
    assert np.array_equal(memory, make_blocks(ids, 8192))


def test_bytes_are_real_kv() -> None:
    # The high byte of a bf16 holds sign and exponent: in real KV few values are common, far from 8 bits of entropy.
    high = make_blocks(block_ids([5]), SAMPLE_BLOCK_BYTES)[0, 1::2]
    share = np.bincount(high, minlength=256) / len(high)
    entropy = -sum(p * np.log2(p) for p in share if p)
    assert 2.0 < entropy < 5.0


@pytest.mark.parametrize("block_bytes", [0, -32, 33, 4095])
def test_sizes_without_room_for_a_stamp_are_refused(block_bytes: int) -> None:
    with pytest.raises(ValueError, match="block_bytes"):
        BlockMaker(block_bytes)


def test_memory_of_the_wrong_shape_is_refused() -> None:
    maker, ids = BlockMaker(64), block_ids([1, 2])
    with pytest.raises(ValueError, match=r"out: .*must be uint8 of shape"):
        maker.make(ids, np.empty((3, 64), np.uint8))
    with pytest.raises(ValueError, match=r"blocks: .*not C-contiguous"):
        maker.wrong_bytes(np.empty((2, 128), np.uint8)[:, :64], ids)
