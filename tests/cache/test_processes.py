"""Who lives and who does not; `tests/cache_faults/test_dying.py` has those in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ucm_async.engines.processes import dead_among, own_identity, start_time


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


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
