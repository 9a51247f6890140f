"""A host of workers on one cache, and what is asked of it whatever happens to one of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

from .processes import Child
from .support import SEED
from .workload import KEYS

__all__ = ["STALL_S_MAX", "Freezes", "Host", "Span", "stall_s"]

Span: TypeAlias = tuple[float, float]
"""Beginning and end, in seconds of the monotonic clock."""

TICK_S = 0.01
STALL_S_MAX = 1.0
"""So long no call may take because of what happened to another process."""


class Freezes:
    """A clock beside the test: when the machine itself stood still, which is nobody's fault here."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def _tick(self) -> None:
        before = time.monotonic()
        while not self._end.wait(TICK_S):
            now = time.monotonic()
            if now - before > 5 * TICK_S:
                self.spans.append((before + TICK_S, now))
            before = now

    def __enter__(self) -> Freezes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def stall_s(start: float, end: float, excused: list[Span]) -> float:
    """How long a call took, without the time in which nobody could have served it."""
    covered, at = 0.0, start
    for begun, over in sorted(excused):
        begun, over = max(begun, at), min(over, end)
        if over > begun:
            covered += over - begun
            at = over
    return end - start - covered


class Host:
    """Workers over one cache.

    Attributes
    ----------
    stored
        Keys that somebody said were stored.
    stopped
        When each worker, by pid, was stopped by a signal.
    """

    def __init__(self, start: Callable[..., Child], pipeline: str, keys: dict[str, Any], workers: int) -> None:
        self._start = start
        self._about = {"pipeline": pipeline, "keys": keys}
        self._seeds = iter(range(SEED << 20, (SEED + 1) << 20))
        self.stored: set[int] = set()
        self.stopped: dict[int, list[Span]] = {}
        self.counts: Counter[str] = Counter()
        self.workers = [self.begin() for _ in range(workers)]

    def begin(self) -> Child:
        """Start a worker, and do not wait until it is ready."""
        seed = next(self._seeds)
        return self._start("worker", seed=seed, loop=("asyncio", "uvloop")[seed % 2], **self._about)

    def listen(self, child: Child) -> None:
        """Hear what a worker has said that it stored."""
        for word, *rest in child.said():
            if word == "stored":
                self.stored.update(rest[0])

    def pause(self, child: Child) -> list[tuple[float, float, str]]:
        """Let a worker come to rest, where it must hold nothing; returns its slow calls."""
        child.tell("pause")
        while True:
            message = child.expect("stored", "paused")
            if not isinstance(message[0], dict):
                self.stored.update(message[0])
                continue
            assert not message[0]["held"], message[0]["held"]
            self.counts.update(message[0]["counts"])
            return list(message[0]["slow"])

    def come_to_rest(self, freezes: Freezes) -> tuple[float, str]:
        """Pause all workers; returns the longest stall, and of what. Nobody is blamed for what he was stopped for."""
        stalls = [
            (stall_s(start, end, freezes.spans + self.stopped.get(child.pid, [])), name)
            for child in self.workers
            for start, end, name in self.pause(child)
        ]
        return max(stalls, default=(0.0, "none"))

    def leave(self) -> None:
        """Let all workers close their stores, and end."""
        for child in self.workers:
            child.leave("end")

    def stop(self, child: Child, seconds: float) -> None:
        """Let a worker stand still for a while."""
        start = time.monotonic()
        child.stop()
        end = start + seconds
        while time.monotonic() < end:
            time.sleep(0.02)
            for one in self.workers:
                self.listen(one)
        child.go_on()
        self.stopped.setdefault(child.pid, []).append((start, time.monotonic()))

    def newcomer(self) -> Child:
        """Join; who does takes back what the dead held."""
        child = self._start("puppet", **self._about)
        child.expect("ready")
        return child

    def survey(self) -> int:
        """A newcomer finds what was promised, and nothing wrong; returns how many keys there are."""
        child = self.newcomer()
        found = child.ask("load", list(range(KEYS)))
        assert set(found) <= {"OK", "MISS"}, Counter(found)
        missing = [number for number in self.stored if found[number] != "OK"]
        assert not missing, f"said to be stored, and not there: {missing}"
        child.leave()
        return int(found.count("OK"))
