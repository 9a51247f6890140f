"""Hit ratios of the Cache's eviction policies over a workload: the real table, without blocks and without a store."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..native import CLAIM_HIT, CLAIM_MINE, NATIVE, WHY, BlockTable
from ..types import block_ids
from .setting import BenchError
from .workloads import InfiniteCache, Request

__all__ = ["POLICIES", "PolicyReport", "compare_policies"]

POLICIES: Final = ("s3fifo", "sieve", "lru", "fifo")
REFERENCE: Final = "lru"


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """Prefix hits of a workload.

    Attributes
    ----------
    requests, blocks
        Of the workload.
    ideal
        Hit ratio of a cache without bounds: blocks hit, of blocks asked.
    ratios
        Policy -> number of slots -> hit ratio.
    """

    requests: int
    blocks: int
    ideal: float
    ratios: Mapping[str, Mapping[int, float]]

    def best(self) -> str:
        """Return the policy whose hit ratio, relative to LRU's, is the highest on average over the sizes."""

        def gain(policy: str) -> float:
            pairs = [(self.ratios[policy][slots], self.ratios[REFERENCE][slots]) for slots in self.ratios[policy]]
            return sum(ratio / lru for ratio, lru in pairs if lru)

        return max(self.ratios, key=gain)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "requests": self.requests,
            "blocks": self.blocks,
            "infinite_cache": round(self.ideal, 6),
            "best": self.best(),
            "policies": {
                policy: {str(slots): round(ratio, 6) for slots, ratio in ratios.items()}
                for policy, ratios in self.ratios.items()
            },
        }


def compare_policies(
    requests: Iterable[Request],
    slots: Sequence[int],
    policies: Sequence[str] = POLICIES,
    on_run: Callable[[str, int], None] = lambda _policy, _slots: None,
) -> PolicyReport:
    """Serve a workload from tables of some sizes, one for each policy.

    Parameters
    ----------
    requests
        Read once.
    slots
        Blocks that each cache holds; each size a column.
    policies
        See the configuration key ``cache_policy``.
    on_run
        Called before each run.

    Raises
    ------
    BenchError
        The extension is missing.

    Notes
    -----
    For each request a table is asked as a store asks it: how much of the prefix is there; that is leased and given back
    (a load); the rest is claimed and published (a dump, to which what is there after a gap is a hit as well).
    """
    if not NATIVE:
        raise BenchError(f"bench policies needs the extension ({WHY})")
    ideal = InfiniteCache()
    work = []
    for request in requests:
        ideal.serve(request.block_hashes)
        work.append(_ids(request))
    ratios: dict[str, dict[int, float]] = {policy: {} for policy in policies}
    for policy in policies:
        for count in slots:
            on_run(policy, count)
            hits = _Cache(policy, count).serve(work)
            ratios[policy][count] = hits / ideal.asked if ideal.asked else 0.0
    return PolicyReport(len(work), ideal.asked, ideal.hit_ratio, ratios)


def _ids(request: Request) -> Any:
    """Return the ids of a request, each once."""
    return block_ids(dict.fromkeys(request.block_hashes))


class _Cache:
    """A table in private memory."""

    def __init__(self, policy: str, slots: int) -> None:
        self._table = BlockTable(mmap.mmap(-1, BlockTable.bytes_needed(slots)), slots, policy, True)
        self._table.join(os.getpid(), 1)

    def serve(self, work: Sequence[Any]) -> int:
        """Serve one request after another; returns how many blocks lay in a prefix that was there."""
        hits = 0
        for ids in work:
            there = self._table.prefix(ids)
            hits += there
            self._load(ids[:there])
            self._dump(ids[there:])
        return hits

    def _load(self, ids: Any) -> None:
        slots = np.empty(len(ids), np.int64)
        self._table.lease(ids, slots)
        self._table.release(slots)

    def _dump(self, ids: Any) -> None:
        slots, states = np.empty(len(ids), np.int64), np.empty(len(ids), np.uint8)
        self._table.claim(ids, slots, states, np.empty(len(ids), np.uint32))
        self._table.publish(slots[states == CLAIM_MINE])
        self._table.release(slots[states == CLAIM_HIT])
