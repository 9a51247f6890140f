"""Who is dead: not yet a process of which one thread is still within a system call, though the others have ended."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ucm_async.engines.processes import dead_among, start_time

from .support import until

EXIT_OF_ONE_THREAD = 60
"""Number of exit(2) on x86-64, which ends the calling thread alone."""

MAIN_ENDS_FIRST = f"""
import ctypes, threading
libc = ctypes.CDLL(None)
threading.Thread(target=libc.read, args=(0, ctypes.create_string_buffer(1), 1), daemon=True).start()
print("started", flush=True)
libc.syscall({EXIT_OF_ONE_THREAD}, 0)
"""


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(") ")[2][0]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", MAIN_ENDS_FIRST], stdin=-1, stdout=-1) as process:
        yield process
        process.kill()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the system call of x86-64 only")
def test_it_lives_as_long_as_its_last_thread(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    started = start_time(process.pid)
    assert started and process.stdout.readline() == b"started\n"
    until(lambda: state(process.pid) == "Z")
    assert start_time(process.pid) == started
    assert dead_among([(0, process.pid, started)]) == []
    process.stdin.close()  # the call ends, and with it the thread
    until(lambda: dead_among([(0, process.pid, started)]) == [0])
    assert state(process.pid) == "Z", "nobody has waited for it yet"
