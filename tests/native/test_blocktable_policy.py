"""Eviction against models in Python, written from the papers; and what scans do to each policy."""

from __future__ import annotations

from collections import OrderedDict, deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .tables import HIT, MINE, POLICIES, Table, name, names, new_memory


class Lru:
    """The tail of a list in order of use goes."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.order = capacity, OrderedDict[int, None]()

    def access(self, key: int) -> bool:
        if key in self.order:
            self.touch(key)
            return True
        if len(self.order) == self.capacity:
            self.order.popitem(last=False)
        self.order[key] = None
        return False

    def touch(self, key: int) -> None:
        self.order.move_to_end(key)

    def resident(self) -> set[int]:
        return set(self.order)


class Fifo(Lru):
    """The same in order of arrival."""

    def touch(self, key: int) -> None:
        pass


class Sieve:
    """Algorithm 1 of "SIEVE is simpler than LRU" (NSDI 2024)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.queue: list[int] = []  # head first
        self.visited: dict[int, bool] = {}
        self.hand: int | None = None

    def access(self, key: int) -> bool:
        if key in self.visited:
            self.visited[key] = True
            return True
        if len(self.queue) == self.capacity:
            self.evict()
        self.queue.insert(0, key)
        self.visited[key] = False
        return False

    def evict(self) -> None:
        at = len(self.queue) - 1 if self.hand is None else self.queue.index(self.hand)
        while self.visited[self.queue[at]]:
            self.visited[self.queue[at]] = False
            at = at - 1 if at else len(self.queue) - 1
        self.hand = self.queue[at - 1] if at else None
        del self.visited[self.queue.pop(at)]

    def resident(self) -> set[int]:
        return set(self.queue)


class S3Fifo:
    """Algorithm 1 of "FIFO queues are all you need for cache eviction" (SOSP 2023), one victim at a time.

    Where a promotion overfills the main queue the paper evicts from it at once; here the small queue is below its share
    then, so that the main queue gives the victim. The small queue has five eighths, and one use is enough: see
    ext/policy.c.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.share = capacity, max(1, capacity * 5 // 8)
        self.small, self.main = deque[int](), deque[int]()  # head left
        self.uses: dict[int, int] = {}
        self.ghosts: dict[int, int] = {}
        self.ghosts_made = 0

    def access(self, key: int) -> bool:
        if key in self.uses:
            self.uses[key] = min(3, self.uses[key] + 1)
            return True
        if len(self.uses) == self.capacity:
            self.evict()
        self.uses[key] = 0
        (self.main if self.is_ghost(key) else self.small).appendleft(key)
        self.ghosts.pop(key, None)
        return False

    def is_ghost(self, key: int) -> bool:
        return self.ghosts_made - self.ghosts.get(key, -self.capacity) < self.capacity

    def evict(self) -> None:
        while True:
            if self.small and (len(self.small) >= self.share or not self.main):
                key = self.small.pop()
                if self.uses[key]:
                    self.uses[key] = 0
                    self.main.appendleft(key)
                    continue
                self.ghosts_made += 1
                self.ghosts[key] = self.ghosts_made
            else:
                key = self.main.pop()
                if self.uses[key]:
                    self.uses[key] -= 1
                    self.main.appendleft(key)
                    continue
            del self.uses[key]
            return

    def resident(self) -> set[int]:
        return set(self.uses)


MODELS = {"lru": Lru, "fifo": Fifo, "sieve": Sieve, "s3fifo": S3Fifo}
assert set(MODELS) == set(POLICIES)


class Cache:
    """The table, used like a cache whose blocks are there at once."""

    def __init__(self, capacity: int, policy: str) -> None:
        self.table = Table(new_memory(capacity), capacity, policy, create=True)

    def access(self, key: int) -> bool:
        claim = self.table.claim_one(name(key))
        if claim.state == HIT:
            self.table.release([claim.slot])
            return True
        assert claim.state == MINE
        self.table.publish([claim.slot])
        return False

    def resident(self, keys: range) -> set[int]:
        return {key for key, there in zip(keys, self.table.probe(names(keys)), strict=True) if there}


@pytest.mark.parametrize("policy", POLICIES)
@given(capacity=st.integers(1, 30), keys=st.lists(st.integers(0, 60), max_size=400))
@settings(max_examples=60)
def test_like_the_model(policy: str, capacity: int, keys: list[int]) -> None:
    cache, model = Cache(capacity, policy), MODELS[policy](capacity)
    for key in keys:
        assert cache.access(key) == model.access(key)
    assert cache.resident(range(61)) == model.resident()


@pytest.mark.parametrize("policy", POLICIES)
def test_like_the_model_over_a_long_skewed_trace(policy: str) -> None:
    keys = np.random.default_rng(3).zipf(1.2, 20_000) % 3000
    cache, model = Cache(300, policy), MODELS[policy](300)
    hits = [(cache.access(key), model.access(key)) for key in keys.tolist()]
    assert [one for one, _ in hits] == [other for _, other in hits]
    assert cache.resident(range(3000)) == model.resident()


@pytest.mark.parametrize(("policy", "kept"), [("s3fifo", 37), ("sieve", 60)])
def test_a_scan_leaves_what_is_used(policy: str, kept: int) -> None:
    """What was used again and again outlives ten times the capacity of blocks used once; with LRU it does not."""
    for kind, least in ((policy, kept), ("lru", 0)):
        cache = Cache(100, kind)
        used = range(kept)
        for _ in range(4):
            for key in used:
                cache.access(key)
        for key in range(1000, 2000):
            cache.access(key)
        left = len(cache.resident(used))
        assert left >= least
    assert left == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_leased_blocks_stay_and_the_rest_goes_round(policy: str) -> None:
    cache = Cache(50, policy)
    held = names(range(15))
    cache.table.fill(held)
    slots = cache.table.lease(held)
    for key in range(1000, 1300):
        assert not cache.access(key)
    assert cache.resident(range(15)) == set(range(15))
    cache.table.release(slots)
    for key in range(2000, 2600):
        cache.access(key)
    # SIEVE's hand goes round only when it spares something; until then what it has passed stays. To S3-FIFO a lease is
    # a use: they are in the main queue, which no scan comes to.
    assert cache.resident(range(15)) == (set(range(15)) if policy in ("sieve", "s3fifo") else set())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_repair_keeps_who_is_in(policy: str) -> None:
    cache = Cache(200, policy)
    for key in np.random.default_rng(5).zipf(1.3, 2000).tolist():
        cache.access(key % 500)
    before = cache.resident(range(500))
    cache.table.raw.repair()
    assert cache.resident(range(500)) == before
    for key in range(1000, 3000):
        cache.access(key)
    assert len(cache.resident(range(3000))) == 200
