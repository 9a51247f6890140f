"""A process that works on a small store which others share: ``python -m tests.slab.worker DIRECTORY SEED ACTIONS``.

Whatever it loads is compared with what the block must be. It says "ready" when its store is open, and "done" with what
it did after so many actions (0: until it is killed).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any

import numpy as np

import ucm_async as ucm
from ucm_async import Status

from .support import BLOCK, content, keys

NUMBERS = 240
"""Blocks that there are in the world; the store has room for fewer."""

CAPACITY = 96


async def work(directory: str, seed: int, actions: int) -> Counter[str]:
    generator = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    async with ucm.open_store("Slab", **worker_keys(directory)) as store:
        print("ready", flush=True)
        number = 0
        while number < actions or not actions:
            number += 4
            await asyncio.gather(*(act(store, generator, counts) for _ in range(4)))
    return counts


def worker_keys(directory: str) -> dict[str, Any]:
    return keys(directory, capacity=CAPACITY, partial_blocks_max=6)


async def act(store: ucm.Store, generator: np.random.Generator, counts: Counter[str]) -> None:
    numbers = generator.choice(NUMBERS, size=int(generator.integers(1, 12)), replace=False)
    ids = ucm.block_ids(numbers.tolist())
    what = generator.choice(["dump", "dump", "shards", "load", "load", "load", "delete"])
    if what == "dump":
        durability = "synced" if generator.random() < 0.2 else "stored"
        result = await store.dump(ids, None, content(ids), durability=durability)
        assert set(result.status.tolist()) <= {Status.OK, Status.NO_SPACE}, dict(result.failures)
        counts["dumped"] += int(result.ok.sum())
    elif what == "shards":
        rows = content(ids).reshape(len(ids), 4, -1)
        for shard in generator.permutation(4).tolist()[: int(generator.integers(1, 5))]:
            await store.dump(ids, [shard] * len(ids), rows[:, shard].copy())
        counts["in shards"] += len(ids)
    elif what == "load":
        out = np.zeros((len(ids), BLOCK), dtype=np.uint8)
        result = await store.load(ids, None, out)
        assert set(result.status.tolist()) <= {Status.OK, Status.MISS}, dict(result.failures)
        assert (out[result.ok] == content(ids)[result.ok]).all(), "wrong bytes"
        counts["loaded"] += int(result.ok.sum())
        counts["missed"] += int((~result.ok).sum())
    else:
        await store.delete(ids[:2])
        counts["deleted"] += 2


if __name__ == "__main__":
    done = asyncio.run(work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    print("done", json.dumps(done), flush=True)
