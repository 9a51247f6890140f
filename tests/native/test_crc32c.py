"""Checksums: the vectors of RFC 3720, and a slow reference for everything else."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.engines.requests import FLAG_CHAIN, OP_CHECKSUM, OP_COPY, OP_MOVE

from .tools import address_of, join, native, noise, request, results


def bit_by_bit(data: bytes, value: int = 0) -> int:
    """CRC-32C straight from its definition."""
    value ^= 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_vectors_of_rfc_3720(data: bytes, expected: int) -> None:
    assert native.crc32c(data) == expected
    assert bit_by_bit(data) == expected


@given(st.binary(max_size=3000), st.integers(0, 2**32 - 1))
def test_equals_the_definition(data: bytes, start: int) -> None:
    assert native.crc32c(data, start) == bit_by_bit(data, start)


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 15))
def test_goes_on_from_any_place_and_alignment(length: int, cut: int, shift: int) -> None:
    data = noise(length + shift)[shift:]
    assert native.crc32c(data[cut:], native.crc32c(data[:cut])) == native.crc32c(data)


def test_blocks_and_what_is_left_of_them() -> None:
    """The lengths where the kernels change from lines to blocks to words to bytes."""
    data = noise(8 * 768).tobytes()
    for length in [*range(760, 800), *range(1020, 1100, 3), 1535, 1536, 1537, 2303, 2304, 2311, 2312, 8 * 768]:
        assert native.crc32c(data[:length]) == bit_by_bit(data[:length]), length


@given(st.sampled_from([OP_COPY, OP_MOVE]), st.integers(0, 140_000), st.integers(0, 31), st.integers(0, 31))
def test_copy_copies_every_byte_and_no_other(opcode: int, length: int, source_shift: int, target_shift: int) -> None:
    source = noise(length + 64)
    target = np.full(length + 128, 0xEE, np.uint8)
    one = request(
        opcode, offset=address_of(source) + source_shift, address=address_of(target) + target_shift, length=length
    )
    native.execute(one)
    wanted = source[source_shift : source_shift + length]
    assert results(one) == [native.crc32c(wanted) if opcode == OP_COPY else 0]
    assert np.array_equal(target[target_shift : target_shift + length], wanted)
    assert (target[:target_shift] == 0xEE).all()
    assert (target[target_shift + length :] == 0xEE).all()


@given(st.lists(st.integers(0, 90_000), min_size=1, max_size=5), st.booleans())
def test_a_chain_is_the_checksum_of_all(lengths: list[int], copying: bool) -> None:
    data = noise(sum(lengths))
    target = np.zeros_like(data)
    chain, at = [], 0
    for i, length in enumerate(lengths):
        flag = FLAG_CHAIN if i else 0
        if copying:
            fields = {"offset": address_of(data) + at, "address": address_of(target) + at}
        else:
            fields = {"address": address_of(data) + at}
        chain.append(request((OP_COPY if copying else OP_CHECKSUM) | flag, length=length, **fields))
        at += length
    requests = join(*chain)
    native.execute(requests)
    assert results(requests)[-1] == native.crc32c(data)
    assert not copying or np.array_equal(data, target)


@pytest.mark.parametrize("wrong", [-1, 2**32, 2**70])
def test_a_start_must_fit_in_32_bits(wrong: int) -> None:
    with pytest.raises(OverflowError):
        native.crc32c(b"x", wrong)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError):
        native.crc32c()
    with pytest.raises(TypeError):
        native.crc32c("text")
    with pytest.raises((BufferError, ValueError)):
        native.crc32c(np.zeros((4, 4), np.uint8)[:, ::2])


@pytest.fixture(scope="module", params=["UCM_PORTABLE_CRC32C", "UCM_NARROW_CRC32C"])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels as they are on a processor without the crc32 instruction, and without wide multiplication."""
    sources = [Path(__file__).parents[2] / "ext" / name for name in ("crc32c.c", "crc32c_fold.c")]
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sources[0].exists() or not compiler:
        pytest.skip("needs the C sources and a compiler")
    library = tmp_path_factory.mktemp("kernels") / "crc32c.so"
    flags = ["-std=c11", "-O2", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror", f"-D{request.param}"]
    # The preloaded sanitizer, if there is one, is for the extension and not for the compiler.
    command = [compiler, *flags, *sources, "-o", library]
    subprocess.run(command, check=True, env={"PATH": "/usr/local/bin:/usr/bin:/bin"})
    made = ctypes.CDLL(str(library))
    made.crc32c_setup()
    made.crc32c_in_hardware.restype = ctypes.c_bool
    made.crc32c_update.restype = made.crc32c_copy.restype = ctypes.c_uint32
    assert made.crc32c_in_hardware() <= (request.param == "UCM_NARROW_CRC32C")
    return made


def test_all_kernels_say_the_same(kernels: ctypes.CDLL) -> None:
    data = noise(5000)
    for length in [*range(40), 767, 768, 769, 1023, 1024, 1025, 1536, 4999]:
        piece = data[1 : 1 + length]
        where, size = ctypes.c_void_p(address_of(piece)), ctypes.c_size_t(length)
        wanted = native.crc32c(piece, 77)
        assert kernels.crc32c_update(77, where, size) == wanted
        target = np.full(length + 2, 0xEE, np.uint8)
        copied = kernels.crc32c_copy(77, ctypes.c_void_p(address_of(target) + 1), where, size, ctypes.c_bool(True))
        assert copied == wanted
        assert np.array_equal(target[1:-1], piece) and target[0] == target[-1] == 0xEE
