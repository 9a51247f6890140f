"""How long it takes to import the package and to open a store."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from ..measure import Finding, Spread
from ..setting import BenchError, Setting

__all__ = ["measure"]

_BLOCK_BYTES: Final = 1 << 20
_IMPORT_GOAL_MS: Final = 150.0
_OPEN_GOAL_MS: Final = 50.0
_TIMER: Final = "import time; t = time.perf_counter(); {}; print((time.perf_counter() - t) * 1e3)"
_IMPORTS: Final = {"import ucm_async": "import ucm_async", "import of its store": "from ucm_async import open_store"}


async def measure(setting: Setting) -> list[Finding]:
    """Import in fresh interpreters, and open stores in a new and in an existing directory."""
    found = []
    for what, statement in _IMPORTS.items():
        times = [await asyncio.to_thread(_import_ms, statement) for _ in range(setting.rounds + 1)][1:]
        found.append(Finding("open", what, Spread.of(times), "ms", goal=("<=", _IMPORT_GOAL_MS)))
    new, existing = [], []
    async with setting.folder("open") as folder:
        for number in range(setting.rounds + 1):
            new.append(await _open_ms(setting, str(number), folder))
            existing.append(await _open_ms(setting, str(number), folder))
    for what, times in (("open_store, new directory", new[1:]), ("open_store, existing directory", existing[1:])):
        found.append(Finding("open", what, Spread.of(times), "ms", goal=("<=", _OPEN_GOAL_MS)))
    return found


def _import_ms(statement: str) -> float:
    code = [sys.executable, "-c", _TIMER.format(statement)]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{statement}: {done.stderr.strip()}")
    return float(done.stdout)


async def _open_ms(setting: Setting, name: str, folder: Path) -> float:
    opening = setting.open_store(folder / name, _BLOCK_BYTES)
    started = time.perf_counter()
    async with opening:
        return (time.perf_counter() - started) * 1e3
