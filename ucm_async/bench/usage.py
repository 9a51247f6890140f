"""Peak disk use of a directory, sampled by a process of its own: ``python -m ucm_async.bench.usage DIR``.

It says the most bytes that it saw, and how often it looked, once its stdin is closed.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Peak", "block_bytes", "watch_peak"]

PAUSE_S: Final = 0.05
_NAME_DIGITS: Final = 32


@dataclass(slots=True)
class Peak:
    """Most bytes of block files seen at once, under way or not, and in how many looks."""

    nbytes: int = 0
    looks: int = 0


def block_bytes(directory: str) -> int:
    """Add up the files that have a block's name; one that is moved while this looks counts once."""
    seen: dict[int, int] = {}
    for where, _, names in os.walk(directory):
        for name in names:
            if len(name) == _NAME_DIGITS:
                with contextlib.suppress(FileNotFoundError):
                    about = os.lstat(os.path.join(where, name))
                    seen[about.st_ino] = about.st_size
    return sum(seen.values())


@contextlib.contextmanager
def watch_peak(directory: Path) -> Iterator[Peak]:
    """Watch a directory in another process, which does not disturb this one's loop; filled in at the exit."""
    peak = Peak()
    command = [sys.executable, "-m", __name__, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield peak
        finally:
            out, _ = process.communicate()
    peak.nbytes, peak.looks = map(int, out.split())


def _main(directory: str) -> None:
    os.nice(10)
    peak = looks = 0
    while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
        peak, looks = max(peak, block_bytes(directory)), looks + 1
    print(peak, looks)


if __name__ == "__main__":
    _main(sys.argv[1])
