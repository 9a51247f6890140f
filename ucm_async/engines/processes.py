"""Which processes live. A pid alone does not say: the kernel gives it to somebody else one day."""

from __future__ import annotations

import os
from collections.abc import Iterable

__all__ = ["dead_among", "own_identity", "pid_namespace", "start_time"]

_STATE_AND_AFTER = 2  # proc_pid_stat(5): fields are counted from 1, and the first two may hold blanks
_STATE, _THREADS, _STARTTIME = 3 - 1, 20 - 1, 22 - 1
_GONE = frozenset("ZXx")
"""A zombie has ended, only its parent has not looked yet; but for its threads: see `start_time`."""


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since the boot (proc_pid_stat(5), field 22); 0 if it has ended.

    Reads a file of /proc, so it belongs into a thread.

    A process that was killed has not ended before its last thread has: one that is within a system call stays there
    until the call is over, and may be reading from a disk into shared memory. Its main thread is a zombie by then.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = text[text.rindex(")") + 2 :].split()
    if fields[_STATE - _STATE_AND_AFTER] in _GONE and int(fields[_THREADS - _STATE_AND_AFTER]) <= 1:
        return 0
    return int(fields[_STARTTIME - _STATE_AND_AFTER])


def own_identity() -> tuple[int, int]:
    """Return pid and start time of this process."""
    pid = os.getpid()
    return pid, start_time(pid)


def pid_namespace() -> int:
    """Return a number that tells apart the PID namespaces of containers: only within one do pids mean anything."""
    return os.stat("/proc/self/ns/pid").st_ino


def dead_among(processes: Iterable[tuple[int, int, int]]) -> list[int]:
    """Return the numbers of those that have ended, of (number, pid, start time) each."""
    return [number for number, pid, started in processes if start_time(pid) != started]
