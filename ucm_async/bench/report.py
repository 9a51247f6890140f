"""What a replay counts, and how it is told."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..types import U8, Status

__all__ = ["Flow", "Report"]


class Flow:
    """The calls of one verb.

    Attributes
    ----------
    calls, blocks, bytes
        Calls that ended, and the blocks (with their bytes) that were OK.
    busy_s
        Time in which at least one call was awaited: overlapping calls count once, so ``bytes / busy_s`` is a rate.
    latencies_ms
        Of each call.
    failures
        Rows that were not OK, by the name of their `Status`.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.blocks = 0
        self.bytes = 0
        self.busy_s = 0.0
        self.latencies_ms = array("d")
        self.failures: Counter[str] = Counter()
        self._active = 0
        self._busy_since = 0.0

    @contextmanager
    def awaiting(self) -> Iterator[None]:
        """Time one call, from before it is submitted."""
        started = time.perf_counter()
        if self._active == 0:
            self._busy_since = started
        self._active += 1
        try:
            yield
        finally:
            ended = time.perf_counter()
            self._active -= 1
            if self._active == 0:
                self.busy_s += ended - self._busy_since
        self.latencies_ms.append((ended - started) * 1e3)

    def count(self, status: U8, block_bytes: int) -> None:
        """Count the rows of a call that ended; `status` is uint8, shape (n,)."""
        self.calls += 1
        good = int(np.count_nonzero(status == Status.OK))
        self.blocks += good
        self.bytes += good * block_bytes
        if good < len(status):
            self.failures.update(Status(one).name for one in status.tolist() if one != Status.OK)

    @property
    def gb_per_s(self) -> float:
        """10^9 bytes a second of `busy_s`; 0.0 if there was no call."""
        return self.bytes / self.busy_s / 1e9 if self.busy_s else 0.0

    def percentile_ms(self, percent: float) -> float:
        """Latency of the calls at `percent`; 0.0 if there was no call."""
        return float(np.percentile(np.asarray(self.latencies_ms), percent)) if self.latencies_ms else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "calls": self.calls,
            "blocks": self.blocks,
            "bytes": self.bytes,
            "busy_s": round(self.busy_s, 6),
            "gb_per_s": round(self.gb_per_s, 4),
            "latency_ms": {f"p{p}": round(self.percentile_ms(p), 3) for p in (50, 95, 99)},
            "failures": dict(self.failures),
        }


@dataclass(slots=True)
class Report:
    """What a replay did.

    Attributes
    ----------
    requests, blocks_asked
        Requests that were served, and their blocks.
    prefix_hits, ideal_hits
        Blocks in the prefixes that the store said it has, and that a cache without bounds would have had.
    load, dump
        The calls.
    wrong_blocks, wrong_bytes
        Loaded as OK and not what the id says.
    wall_s
        From the first request to the last, the making and comparing of blocks included.
    """

    requests: int = 0
    blocks_asked: int = 0
    prefix_hits: int = 0
    ideal_hits: int = 0
    load: Flow = field(default_factory=Flow)
    dump: Flow = field(default_factory=Flow)
    wrong_blocks: int = 0
    wrong_bytes: int = 0
    wall_s: float = 0.0

    @property
    def hit_ratio(self) -> float:
        """Blocks hit of blocks asked."""
        return self.prefix_hits / self.blocks_asked if self.blocks_asked else 0.0

    @property
    def ideal_hit_ratio(self) -> float:
        """The same of a cache without bounds that was empty at the start."""
        return self.ideal_hits / self.blocks_asked if self.blocks_asked else 0.0

    def problems(self, expected: Collection[Status] = (Status.TIMEOUT,)) -> list[str]:
        """Say what must not be: wrong bytes, and failures for other reasons than the `expected` ones."""
        found = []
        if self.wrong_bytes:
            found.append(f"{self.wrong_bytes} wrong bytes in {self.wrong_blocks} loaded blocks")
        names = {one.name for one in expected}
        for verb, flow in (("load", self.load), ("dump", self.dump)):
            found += [f"{verb}: {n} blocks {name}" for name, n in sorted(flow.failures.items()) if name not in names]
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "requests": self.requests,
            "blocks_asked": self.blocks_asked,
            "prefix_hits": self.prefix_hits,
            "hit_ratio": round(self.hit_ratio, 6),
            "ideal_hit_ratio": round(self.ideal_hit_ratio, 6),
            "load": self.load.as_dict(),
            "dump": self.dump.as_dict(),
            "wrong_blocks": self.wrong_blocks,
            "wrong_bytes": self.wrong_bytes,
            "wall_s": round(self.wall_s, 3),
        }
