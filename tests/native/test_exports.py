"""Buffer exports of a caller's rows."""

from __future__ import annotations

import array
import gc
import mmap
import sys
import weakref
from typing import Any

import numpy as np
import pytest

from .tools import address_of, native


def export(rows: Any, writable: bool = False) -> tuple[Any, Any, Any]:
    addresses, sizes = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint64)
    return native.export_buffers(rows, writable, addresses, sizes), addresses.tolist(), sizes.tolist()


def test_addresses_and_sizes() -> None:
    rows: list[Any] = [
        np.arange(10, dtype=np.float32),
        bytearray(b"abc"),
        memoryview(bytearray(9))[2:5],
        array.array("d", [1, 2]),
        np.zeros((0, 4)),
        np.ones((3, 5), np.int16),
    ]
    held, addresses, sizes = export(rows, writable=True)
    assert sizes == [40, 3, 3, 16, 0, 30]
    assert addresses[0] == address_of(rows[0]) and addresses[5] == address_of(rows[5])
    assert not held.released
    held.release()
    held.release()
    assert held.released


def test_read_only_rows_are_fine_for_reading() -> None:
    fixed = np.arange(4)
    fixed.flags.writeable = False
    _, _, sizes = export([b"abc", fixed])
    assert sizes == [3, 32]


def test_no_rows() -> None:
    held, _, _ = export([])
    assert not held.released


def test_a_tuple_and_any_other_sequence() -> None:
    rows = [bytearray(3), bytearray(4)]
    assert export(tuple(rows))[2] == [3, 4]
    matrix = np.zeros((3, 8), np.uint8)
    _, addresses, sizes = export(matrix)
    assert sizes == [8, 8, 8]
    assert addresses == [address_of(matrix) + 8 * i for i in range(3)]


def read_only() -> Any:
    made = np.zeros(4)
    made.flags.writeable = False
    return made


@pytest.mark.parametrize(
    ("row", "writable", "error"),
    [
        (7, False, TypeError),
        ("text", False, TypeError),
        (None, True, TypeError),
        (b"abc", True, BufferError),
        (read_only(), True, BufferError),
        (np.zeros((4, 4))[:, ::2], False, BufferError),
        (np.zeros((4, 4)).T, False, BufferError),
        (np.zeros(8)[::-1], False, BufferError),
        (memoryview(bytearray(8))[::2], False, BufferError),
    ],
)
def test_a_bad_row_is_named_and_nothing_stays_exported(row: Any, writable: bool, error: type[Exception]) -> None:
    first = bytearray(10)
    with pytest.raises(error) as info:
        export([first, row, bytearray(3)], writable)
    index, why = info.value.args
    assert index == 1
    assert isinstance(why, str) and why
    first.append(1)  # BufferError if it were still exported


def test_other_exceptions_pass() -> None:
    class Row:
        def __buffer__(self, flags: int) -> memoryview:
            raise KeyboardInterrupt

    wanted = KeyboardInterrupt if sys.version_info >= (3, 12) else TypeError
    with pytest.raises(wanted):
        export([Row()])


def test_exported_rows_are_held_and_released() -> None:
    row = bytearray(10)
    held, _, _ = export([row])
    with pytest.raises(BufferError):
        row.append(1)
    held.release()
    row.append(1)
    held, _, _ = export([row])
    del held
    row.append(1)


def test_the_row_lives_as_long_as_its_export() -> None:
    row = np.zeros(10)
    gone = weakref.ref(row)
    held, _, _ = export([row])
    del row
    assert gone() is not None
    held.release()
    assert gone() is None


def test_a_cycle_through_an_export_is_collected() -> None:
    class Row(np.ndarray):
        held: Any = None

    row = np.zeros(10).view(Row)
    gone = weakref.ref(row)
    row.held, _, _ = export([row])
    del row
    gc.collect()
    assert gone() is None


def test_wrong_tables() -> None:
    rows = [bytearray(3)]
    good = np.zeros(1, np.uint64)
    with pytest.raises(ValueError, match="addresses"):
        native.export_buffers(rows, False, np.zeros(2, np.uint64), good)
    with pytest.raises(ValueError, match="sizes"):
        native.export_buffers(rows, False, good, np.zeros(0, np.uint64))
    with pytest.raises((BufferError, ValueError)):
        native.export_buffers(rows, False, bytes(8), good)
    with pytest.raises(TypeError):
        native.export_buffers(rows, False, good)
    with pytest.raises(TypeError):
        native.export_buffers(5, False, good, good)
    rows[0].append(1)


def test_a_mapping_can_be_a_row() -> None:
    with mmap.mmap(-1, 8192) as area:
        held, _, sizes = export([area], writable=True)
        assert sizes == [8192]
        held.release()
