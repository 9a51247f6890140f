"""A bounded map from block ids to numbers."""

from __future__ import annotations

from typing import Final, final

import numpy as np

from .memory import Data, array_of

_ID_BYTES: Final = 16
CAPACITY_MAX: Final = 1 << 48


@final
class IdTable:
    """A bounded map from 16-byte ids to a non-zero uint64; forgets what was not used for longest when it is full."""

    def __init__(self, capacity: int) -> None:
        if not 0 < capacity <= CAPACITY_MAX:
            raise ValueError(f"capacity: {capacity}, must be 1 ... {CAPACITY_MAX}")
        self.capacity = int(capacity)
        self._values: dict[bytes, int] = {}

    def get(self, ids: Data, out: Data, /) -> int:
        """Set ``out[i]`` (uint64) to the value of ``ids[i]``, 0 if absent. Returns how many were found."""
        keys = _keys(ids)
        values = array_of(out, np.uint64, "out", writable=True)
        if len(values) != len(keys):
            raise ValueError(f"out: {len(values)} values, must be {len(keys)}")
        values[:] = [self._use(key) for key in keys]
        return int(np.count_nonzero(values))

    def _use(self, key: bytes) -> int:
        """Return the value of `key`, 0 if absent, and move it behind those that are forgotten sooner."""
        value = self._values.pop(key, 0)
        if value:
            self._values[key] = value
        return value

    def put(self, ids: Data, values: Data, /) -> None:
        """Set the value (uint64, not 0) of every id."""
        keys = _keys(ids)
        numbers = array_of(values, np.uint64, "values")
        if len(numbers) != len(keys):
            raise ValueError(f"values: {len(numbers)}, must be {len(keys)}")
        if not numbers.all():
            raise ValueError(f"values[{int(numbers.argmin())}]: 0 means absent and cannot be put")
        self._values.update(zip(keys, numbers.tolist(), strict=True))
        while len(self._values) > self.capacity:
            del self._values[next(iter(self._values))]

    def discard(self, ids: Data, /) -> int:
        """Forget ids; returns how many were known."""
        return sum(self._values.pop(key, 0) != 0 for key in _keys(ids))

    def prefix(self, ids: Data, /) -> int:
        """Length of the longest run ``ids[0..k)`` that is present."""
        keys = _keys(ids)
        return next((i for i, key in enumerate(keys) if key not in self._values), len(keys))

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()

    def __len__(self) -> int:
        return len(self._values)


def _keys(ids: Data) -> list[bytes]:
    octets = array_of(ids, np.uint8, "ids").tobytes()
    if len(octets) % _ID_BYTES:
        raise ValueError(f"ids: {len(octets)} bytes, must be a multiple of {_ID_BYTES}")
    return [octets[i : i + _ID_BYTES] for i in range(0, len(octets), _ID_BYTES)]
