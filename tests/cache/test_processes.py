"""Who lives, and who only looks dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ucm_async.stages.cache.processes import dead_among, own_identity, start_time

# The first thread ends by itself, the process does not: its other thread goes on.
HEADLESS = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def headless() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", HEADLESS])
    yield process
    process.kill()
    process.wait()


def test_this_process_lives() -> None:
    pid, started = own_identity()
    assert pid == os.getpid() and started > 0
    assert dead_among([(3, pid, started), (4, pid, started + 1), (5, 2**22 + 1, 7)]) == [4, 5]


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = start_time(child.pid)
    assert started > 0
    child.send_signal(signal.SIGKILL)
    until(lambda: state_of(child.pid) == "Z")
    until(lambda: start_time(child.pid) == 0)
    child.wait()
    assert start_time(child.pid) == 0


def test_a_zombie_whose_other_threads_run_is_alive(headless: subprocess.Popen[bytes]) -> None:
    """Such threads may be in a read that the kernel finishes before they end: it writes to a slot."""
    until(lambda: state_of(headless.pid) == "Z")
    assert start_time(headless.pid) > 0
    headless.kill()
    until(lambda: start_time(headless.pid) == 0)
