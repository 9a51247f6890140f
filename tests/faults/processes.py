"""Starting and talking to the processes of `child`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


@contextlib.contextmanager
def child(role: str, **about: Any) -> Iterator[subprocess.Popen[str]]:
    """A process of that role; killed in the end, if it still lives."""
    command = [sys.executable, "-W", "error", "-m", "tests.faults.child", role, json.dumps(about)]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def expect(process: subprocess.Popen[str], line: str) -> None:
    """Read the next line, which must be that one."""
    assert process.stdout is not None and process.stderr is not None
    got = process.stdout.readline().strip()
    assert got == line, f"{got!r} instead of {line!r}: {process.stderr.read() if not got else ''}"


def finish(process: subprocess.Popen[str], timeout_s: float = 60) -> list[str]:
    """Wait for a process that ends by itself; its lines."""
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, f"exit {process.returncode}: {err}"
    return out.splitlines()
