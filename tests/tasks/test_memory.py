"""The caller's memory: what is taken, what is said about the rest, and that every export is given back."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.tasks import Memory, Regions, memory_of_addresses, memory_of_buffers

ROWS, ROW_BYTES, TENSORS = 3, 64, (32, 24, 8)


class Frozen(np.ndarray):  # type: ignore[type-arg]
    """An array that cannot be written."""

    def __array_finalize__(self, _: object) -> None:
        self.flags.writeable = False


def take(buffers: Any, *, rows: int = ROWS, writable: bool = True) -> Memory:
    return memory_of_buffers("dst", buffers, rows, ROW_BYTES, TENSORS, writable=writable)


def rows_of(size: int = ROW_BYTES, count: int = ROWS) -> list[bytearray]:
    return [bytearray(size) for _ in range(count)]


def pieces(*sizes: int, count: int = ROWS) -> list[list[bytearray]]:
    return [[bytearray(size) for size in sizes] for _ in range(count)]


def flatten(buffers: Any) -> list[bytearray]:
    """Return every bytearray in `buffers`, however deep."""
    if isinstance(buffers, bytearray):
        return [buffers]
    return [found for one in buffers for found in flatten(one)] if isinstance(buffers, (list, tuple)) else []


class TestBuffers:
    def test_addresses_of_rows(self) -> None:
        array = np.zeros((ROWS, ROW_BYTES), dtype=np.uint8)
        memory = take([array[2], array[0], array[1]])
        base = array.ctypes.data
        assert memory.addresses.tolist() == [[base + 2 * ROW_BYTES], [base], [base + ROW_BYTES]]
        assert memory.addresses.dtype == np.uint64
        assert memory.piece_sizes == (ROW_BYTES,)
        assert memory.row_bytes == ROW_BYTES
        assert (take(array).addresses == take(list(array)).addresses).all()
        memory.release()

    def test_addresses_of_pieces(self) -> None:
        array = np.zeros(ROWS * ROW_BYTES, dtype=np.uint8)
        cuts = np.cumsum(TENSORS * ROWS)[:-1]
        flat = np.split(array, cuts)
        memory = take([tuple(flat[3 * i : 3 * i + 3]) for i in range(ROWS)])
        assert memory.piece_sizes == TENSORS
        assert memory.addresses.ravel().tolist() == [array.ctypes.data + at for at in (0, *cuts.tolist())]
        memory.release()

    def test_exports_are_held_until_released(self) -> None:
        buffers = rows_of()
        memory = take(buffers)
        with pytest.raises(BufferError):
            buffers[0].append(0)
        memory.release()
        memory.release()
        buffers[0].append(0)

    @pytest.mark.parametrize(
        ("buffers", "error", "message"),
        [
            (None, TypeError, "dst: NoneType has no buffer protocol"),
            (7, TypeError, "dst: int has no buffer protocol"),
            ("text", TypeError, "dst: str has no buffer protocol"),
            ([*rows_of(count=2), None], TypeError, r"dst\[2\]: NoneType has no buffer protocol"),
            ([bytearray(64), "x" * 64, bytearray(64)], TypeError, r"dst\[1\]: str has no buffer protocol"),
            (rows_of(count=2), ValueError, "dst: 2 rows, must be 3, one for each id"),
            ([], ValueError, "dst: 0 rows, must be 3"),
            (rows_of(63), ValueError, r"dst\[0\]: 63 bytes, must be 64"),
            ([bytearray(64), bytearray(64), bytearray(65)], ValueError, r"dst\[2\]: 65 bytes, must be 64"),
            ([bytearray(64), b"\0" * 64, bytearray(64)], TypeError, r"dst\[1\]: bytes is read-only, must be writable"),
            (bytes(ROWS * ROW_BYTES), TypeError, "dst: bytes is read-only"),
            (bytearray(ROWS * ROW_BYTES - 1), ValueError, r"dst: 191 bytes, must be \(3, 64\) bytes = 192"),
            (bytearray(ROWS * ROW_BYTES + 1), ValueError, "dst: 193 bytes"),
            (np.zeros((ROWS, 65), np.uint8), ValueError, r"dst: shape \(3, 65\), 195 bytes, must be \(3, 64\)"),
            (np.zeros((ROWS, ROW_BYTES), np.int16), ValueError, r"dst: shape \(3, 64\), 384 bytes"),
            (np.zeros((2, ROW_BYTES), np.uint8), ValueError, r"dst: shape \(2, 64\), must have 3 rows of 64 bytes"),
            (np.zeros(ROWS * ROW_BYTES, np.uint8), ValueError, r"dst: shape \(192,\), must have 3 rows"),
            (np.zeros((), np.uint8), ValueError, r"dst: shape \(\), must have 3 rows"),
            (np.zeros((ROWS, 2 * ROW_BYTES), np.uint8)[:, ::2], ValueError, "dst: not C-contiguous"),
            (np.zeros((ROW_BYTES, ROWS), np.uint8).T, ValueError, "dst: not C-contiguous"),
            ([np.zeros(128, np.uint8)[::2], *rows_of(count=2)], ValueError, r"dst\[0\]: not C-contiguous"),
            (np.zeros((ROWS, ROW_BYTES), np.uint8).view(Frozen), TypeError, "dst: Frozen is read-only"),
            (pieces(32, 24), ValueError, r"dst\[0\]: buffers of \[32, 24\] bytes, must be \[32, 24, 8\]"),
            (pieces(32, 24, 8, 0), ValueError, r"dst\[0\]: buffers of \[32, 24, 8, 0\] bytes"),
            ([*pieces(32, 24, 8, count=2), [bytearray(64)]], ValueError, r"dst\[2\]: 1 buffers, must be a list of 3"),
            ([*pieces(32, 24, 8, count=2), bytearray(64)], ValueError, r"dst\[2\]: bytearray, must be a list of 3"),
            ([*pieces(32, 24, 8, count=2), [bytearray(n) for n in (24, 32, 8)]], ValueError, r"dst\[2\]: buffers of"),
            ([[], [], []], ValueError, r"dst\[0\]: 0 buffers, must be a list of 3"),
            ([*pieces(32, 24, 8, count=2), [bytearray(32), None, bytearray(8)]], TypeError, r"dst\[2\]\[1\]: NoneType"),
            ([bytearray(64), [bytearray(64)], bytearray(64)], TypeError, r"dst\[1\]: list has no buffer protocol"),
        ],
    )
    def test_wrong_buffers_are_named_and_given_back(self, buffers: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            take(buffers)
        for one in flatten(buffers):
            one.append(0)

    def test_the_source_of_a_dump_may_be_read_only(self) -> None:
        memory = take([bytes(ROW_BYTES)] * ROWS, writable=False)
        assert memory.addresses.shape == (ROWS, 1)
        memory.release()

    def test_a_released_view(self) -> None:
        view = memoryview(bytearray(ROW_BYTES))
        view.release()
        others = rows_of(count=2)
        with pytest.raises(ValueError, match=r"dst\[0\].*released"):
            take([view, *others])
        others[0].append(0)
        with pytest.raises(ValueError, match=r"dst.*released"):
            take(view, rows=1)

    def test_objects_are_no_bytes(self) -> None:
        """Their addresses must not be overwritten."""
        with pytest.raises(TypeError, match=r"dst: .*object"):
            take(np.zeros((ROWS, ROW_BYTES // 8), dtype=object))

    def test_one_row_needs_no_list(self) -> None:
        for buffer in (bytearray(ROW_BYTES), np.zeros(8, np.int64), np.zeros((1, 64), np.uint8), mmap.mmap(-1, 64)):
            memory = take(buffer, rows=1)
            assert memory.addresses.shape == (1, len(memory.piece_sizes)) and memory.row_bytes == ROW_BYTES
            memory.release()


class TestAddresses:
    def test_one_a_row_or_one_a_tensor(self) -> None:
        memory = memory_of_addresses("dst_addresses", [[4096], [8192]], 2, ROW_BYTES, TENSORS)
        assert memory.piece_sizes == (ROW_BYTES,)
        assert memory.addresses.dtype == np.uint64
        table = np.arange(1, 7).reshape(2, 3)
        assert memory_of_addresses("dst_addresses", table, 2, ROW_BYTES, TENSORS).piece_sizes == TENSORS
        blocks = np.arange(1, 13).reshape(2, 6)
        assert memory_of_addresses("dst_addresses", blocks, 2, 2 * ROW_BYTES, TENSORS).piece_sizes == TENSORS * 2

    @pytest.mark.parametrize(
        ("addresses", "error", "message"),
        [
            ([4096, 8192], ValueError, r"dst_addresses: shape \(2,\), must be \(2, 1\) or \(2, 3\)"),
            ([[4096, 8192]], ValueError, r"shape \(1, 2\), must be \(2, 1\) or \(2, 3\)"),
            ([[1, 2], [3, 4]], ValueError, r"shape \(2, 2\), must be \(2, 1\) or \(2, 3\)"),
            ([[4096], [0]], ValueError, "dst_addresses: holds an address that is not positive"),
            ([[4096], [-1]], ValueError, "dst_addresses: holds an address that is not positive"),
            ([[1.0], [2.0]], TypeError, "dst_addresses: dtype float64, must be uint64"),
            ([["a"], ["b"]], TypeError, "must be uint64"),
            (None, TypeError, "must be uint64"),
            ([[1], [2, 3]], (TypeError, ValueError), "dst_addresses: "),
        ],
    )
    def test_wrong_addresses(self, addresses: Any, error: Any, message: str) -> None:
        with pytest.raises(error, match=message):
            memory_of_addresses("dst_addresses", addresses, 2, ROW_BYTES, TENSORS)


class TestRegions:
    @given(
        st.lists(st.tuples(st.integers(1, 100), st.integers(0, 40)), max_size=6),
        st.lists(st.integers(1, 120), min_size=1, max_size=6),
        st.integers(1, 20),
    )
    def test_every_piece_must_lie_in_one_region(
        self, regions: list[tuple[int, int]], starts: list[int], size: int
    ) -> None:
        known = Regions()
        for start, length in regions:
            known.add(start, length)
        inside = all(any(a <= s and s + size <= a + n for a, n in regions) for s in starts)
        addresses = np.array(starts, dtype=np.uint64).reshape(-1, 1)
        assert known.cover(addresses, (size,)) == inside

    def test_a_region_can_be_registered_twice(self) -> None:
        known = Regions()
        first, second = known.add(4096, 100), known.add(4096, 100)
        known.remove(first)
        assert known.cover(np.array([[4096]], dtype=np.uint64), (100,))
        known.remove(second)
        assert len(known) == 0
        assert not known.cover(np.array([[4096]], dtype=np.uint64), (100,))
