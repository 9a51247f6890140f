"""What a Cache asks of the kernel, on the simulated machine: memory by name with its locks, and word of changes in it.

As with all memory that processes share (see `sharedmemory`), a process has a mapping of its own, and when it dies that
becomes a private copy: its Python objects go on, and nobody sees what they store.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from ...engines.namedmemory import NamedMemory
from ...engines.watching import TableWatcher
from ...native import BlockTable, Mapping
from .clock import SimulatedLoop, SimulationError
from .memory import LazyMapping
from .sharedmemory import make_private

if TYPE_CHECKING:
    from .process import SimulatedProcess

__all__ = ["NamedObject", "SimulatedNamedMemory", "SimulatedTableWatcher"]

WAKE_S: Final = 30e-6
"""What it takes until a thread that sleeps is awake, on average."""


class NamedObject:
    """One piece of memory that has a name, or had one.

    Attributes
    ----------
    fd
        Of the memory.
    writers, readers
        Who has locked each byte alone, and who with others.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("simulated")
        self.writers: dict[int, SimulatedNamedMemory] = {}
        self.readers: dict[int, set[SimulatedNamedMemory]] = {}
        weakref.finalize(self, os.close, self.fd)


class SimulatedNamedMemory(NamedMemory):
    """See `ucm_async.engines.namedmemory.NamedMemory`; a process of the simulated machine has it open.

    What needs the kernel counts as an operation, before which the process may die.
    """

    def __init__(self, name: str, process: SimulatedProcess) -> None:
        objects = process.disk.named
        if name not in objects:
            objects[name] = NamedObject()
        super().__init__(name, objects[name].fd)
        self._object = objects[name]
        self._process = process
        self._mappings: list[LazyMapping] = []

    @property
    def owner(self) -> int:
        """See `NamedMemory.owner`: everybody on this machine is one user."""
        return os.geteuid()

    def truncate(self, nbytes: int) -> None:
        """See `NamedMemory.truncate`."""
        self._process.must_live()
        super().truncate(nbytes)

    def map(self, nbytes: int) -> Mapping:
        """See `NamedMemory.map`."""
        self._process.must_live()
        made = LazyMapping(self._fd, nbytes)
        self._mappings.append(made)
        return cast(Mapping, made)

    def lock(self, byte: int, *, shared: bool = False, patience_s: float = 0.0) -> bool:
        """See `NamedMemory.lock`. Nobody waits: who takes a lock to others' cost gives it back before they run."""
        if not self._process.lives_on():
            return True
        if self.locked(byte) and not (shared and byte not in self._object.writers):
            raise SimulationError(f"{self.name}: the lock {byte} is held, and nobody would give it back")
        if shared:
            self._object.readers.setdefault(byte, set()).add(self)
        else:
            self._object.writers[byte] = self
        return True

    def unlock(self, byte: int) -> None:
        """See `NamedMemory.unlock`."""
        if self._object.writers.get(byte) is self:
            del self._object.writers[byte]
        self._object.readers.get(byte, set()).discard(self)

    def locked(self, byte: int) -> bool:
        """See `NamedMemory.locked`; to the dead everybody lives, so that they remove nothing."""
        alone = self._object.writers.get(byte, self) is self
        return self._process.dead or not alone or bool(self._object.readers.get(byte, set()) - {self})

    def is_named(self) -> bool:
        """See `NamedMemory.is_named`."""
        return not self._process.dead and self._process.disk.named.get(self.name) is self._object

    def unlink(self) -> None:
        """See `NamedMemory.unlink`."""
        if self._process.lives_on():
            self._process.disk.named.pop(self.name, None)

    def close(self) -> None:
        """See `NamedMemory.close`; the object's own descriptor goes with the object."""
        self._mappings.clear()  # each goes with the last who looks at it, not with the process

    def die(self) -> None:
        """Give all locks back, as the kernel does; what is stored from now on goes to a copy."""
        for byte in (*self._object.writers, *self._object.readers):
            self.unlock(byte)
        for mapping in self._mappings:
            make_private(mapping, self._fd)
            for page in range(0, len(mapping), mmap.PAGESIZE):  # all of it now: what others store must not show there
                mapping[page] = mapping[page]
        self._mappings.clear()


class SimulatedTableWatcher(TableWatcher):
    """See `ucm_async.engines.watching.TableWatcher`: looks whenever time is about to pass, and tells a moment later."""

    def __init__(self, process: SimulatedProcess, table: BlockTable, on_change: Callable[[], None]) -> None:
        loop: Any = asyncio.get_running_loop()
        if not isinstance(loop, SimulatedLoop):
            raise SimulationError("a simulated table is watched on a simulated loop")
        self._simulated = loop
        self._on_change = on_change
        self._process = process
        self._table = table
        self._seen: int | None = None
        self._closed = False

    def arm(self) -> None:
        """See `TableWatcher.arm`."""
        if self._seen is None and not self._process.dead:
            self._seen = self._table.published
            self._simulated.before_time_passes.append(self._look)

    def disarm(self) -> None:
        """See `TableWatcher.disarm`."""
        if self._seen is not None:
            self._seen = None
            self._simulated.before_time_passes.remove(self._look)

    def _look(self) -> bool:
        if self._process.dead or self._table.published == self._seen:
            return False
        self.disarm()
        self._simulated.call_later(self._process.faults.duration_s(WAKE_S), self._tell)
        return True

    def _tell(self) -> None:
        if not self._closed and not self._process.dead:
            self._on_change()

    async def aclose(self) -> None:
        """See `TableWatcher.aclose`."""
        self.disarm()
        self._closed = True
