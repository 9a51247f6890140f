"""The gate between copying threads and a caller's memory."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Final, final

_STEP: Final = 64


@final
class Gate:
    """Lets copies touch a caller's memory while it is open. Thread-safe.

    ``address`` is not a real address here but a number that finds the gate again.
    """

    _addresses: ClassVar[itertools.count[int]] = itertools.count(_STEP, _STEP)
    _gates: ClassVar[weakref.WeakValueDictionary[int, Gate]] = weakref.WeakValueDictionary()

    def __init__(self) -> None:
        self.address = next(self._addresses)
        self.closed = False
        self._inside = 0
        self._changed = threading.Condition()
        self._gates[self.address] = self

    def close(self) -> None:
        """Refuse further entries and return when nobody is inside. Idempotent."""
        with self._changed:
            self.closed = True
            self._changed.wait_for(lambda: self._inside == 0)

    @contextmanager
    def entered(self) -> Iterator[bool]:
        """Be inside for the length of a ``with`` block; gives False if the gate is closed."""
        with self._changed:
            admitted = not self.closed
            self._inside += admitted
        try:
            yield admitted
        finally:
            if admitted:
                with self._changed:
                    self._inside -= 1
                    self._changed.notify_all()

    @classmethod
    def at(cls, address: int) -> Gate:
        """Return the gate with that address; one that is gone counts as closed."""
        gate = cls._gates.get(address)
        if gate is None:
            gate = cls()
            gate.close()
        return gate


def through(gate: int, piece: Callable[[], object]) -> bool:
    """Run `piece` inside the gate with address `gate` (0: no gate); False if it is closed."""
    if not gate:
        piece()
        return True
    with Gate.at(gate).entered() as admitted:
        if admitted:
            piece()
        return admitted
