"""Lookups: of ids that this process has not seen, and of ids that it knows."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Final

import numpy as np

from ...types import U8
from ..measure import Finding, Spread
from ..setting import BenchError, Setting, numbered_ids, require_ok

__all__ = ["measure"]

_IDS: Final = 1000
_BLOCK_BYTES: Final = 4096
_REPEATS: Final = 50
_GOALS_US: Final = {"not seen": 2.0, "known": 0.2}


async def measure(setting: Setting) -> list[Finding]:
    """Look 1000 stored ids up; a store opened anew has not seen any of them."""
    ids = numbered_ids(0, _IDS)
    times: dict[tuple[str, str], list[float]] = {}
    async with setting.folder("lookup", _IDS * 4 * _BLOCK_BYTES) as folder:
        async with setting.open_store(folder, _BLOCK_BYTES) as store:
            require_ok("dump", [await store.dump(ids, None, np.zeros((_IDS, _BLOCK_BYTES), np.uint8))])
        for verb in ("lookup", "lookup_on_prefix"):
            for round_number in range(-1, setting.rounds):  # the first warms the file system's caches
                async with setting.open_store(folder, _BLOCK_BYTES) as store:
                    call = store.lookup if verb == "lookup" else store.lookup_on_prefix
                    fresh = await _us_per_id(call, ids)
                    known = median([await _us_per_id(call, ids) for _ in range(_REPEATS)])
                if round_number >= 0:
                    times.setdefault((verb, "not seen"), []).append(fresh)
                    times.setdefault((verb, "known"), []).append(known)
    return [
        Finding(
            "lookup", f"{verb} of {_IDS} ids, {which}", Spread.of(values), "µs an id", goal=("<=", _GOALS_US[which])
        )
        for (verb, which), values in times.items()
    ]


async def _us_per_id(call: Callable[[U8], Awaitable[object]], ids: U8) -> float:
    started = time.perf_counter()
    answer = await call(ids)
    took = time.perf_counter() - started
    if not (np.all(answer) if isinstance(answer, np.ndarray) else answer == _IDS - 1):
        raise BenchError("lookup: a stored block was not found")
    return took / _IDS * 1e6
