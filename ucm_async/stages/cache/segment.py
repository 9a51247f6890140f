"""A segment of shared memory and its life: made by the first process, joined by others, removed by the last one.

The kernel keeps the segment of processes that crashed, so whoever opens one may find anything: nothing yet, a whole
one with good blocks, half of one, one of another version, or somebody else's. Two locks on the segment's own descriptor
tell these apart; as record locks of an open file (fcntl(2), F_OFD_SETLK) they end with their holder, however it ends:

- byte 0 is locked while the segment is made, entered or left: what is half-made and unlocked was given up;
- byte 1 is locked, shared, by everybody who lives in it, whatever their version: without such a lock it may be
  replaced.

The name may be removed while somebody waits for a lock. So who has the lock looks whether the name still means that
segment.

Everything here blocks, and belongs into a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ...errors import ConfigError
from ...native import PROCESSES_MAX, TABLE_USER_BYTES, TABLE_USER_OFFSET, TABLE_VERSION, BlockTable, Mapping
from .processes import dead_among, own_identity, pid_namespace

__all__ = [
    "DIRECTORY",
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

DIRECTORY: Final = "/dev/shm"
"""Where Linux keeps the objects of shm_open(3)."""

PREFIX: Final = "ucm-async."
ARENA_ALIGN: Final = 2 << 20
PREFAULT_STEP_BYTES: Final = 256 << 20
OPEN_PATIENCE_S: Final = 120.0
"""How long another process may take to make the segment: a hundred gigabytes are faulted in within half a minute."""

CLOSE_PATIENCE_S: Final = 5.0
"""How long a store that is closed waits for who enters or leaves; then it does not look whether it is the last."""

REMOVE_PATIENCE_S: Final = 1.0

REST_S: Final = 10
"""How long a slot that a dead process was filling is given to nobody: the kernel ends its reads after the process, and
io_uring's may arrive when it is gone. A disk that holds a read for longer than that is one that hangs."""

_log = logging.getLogger("ucm_async.cache")

_ENTERING, _LIVING = 0, 1
_USER: Final = struct.Struct("<16sQQQQ")  # fingerprint, block_size, slot_bytes, arena_offset, PID namespace
assert _USER.size <= TABLE_USER_BYTES
_HEADER_BYTES: Final = 4096

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

    def __init__(self, geometry: Geometry, mapping: Mapping, table: BlockTable, name: str = "", fd: int = -1) -> None:
        self.geometry = geometry
        self.name = name
        self.table = table
        memory = memoryview(mapping)
        self.page_mode = mapping.page_mode
        self._fd = fd
        self._closed = False
        self.arena = memory[geometry.arena_offset : geometry.total_bytes].toreadonly()
        self.base = mapping.address + geometry.arena_offset
        table.set_arena(memory[geometry.arena_offset :], geometry.slot_bytes)

    def close(self) -> None:
        """Leave; the last one out removes the segment. The memory goes with the last view of it. Idempotent.

        Table and arena are gone from here afterwards: a thread that runs this lets go of the segment some time after
        whoever waits for it goes on, and then the memory must not hang on it.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._fd < 0:
                self.table.leave()
            else:
                self._leave_shared()
        finally:
            del self.table, self.arena

    def _leave_shared(self) -> None:
        fd, self._fd = self._fd, -1
        try:
            locked = _lock(fd, _ENTERING, fcntl.F_WRLCK, CLOSE_PATIENCE_S)
            try:
                self.table.leave()
            except TimeoutError:  # others take back what this process holds when it has ended
                _log.error("shared memory %s: left without a word, since another process keeps its table", self.name)
            _lock(fd, _LIVING, fcntl.F_UNLCK)
            if locked and not somebody_lives(fd) and _is_named(fd, self.name):
                _unlink(self.name)
        finally:
            _close(fd)


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
        mapping = Mapping(geometry.total_bytes, populate=False)
        _prefault(mapping, progress)
    except (OSError, ValueError) as error:
        raise _too_large(geometry, f"there is no memory for it ({error})") from error
    table = BlockTable(mapping, geometry.slots, geometry.policy, True)
    table.join(*own_identity())
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
        fd = _open(name)
        try:
            if not _lock(fd, _ENTERING, fcntl.F_WRLCK, give_up - time.monotonic()):
                raise ConfigError(
                    f"unique_id: shared memory {name} has been locked for {patience_s:g} s by who makes it"
                )
            segment = _enter(fd, name, geometry, progress) if _is_named(fd, name) else None
            if segment is not None:
                _lock(fd, _ENTERING, fcntl.F_UNLCK)
                return segment
        except BaseException:
            _close(fd)
            raise
        _close(fd)  # it was removed, by its last user or by us: begin anew


def _open(name: str) -> int:
    """Return a descriptor of the segment, perhaps of an empty one."""
    try:
        import posix_ipc  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise ConfigError(
            "share_buffer_enable: shared memory needs the package posix_ipc (pip install 'ucm-async[posix_ipc]'), "
            "or set it to false"
        ) from error
    try:
        fd = int(posix_ipc.SharedMemory(name, posix_ipc.O_CREAT, mode=0o600).fd)
    except (posix_ipc.PermissionsError, PermissionError) as error:
        raise _foreign(name) from error
    except (posix_ipc.Error, OSError, ValueError) as error:
        raise ConfigError(f"unique_id: shared memory {name} cannot be opened: {error}") from error
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        os.close(fd)
        raise _foreign(name)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise ConfigError(f"unique_id: shared memory {name} is no segment; choose another unique_id")
    return fd


def _foreign(name: str) -> ConfigError:
    return ConfigError(f"unique_id: shared memory {name} belongs to another user; choose another unique_id")


def _enter(fd: int, name: str, geometry: Geometry, progress: Progress | None) -> Segment | None:
    """Make or join the segment, which is locked; None if it does not fit and was removed."""
    size = os.fstat(fd).st_size
    if size == 0:
        return _create(fd, name, geometry, progress)
    wrong = _why_not(fd, size, geometry)
    if not wrong:
        return _join(fd, name, geometry, progress)
    if somebody_lives(fd):
        raise ConfigError(f"unique_id: shared memory {name}, which others use, {wrong}; choose another unique_id")
    _unlink(name)
    return None


def _why_not(fd: int, size: int, geometry: Geometry) -> str:
    """Say why the segment does not fit, empty if it does. Both sides are named."""
    header = header_of(fd)
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
        "pid_namespace": pid_namespace(),
    }
    for key, own in wanted.items():
        if header[key] != own:
            return f"has {_TOLD[key]} {header[key]}, not {own}"
    if size < geometry.total_bytes:
        return f"is truncated: {size} of {geometry.total_bytes} bytes"
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


def header_of(fd: int) -> dict[str, Any]:
    """Return what the header of a segment says, nothing of it checked.

    Returns
    -------
    dict
        See `BlockTable.describe`; and fingerprint (hex), block_size, slot_bytes, arena_offset, pid_namespace. Empty if
        there is no whole header.
    """
    header = os.pread(fd, _HEADER_BYTES, 0)
    if len(header) < _HEADER_BYTES:
        return {}
    fingerprint, *numbers = _USER.unpack_from(header, TABLE_USER_OFFSET)
    names = ("block_size", "slot_bytes", "arena_offset", "pid_namespace")
    return {**BlockTable.describe(header), "fingerprint": fingerprint.hex(), **dict(zip(names, numbers, strict=True))}


def _create(fd: int, name: str, geometry: Geometry, progress: Progress | None) -> Segment:
    """Make the segment, or remove what became of it."""
    try:
        _check_room(geometry)
        os.ftruncate(fd, geometry.total_bytes)
        mapping = _map(fd, geometry, progress)
        user = (geometry.fingerprint, geometry.block_size, geometry.slot_bytes, geometry.arena_offset, pid_namespace())
        _USER.pack_into(mapping, TABLE_USER_OFFSET, *user)
        table = BlockTable(mapping, geometry.slots, geometry.policy, True)
        table.join(*own_identity())
        _live(fd)
        return Segment(geometry, mapping, table, name, fd)
    except BaseException:
        _unlink(name)
        raise


def _join(fd: int, name: str, geometry: Geometry, progress: Progress | None) -> Segment:
    """Join a segment that fits, and take back what dead processes hold in it."""
    alone = not somebody_lives(fd)
    _live(fd)
    mapping = _map(fd, geometry, progress)
    table = BlockTable(mapping, geometry.slots, geometry.policy)
    reap_dead(table)
    try:
        table.join(*own_identity())
        if alone:
            table.repair()
    except TimeoutError as error:
        why = "another process keeps its table locked (it may be stopped)"
        raise ConfigError(f"unique_id: shared memory {name}: {why}") from error
    except OSError as error:
        if error.errno != errno.EUSERS:
            raise
        raise ConfigError(f"unique_id: {PROCESSES_MAX} stores use shared memory {name}, no more can") from error
    return Segment(geometry, mapping, table, name, fd)


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
    fd = os.open(f"{DIRECTORY}{name}", os.O_RDWR | os.O_CLOEXEC)
    try:
        free = _lock(fd, _ENTERING, fcntl.F_WRLCK, REMOVE_PATIENCE_S) and not somebody_lives(fd)
        if not free and not force:
            return False
        if _is_named(fd, name):
            _unlink(name)
        return True
    finally:
        _close(fd)


def reap_dead(table: BlockTable) -> int:
    """Take back what processes hold that have ended; returns how many slots changed."""
    seen = {number: (pid, started) for number, pid, started in table.processes()}
    dead = dead_among((number, *identity) for number, identity in seen.items())
    return sum(max(table.reap(number, *seen[number], rest_s=REST_S), 0) for number in dead)


def _check_room(geometry: Geometry) -> None:
    """Look for room before anything is touched: a page that cannot be had is a SIGBUS, for whoever touches it."""
    status = os.statvfs(DIRECTORY)
    free = status.f_bavail * status.f_frsize
    if free < geometry.total_bytes:
        raise _too_large(geometry, f"{DIRECTORY} has {free} bytes left")


def _too_large(geometry: Geometry, why: str) -> ConfigError:
    slots = f"{geometry.slots} slots of {geometry.slot_bytes} bytes"
    return ConfigError(f"cache_buffer_capacity_gb: {slots} need {geometry.total_bytes} bytes, but {why}")


def _map(fd: int, geometry: Geometry, progress: Progress | None) -> Mapping:
    """Map the segment and fault it in, so that nobody meets a page later that is not to be had."""
    try:
        mapping = Mapping(geometry.total_bytes, fd, populate=False)
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


# ---- locks and names


def somebody_lives(fd: int) -> bool:
    """Tell whether anybody lives in the segment, this open file itself apart. Only asks, and takes no lock."""
    told = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, _LIVING))
    return bool(_FLOCK.unpack(told)[0] != fcntl.F_UNLCK)


def _live(fd: int) -> None:
    """Show others that this open file lives in the segment. Nobody ever locks that byte for himself alone."""
    if not _lock(fd, _LIVING, fcntl.F_RDLCK):
        raise ConfigError("unique_id: somebody has locked the shared memory's descriptor, who is no store")


_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock: type, whence (SEEK_SET), start, length, and a pid that must be 0."""


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, 0, byte, 1, 0)


def _lock(fd: int, byte: int, kind: int, patience_s: float = 0.0) -> bool:
    """Lock or unlock a byte of the segment for this open file; False if others held it until the end."""
    give_up = time.monotonic() + patience_s
    wanted = _flock(kind, byte)
    while True:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
            return True
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as fcntl(2) has it
            if time.monotonic() >= give_up:
                return False
        time.sleep(_LOCK_NAP_S)


_LOCK_NAP_S: Final = 0.005


def _close(fd: int) -> None:
    """Close the segment. A mapping keeps the open file alive, and with it the locks: so they are undone by hand."""
    for byte in (_ENTERING, _LIVING):
        _lock(fd, byte, fcntl.F_UNLCK)
    os.close(fd)


def _is_named(fd: int, name: str) -> bool:
    try:
        named = os.stat(f"{DIRECTORY}{name}")
    except FileNotFoundError:
        return False
    own = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)


def _unlink(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{DIRECTORY}{name}")
