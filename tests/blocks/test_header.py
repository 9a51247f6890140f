"""The header of a block file: everything that is wrong in it is found, and named."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.blocks.header import (
    CHECKSUM_FROM,
    ENTRY,
    HEADER,
    HeaderCheck,
    check_headers,
    header_bytes,
    header_template,
    pack_headers,
    seal_headers,
    used_bytes,
)
from ucm_async.native import crc32c
from ucm_async.types import U8, block_ids

NAMESPACE = bytes(range(100, 116))
SHARD_SIZE = 4096


def own_checksums(headers: U8) -> npt.NDArray[np.uint32]:
    return np.array([crc32c(row[CHECKSUM_FROM:].tobytes()) for row in headers], dtype=np.uint32)


def make(count: int = 1, shards: int = 3) -> tuple[U8, U8]:
    """Return ids and sealed headers of them."""
    ids = block_ids(range(count))
    checksums = np.random.default_rng(count).integers(0, 1 << 32, (count, shards), dtype=np.uint32)
    headers = pack_headers(ids, NAMESPACE, SHARD_SIZE, checksums)
    seal_headers(headers, own_checksums(headers))
    return ids, headers


def check(headers: U8, ids: U8, *, namespace: bytes = NAMESPACE, shard_size: int = SHARD_SIZE) -> HeaderCheck:
    headers = np.ascontiguousarray(headers)
    return check_headers(headers, ids, namespace, shard_size, own_checksums(headers))


@given(
    st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3), min_size=1, max_size=5),
    st.binary(min_size=16, max_size=16),
    st.integers(1, 2**31),
)
def test_what_was_packed_is_good(checksums: list[list[int]], namespace: bytes, shard_size: int) -> None:
    ids = block_ids(range(len(checksums)))
    headers = pack_headers(ids, namespace, shard_size, np.array(checksums, dtype=np.uint32))
    seal_headers(headers, own_checksums(headers))
    found = check(headers, ids, namespace=namespace, shard_size=shard_size)
    assert found.good.all()
    assert found.why == {}
    assert found.checksums.tolist() == checksums


@given(st.integers(1, 5000))
def test_sizes(shards: int) -> None:
    assert used_bytes(shards) == HEADER.itemsize + shards * ENTRY.itemsize
    assert header_bytes(shards) % 4096 == 0
    assert 0 <= header_bytes(shards) - used_bytes(shards) < 4096


def test_every_flipped_bit_is_found() -> None:
    ids, headers = make()
    size = headers.shape[1]
    flipped = np.repeat(headers, size * 8, axis=0)
    bits = np.arange(size * 8)
    flipped[bits, bits // 8] ^= (1 << (bits % 8)).astype(np.uint8)
    found = check(flipped, np.repeat(ids, size * 8, axis=0))
    assert not found.good.any()
    assert set(found.why) == set(bits.tolist())
    assert {found.why[bit] for bit in range(8 * 8)} == {"no block header"}
    assert {found.why[bit] for bit in range(8 * 8, size * 8)} == {"the header's checksum is wrong"}


def forged(field: str, value: object) -> tuple[U8, U8]:
    """Return a header with another value in a field, and the right checksum for it."""
    ids, headers = make()
    headers[:, : HEADER.itemsize].view(HEADER)[:, 0][field] = value
    seal_headers(headers, own_checksums(headers))
    return ids, headers


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("magic", b"PNG", "no block header"),
        ("version", 2, "an unknown format version"),
        ("checksum_algorithm", 9, "an unknown checksum algorithm"),
        ("block_id", 7, "the header names another block"),
        ("namespace", 7, "the header names another namespace"),
        ("codec", 3, "an unknown codec"),
        ("shard_count", 4, "another number or size of shards"),
        ("header_bytes", 8192, "another number or size of shards"),
        ("flags", 1, "flags that are not known"),
        ("codec_parameters", 1, "not known"),
    ],
)
def test_a_header_that_says_something_else(field: str, value: object, why: str) -> None:
    ids, headers = forged(field, value)
    found = check(headers, ids)
    assert not found.good[0]
    assert why in found.why[0]


@pytest.mark.parametrize("field", ["offset", "raw_length", "stored_length", "codec"])
def test_an_entry_that_says_something_else(field: str) -> None:
    ids, headers = make()
    headers[:, HEADER.itemsize :].view(ENTRY)[field][0, 1] += 1
    seal_headers(headers, own_checksums(headers))
    assert "another number or size of shards" in check(headers, ids).why[0]


def test_the_caller_expects_something_else() -> None:
    ids, headers = make()
    assert check(headers, block_ids([9])).why == {0: "the header names another block"}
    assert check(headers, ids, namespace=b"x" * 16).why == {0: "the header names another namespace"}
    assert "another number or size" in check(headers, ids, shard_size=8192).why[0]


@pytest.mark.parametrize("fill", [0, 0xFF])
def test_nothing_was_ever_written_there(fill: int) -> None:
    ids, headers = make()
    headers[:] = fill
    assert check(headers, ids).why == {0: "no block header"}


@pytest.mark.parametrize("kept", [1, 8, 12, 40, 100])
def test_cut_short(kept: int) -> None:
    """The rest of the page is zeros then."""
    ids, headers = make()
    headers[:, kept:] = 0
    assert not check(headers, ids).good[0]


def test_bad_ones_among_good_ones() -> None:
    ids, headers = make(5)
    headers[3, 60] ^= 1
    headers[1] = headers[2]
    found = check(headers, ids)
    assert found.good.tolist() == [True, False, True, False, True]
    assert found.why == {1: "the header names another block", 3: "the header's checksum is wrong"}


def test_a_template_is_a_header_of_nobody() -> None:
    template = np.frombuffer(header_template(NAMESPACE, SHARD_SIZE, 3), dtype=np.uint8)
    _, headers = make()
    different = np.flatnonzero(template != headers[0])
    known = np.zeros(used_bytes(3), dtype=np.bool_)
    known[8:12] = known[16:32] = True  # header_checksum, block_id
    known[HEADER.itemsize :].reshape(3, ENTRY.itemsize)[:, 16:20] = True  # checksum
    assert known[different].all()
