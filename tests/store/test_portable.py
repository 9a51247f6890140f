"""The same suites without the extension, in a process of their own: which of the two it is, is decided at import."""

from __future__ import annotations

import os
import subprocess
import sys

SUITES = [
    "tests/store/test_posix.py::TestUring",  # which it has not: psync takes its place
    "tests/posix/test_stage.py::TestBufferedOnThreads",
    "tests/tasks/test_memory.py",
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "UCM_ASYNC_PORTABLE": "1"}
    return subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, text=True, timeout=110)


def test_the_suites_hold_without_the_extension() -> None:
    """One loop is enough: the twin knows of none."""
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not uvloop", *SUITES)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_it_says_so() -> None:
    done = run("-c", "from ucm_async import native; print(native.NATIVE, native.WHY)")
    assert done.stdout == "False UCM_ASYNC_PORTABLE is set\n", done.stderr
