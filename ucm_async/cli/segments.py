"""The Cache's segments on this host: what is in them, who lives in them, and how one is removed.

Nothing here joins a segment or takes a lock that its users wait for; `remove` does, for a moment.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..engines.namedmemory import NamedMemory
from ..engines.processes import pid_namespace, start_time
from ..errors import UcmError
from ..native import NATIVE, WHY, BlockTable
from ..stages.cache.segment import DIRECTORY, HEADER_BYTES, PREFIX, header_of, remove_segment, somebody_lives

__all__ = [
    "BLOCK_STATES",
    "ENTRY",
    "Block",
    "NoSegmentError",
    "Process",
    "Segment",
    "State",
    "blocks_of",
    "inspect",
    "inspect_all",
    "names",
    "remove",
]

State: TypeAlias = Literal["live", "dead", "unfinished", "damaged", "foreign"]


class NoSegmentError(UcmError):
    """There is no segment of that name."""


BLOCK_STATES: Final = ("empty", "filling", "ready", "failed", "evicting", "orphan")

ENTRY: Final = np.dtype(
    [("holders", "<u8"), ("id", "V16"), ("generation", "<u4")]
    + [(name, "u1") for name in ("state", "flags", "visits", "list")]
)
"""A record of ``BlockTable.entries``."""

_DIRTY: Final = 1


@dataclass(frozen=True, slots=True)
class Process:
    """Who has joined a segment.

    Attributes
    ----------
    number
        In the segment's table of processes.
    pid, start_time
        As in ``/proc/<pid>/stat``.
    alive
        Whether that process still runs; None where it belongs to another PID namespace, so that nobody here can tell.
    """

    number: int
    pid: int
    start_time: int
    alive: bool | None


@dataclass(frozen=True, slots=True)
class Segment:
    """What can be told about a segment from outside.

    Attributes
    ----------
    name
        Of the file in /dev/shm.
    state
        "live": somebody uses it. "dead": nobody does, it was left by processes that crashed; its blocks are still good,
        and the next store that fits adopts it. "unfinished": whoever made it died meanwhile, or is at it. "damaged": it
        does not hold what the extension can read. "foreign": it belongs to another user.
    nbytes
        Its length.
    why
        What is wrong with it; empty for "live" and "dead".
    header
        See `stages.cache.segment.header_of`.
    processes
        Who is in its table.
    counters
        See ``BlockTable.statistics``, without what only a member has.
    blocks
        Slots by state; only from `inspect` with ``count_blocks=True``.
    """

    name: str
    state: State
    nbytes: int
    why: str = ""
    header: Mapping[str, Any] = field(default_factory=dict)
    processes: tuple[Process, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Block:
    """A slot that is not empty: the fields of `ENTRY`, with the numbers of the processes that hold it."""

    slot: int
    block_id: str
    state: str
    generation: int
    dirty: bool
    visits: int
    holders: tuple[int, ...]


def names() -> list[str]:
    """Return the names of all segments, sorted."""
    try:
        return sorted(name for name in os.listdir(DIRECTORY) if name.startswith(PREFIX))
    except FileNotFoundError:
        return []


def inspect_all() -> list[Segment]:
    """Look at every segment; those that go away meanwhile are left out."""
    found = []
    for name in names():
        with suppress(NoSegmentError):
            found.append(inspect(name))
    return found


def inspect(name: str, *, count_blocks: bool = False) -> Segment:
    """Look at a segment.

    Parameters
    ----------
    name
        Of the file in /dev/shm; or the `unique_id` that it was made from.
    count_blocks
        Look at every slot, too: about 10 ms a million.

    Raises
    ------
    UcmError
        There is none of this name, or the extension is missing.
    """
    name = _full_name(name)
    try:
        owner = _path(name).stat()
        with _opened(name) as fd:
            return _inspect(name, fd, count_blocks)
    except FileNotFoundError:
        raise NoSegmentError(f"{name}: is gone") from None
    except PermissionError:
        return Segment(name, "foreign", owner.st_size, f"belongs to the user with id {owner.st_uid}")


def _inspect(name: str, fd: int, count_blocks: bool) -> Segment:
    nbytes = os.fstat(fd).st_size
    header = _header(fd)
    alive = somebody_lives(NamedMemory(name, fd))
    if not header.get("magic"):
        why = "empty" if nbytes == 0 else "not a segment of a Cache"
        return Segment(name, "unfinished" if nbytes == 0 else "damaged", nbytes, why)
    if not header["ready"]:
        return Segment(name, "unfinished", nbytes, "was not formatted to the end", header)
    try:
        with _table(fd, header) as table:
            processes = tuple(_processes(table, header))
            counters = {key: value for key, value in table.statistics().items() if key != "leases"}
            blocks = table.count_states() if count_blocks else {}
    except (ValueError, OSError) as error:
        return Segment(name, "live" if alive else "damaged", nbytes, str(error), header)
    return Segment(name, "live" if alive else "dead", nbytes, "", header, processes, counters, blocks)


def _processes(table: BlockTable, header: Mapping[str, Any]) -> Iterator[Process]:
    here = header["pid_namespace"] == pid_namespace()
    for number, pid, started in table.processes():
        yield Process(number, pid, started, start_time(pid) == started if here else None)


def blocks_of(name: str) -> list[Block]:
    """Return the slots of a segment that are not empty.

    Raises
    ------
    UcmError
        There is none of this name, or its table cannot be read.
    """
    name = _full_name(name)
    try:
        with _opened(name) as fd, _table(fd, _header(fd)) as table:
            entries = np.frombuffer(table.entries(), ENTRY)
    except (KeyError, ValueError, OSError) as error:
        raise UcmError(f"{name}: its blocks cannot be listed: {error}") from error
    return [_block(slot, entries[slot]) for slot in np.flatnonzero(entries["state"]).tolist()]


def _block(slot: int, entry: npt.NDArray[Any]) -> Block:
    holders, state = int(entry["holders"]), int(entry["state"])
    return Block(
        slot,
        entry["id"].tobytes().hex(),
        BLOCK_STATES[state] if state < len(BLOCK_STATES) else str(state),
        int(entry["generation"]),
        bool(entry["flags"] & _DIRTY),
        int(entry["visits"]),
        tuple(number for number in range(64) if holders >> number & 1),
    )


def remove(name: str, *, force: bool = False) -> bool:
    """Remove a segment; its memory goes with the last process that has it mapped.

    Parameters
    ----------
    name
        As for `inspect`.
    force
        Remove it though somebody lives in it: its users go on with what they have mapped, and share no more with
        those that come later.

    Returns
    -------
    bool
        False if somebody lives in it, and `force` is not set.

    Raises
    ------
    UcmError
        There is none of this name, or it belongs to another user.
    """
    name = _full_name(name)
    try:
        return remove_segment(name, force=force)
    except FileNotFoundError:
        raise NoSegmentError(f"{name}: is gone already") from None


# ---- at the files


def _full_name(name: str) -> str:
    """Return the name of the file; what people give may be a `unique_id` or have the slash of shm_open(3)."""
    if not NATIVE:
        raise UcmError(f"shared memory of a Cache needs the extension ({WHY})")
    bare = name.removeprefix(f"{DIRECTORY}/").removeprefix("/")
    found = bare if bare.startswith(PREFIX) else f"{PREFIX}{bare}"
    if "/" in found or not _path(found).exists():
        known = ", ".join(names()) or "none"
        raise NoSegmentError(f"{name}: no such segment (there are: {known})")
    return found


def _path(name: str) -> Path:
    return Path(DIRECTORY, name)


@contextmanager
def _opened(name: str) -> Iterator[int]:
    fd = os.open(_path(name), os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _header(fd: int) -> dict[str, Any]:
    return header_of(os.pread(fd, HEADER_BYTES, 0))


@contextmanager
def _table(fd: int, header: Mapping[str, Any]) -> Iterator[BlockTable]:
    """Look at the table of a segment, without joining it."""
    memory = mmap.mmap(fd, BlockTable.bytes_needed(header["slots"]))
    yield BlockTable(memory, header["slots"], header["policy"])
