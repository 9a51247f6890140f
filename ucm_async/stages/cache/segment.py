"""A segment of shared memory and its life: made by the first process, joined by others, removed by the last one.

The kernel keeps the segment of processes that crashed, so whoever opens one may find anything: nothing yet, a whole
one with good blocks, half of one, one of another version, or somebody else's. Two locks in the segment's own
memory tell these apart, which end with their holder, however it ends (`ucm_async.engines.namedmemory`):

- byte 0 is locked while the segment is made, entered or left: what is half-made and unlocked was given up;
- byte 1 is locked, shared, by everybody who lives in it, whatever their version: without such a lock it may be
  replaced.

The name may be removed while somebody waits for a lock. So who has the lock looks whether the name still means that
segment.

Everything here blocks, and belongs into a thread.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ...engines.namedmemory import NamedMemory
from ...engines.sharedmemory import MEMORY_DIRECTORY
from ...engines.system import current_system
from ...errors import ConfigError
from ...native import PROCESSES_MAX, TABLE_USER_BYTES, TABLE_USER_OFFSET, TABLE_VERSION, BlockTable, Mapping

__all__ = [
    "DIRECTORY",
    "HEADER_BYTES",
    "PREFIX",
    "Geometry",
    "Progress",
    "Segment",
    "header_of",
    "make_private",
    "open_segment",
    "reap_dead",
    "remove_segment",
    "segment_name",
    "somebody_lives",
]

DIRECTORY: Final = str(MEMORY_DIRECTORY)

PREFIX: Final = "ucm-async."
ARENA_ALIGN: Final = 2 << 20
PREFAULT_STEP_BYTES: Final = 256 << 20
OPEN_PATIENCE_S: Final = 120.0
"""How long another process may take to make the segment: a hundred gigabytes are faulted in within half a minute."""

CLOSE_PATIENCE_S: Final = 5.0
"""How long a store that is closed waits for who enters or leaves; then it does not look whether it is the last."""

REMOVE_PATIENCE_S: Final = 1.0

_log = logging.getLogger("ucm_async.cache")

_ENTERING, _LIVING = 0, 1
_USER: Final = struct.Struct("<16sQQQQ")  # fingerprint, block_size, slot_bytes, arena_offset, PID namespace
assert _USER.size <= TABLE_USER_BYTES
HEADER_BYTES: Final = 4096

Progress = Callable[[int, int], None]
"""Called with bytes that are faulted in, and bytes in all."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What processes that share a segment must agree on.

    Attributes
    ----------
    slots, slot_bytes
        The arena: one block a slot.
    block_size
        Of the store.
    policy
        Whom to evict.
    fingerprint
        16 bytes; see `StoreConfig.namespace_fingerprint`.
    """

    slots: int
    slot_bytes: int
    block_size: int
    policy: str
    fingerprint: bytes

    @property
    def arena_offset(self) -> int:
        """Where the slots begin."""
        return -(-BlockTable.bytes_needed(self.slots) // ARENA_ALIGN) * ARENA_ALIGN

    @property
    def total_bytes(self) -> int:
        """Length of the segment."""
        return self.arena_offset + self.slots * self.slot_bytes


class Segment:
    """Mapped memory with a table that this process has joined.

    Attributes
    ----------
    table
        The part before the arena.
    arena
        The slots; a read-only view of the memory that goes with its last view.
    base
        Address of the first slot.
    page_mode
        See `ucm_async.native.Mapping`.
    """

    def __init__(
        self, geometry: Geometry, mapping: Mapping, table: BlockTable, memory: NamedMemory | None = None
    ) -> None:
        self.geometry = geometry
        self.name = memory.name if memory else ""
        self.table = table
        view = memoryview(mapping)
        self.page_mode = mapping.page_mode
        self._memory = memory
        self._closed = False
        self.arena = view[geometry.arena_offset : geometry.total_bytes].toreadonly()
        self.base = mapping.address + geometry.arena_offset
        table.set_arena(view[geometry.arena_offset :], geometry.slot_bytes)

    def close(self) -> None:
        """Leave; the last one out removes the segment. The memory goes with the last view of it. Idempotent.

        Table and arena are gone from here afterwards: a thread that runs this lets go of the segment some time after
        whoever waits for it goes on, and then the memory must not hang on it.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._memory is None:
                self.table.leave()
            else:
                self._leave_shared(self._memory)
        finally:
            del self.table, self.arena

    def _leave_shared(self, memory: NamedMemory) -> None:
        self._memory = None
        try:
            locked = memory.lock(_ENTERING, patience_s=CLOSE_PATIENCE_S)
            try:
                self.table.leave()
            except TimeoutError:  # others take back what this process holds when it has ended
                _log.error("shared memory %s: left without a word, since another process keeps its table", self.name)
            memory.unlock(_LIVING)
            if locked and not somebody_lives(memory) and memory.is_named():
                memory.unlink()
        finally:
            _close(memory)


def segment_name(unique_id: str, fingerprint: bytes) -> str:
    """Return the name of a segment, as shm_open(3) wants it."""
    return f"/{PREFIX}{unique_id or fingerprint.hex()}"


# ---- making, joining, replacing


def make_private(geometry: Geometry, progress: Progress | None = None) -> Segment:
    """Make the same in memory of this process alone.

    Raises
    ------
    ConfigError
        There is no memory for it.
    """
    try:
        mapping = current_system().map_memory(geometry.total_bytes, -1, populate=False)
        _prefault(mapping, progress)
    except (OSError, ValueError) as error:
        raise _too_large(geometry, f"there is no memory for it ({error})") from error
    table = BlockTable(mapping, geometry.slots, geometry.policy, True)
    table.join(*current_system().own_identity())
    return Segment(geometry, mapping, table)


def open_segment(
    name: str, geometry: Geometry, progress: Progress | None = None, *, patience_s: float = OPEN_PATIENCE_S
) -> Segment:
    """Join the segment `name`, or make it.

    A segment that nobody lives in is adopted, its blocks still valid, if it fits, and replaced if it does not.

    Raises
    ------
    ConfigError
        It belongs to another user; others live in it that do not agree with `geometry`; there is no room for it; or
        somebody has been making it for longer than `patience_s` seconds.
    """
    give_up = time.monotonic() + patience_s
    while True:
        memory = _open(name)
        try:
            if not memory.lock(_ENTERING, patience_s=give_up - time.monotonic()):
                raise ConfigError(
                    f"unique_id: shared memory {name} has been locked for {patience_s:g} s by who makes it"
                )
            segment = _enter(memory, geometry, progress) if memory.is_named() else None
            if segment is not None:
                memory.unlock(_ENTERING)
                return segment
        except BaseException:
            _close(memory)
            raise
        _close(memory)  # it was removed, by its last user or by us: begin anew


def _open(name: str) -> NamedMemory:
    """Return the open object, perhaps an empty one."""
    try:
        memory = current_system().named_memory(name)
    except ImportError as error:
        raise ConfigError(
            "share_buffer_enable: shared memory needs the package posix_ipc (pip install 'ucm-async[posix_ipc]'), "
            "or set it to false"
        ) from error
    except PermissionError as error:
        raise _foreign(name) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"unique_id: shared memory {name} cannot be opened: {error}") from error
    if memory.owner != os.geteuid():
        memory.close()
        raise _foreign(name)
    return memory


def _foreign(name: str) -> ConfigError:
    return ConfigError(f"unique_id: shared memory {name} belongs to another user; choose another unique_id")


def _enter(memory: NamedMemory, geometry: Geometry, progress: Progress | None) -> Segment | None:
    """Make or join the segment, which is locked; None if it does not fit and was removed."""
    if memory.nbytes == 0:
        return _create(memory, geometry, progress)
    wrong = _why_not(memory, geometry)
    if not wrong:
        return _join(memory, geometry, progress)
    if somebody_lives(memory):
        raise ConfigError(
            f"unique_id: shared memory {memory.name}, which others use, {wrong}; choose another unique_id"
        )
    memory.unlink()
    return None


def _why_not(memory: NamedMemory, geometry: Geometry) -> str:
    """Say why the segment does not fit, empty if it does. Both sides are named."""
    header = header_of(memory.read(HEADER_BYTES))
    if not header.get("magic"):
        return "is not a segment of a Cache"
    if not header["ready"]:
        return "was never finished"
    wanted = {
        "version": TABLE_VERSION,
        "block_size": geometry.block_size,
        "fingerprint": geometry.fingerprint.hex(),
        "slots": geometry.slots,
        "policy": geometry.policy,
        "slot_bytes": geometry.slot_bytes,
        "pid_namespace": current_system().pid_namespace(),
    }
    for key, own in wanted.items():
        if header[key] != own:
            return f"has {_TOLD[key]} {header[key]}, not {own}"
    if memory.nbytes < geometry.total_bytes:
        return f"is truncated: {memory.nbytes} of {geometry.total_bytes} bytes"
    return ""


_TOLD: Final = {
    "version": "version",
    "block_size": "blocks of (block_size)",
    "fingerprint": "the namespace (with block_size and shard_size)",
    "slots": "slots (cache_buffer_capacity_gb)",
    "policy": "the policy (cache_policy)",
    "slot_bytes": "slots of bytes",
    "pid_namespace": "processes of the PID namespace",
}


def header_of(header: bytes) -> dict[str, Any]:
    """Return what the header of a segment says, its first `HEADER_BYTES`; nothing of it is checked.

    Returns
    -------
    dict
        See `BlockTable.describe`; and fingerprint (hex), block_size, slot_bytes, arena_offset, pid_namespace. Empty if
        there is no whole header.
    """
    if len(header) < HEADER_BYTES:
        return {}
    fingerprint, *numbers = _USER.unpack_from(header, TABLE_USER_OFFSET)
    names = ("block_size", "slot_bytes", "arena_offset", "pid_namespace")
    return {**BlockTable.describe(header), "fingerprint": fingerprint.hex(), **dict(zip(names, numbers, strict=True))}


def _create(memory: NamedMemory, geometry: Geometry, progress: Progress | None) -> Segment:
    """Make the segment, or remove what became of it."""
    try:
        _check_room(geometry)
        memory.truncate(geometry.total_bytes)
        mapping = _map(memory, geometry, progress)
        numbers = (geometry.block_size, geometry.slot_bytes, geometry.arena_offset, current_system().pid_namespace())
        _USER.pack_into(mapping, TABLE_USER_OFFSET, geometry.fingerprint, *numbers)
        table = BlockTable(mapping, geometry.slots, geometry.policy, True)
        table.join(*current_system().own_identity())
        _live(memory)
        return Segment(geometry, mapping, table, memory)
    except BaseException:
        memory.unlink()
        raise


def _join(memory: NamedMemory, geometry: Geometry, progress: Progress | None) -> Segment:
    """Join a segment that fits, and take back what dead processes hold in it."""
    name, alone = memory.name, not somebody_lives(memory)
    _live(memory)
    mapping = _map(memory, geometry, progress)
    table = BlockTable(mapping, geometry.slots, geometry.policy)
    reap_dead(table)
    try:
        table.join(*current_system().own_identity())
        if alone:
            table.repair()
    except TimeoutError as error:
        why = "another process keeps its table locked (it may be stopped)"
        raise ConfigError(f"unique_id: shared memory {name}: {why}") from error
    except OSError as error:
        if error.errno != errno.EUSERS:
            raise
        raise ConfigError(f"unique_id: {PROCESSES_MAX} stores use shared memory {name}, no more can") from error
    return Segment(geometry, mapping, table, memory)


def remove_segment(name: str, *, force: bool = False) -> bool:
    """Remove a segment, so that the next start makes a new one. Who lives in it goes on with what has no name any more.

    Parameters
    ----------
    name
        Of the file in `DIRECTORY`, or as shm_open(3) wants it.
    force
        Also if somebody lives in it.

    Returns
    -------
    bool
        False if somebody lives in it, or is making it, and not `force`.

    Raises
    ------
    FileNotFoundError
        There is none of that name.
    PermissionError
        It belongs to another user.
    """
    name = f"/{name.removeprefix('/')}"
    memory = NamedMemory(name, os.open(f"{DIRECTORY}{name}", os.O_RDWR | os.O_CLOEXEC))
    try:
        free = memory.lock(_ENTERING, patience_s=REMOVE_PATIENCE_S) and not somebody_lives(memory)
        if not free and not force:
            return False
        if memory.is_named():
            memory.unlink()
        return True
    finally:
        _close(memory)


def reap_dead(table: BlockTable) -> int:
    """Take back what processes hold that have ended; returns how many slots changed.

    A slot that one of them was filling is given to nobody for a while: its reads may end after it.
    """
    seen = {number: (pid, started) for number, pid, started in table.processes()}
    system = current_system()
    dead = system.dead_among((number, *identity) for number, identity in seen.items())
    return sum(max(table.reap(number, *seen[number], rest_s=system.late_reads_s), 0) for number in dead)


def _check_room(geometry: Geometry) -> None:
    """Look for room before anything is touched: a page that cannot be had is a SIGBUS, for whoever touches it."""
    free = current_system().free_bytes(MEMORY_DIRECTORY)
    if free < geometry.total_bytes:
        raise _too_large(geometry, f"{DIRECTORY} has {free} bytes left")


def _too_large(geometry: Geometry, why: str) -> ConfigError:
    slots = f"{geometry.slots} slots of {geometry.slot_bytes} bytes"
    return ConfigError(f"cache_buffer_capacity_gb: {slots} need {geometry.total_bytes} bytes, but {why}")


def _map(memory: NamedMemory, geometry: Geometry, progress: Progress | None) -> Mapping:
    """Map the segment and fault it in, so that nobody meets a page later that is not to be had."""
    try:
        mapping = memory.map(geometry.total_bytes)
        _prefault(mapping, progress)
    except OSError as error:
        raise _too_large(geometry, f"{DIRECTORY} has no room left for it ({error})") from error
    return mapping


def _prefault(mapping: Mapping, progress: Progress | None) -> None:
    for at in range(0, mapping.length, PREFAULT_STEP_BYTES):
        step = min(PREFAULT_STEP_BYTES, mapping.length - at)
        mapping.populate(at, step)
        if progress is not None:
            progress(at + step, mapping.length)


# ---- locks


def somebody_lives(memory: NamedMemory) -> bool:
    """Tell whether anybody lives in the segment, this open file itself apart. Only asks, and takes no lock."""
    return memory.locked(_LIVING)


def _live(memory: NamedMemory) -> None:
    """Show others that this open file lives in the segment. Nobody ever locks that byte for himself alone."""
    if not memory.lock(_LIVING, shared=True):
        raise ConfigError("unique_id: somebody has locked the shared memory's descriptor, who is no store")


def _close(memory: NamedMemory) -> None:
    """Give back the locks, which outlive the descriptor, and close it."""
    for byte in (_ENTERING, _LIVING):
        memory.unlock(byte)
    memory.close()
