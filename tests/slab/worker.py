"""A process on a small store which others share: ``python -m tests.slab.worker PIPELINE DIRECTORY SEED ACTIONS``.

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
from ucm_async.types import U8

from .support import BLOCK, content, keys

NUMBERS = 240
"""Blocks that there are in the world; the store has room for fewer."""

CAPACITY = 96


def bytes_of(pipeline: str, ids: U8) -> U8:
    """The bytes of blocks; below a codec, half of the blocks are shorter."""
    blocks = content(ids)
    if "Compress" in pipeline:
        blocks[ids[:, 0] % 2 == 0] &= np.tile(np.array([0xFF, 0x80], dtype=np.uint8), BLOCK // 2)  # exponents of a bit
    return blocks


async def work(pipeline: str, directory: str, seed: int, actions: int) -> Counter[str]:
    generator = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    async with ucm.open_store(pipeline, **worker_keys(directory, seed)) as store:
        print("ready", flush=True)
        number = 0
        while number < actions or not actions:
            number += 4
            await asyncio.gather(*(act(store, pipeline, generator, counts) for _ in range(4)))
    return counts


def worker_keys(directory: str, seed: int = 0) -> dict[str, Any]:
    """Keys of a worker's store; one in three has a lower cap than the others, so it removes segments beside them."""
    return keys(directory, capacity=CAPACITY - 24 * (seed % 3 == 2), partial_blocks_max=6)


async def act(store: ucm.Store, pipeline: str, generator: np.random.Generator, counts: Counter[str]) -> None:
    numbers = generator.choice(NUMBERS, size=int(generator.integers(1, 12)), replace=False)
    ids = ucm.block_ids(numbers.tolist())
    what = generator.choice(["dump", "dump", "shards", "load", "load", "load", "delete"])
    if what == "dump":
        durability = "synced" if generator.random() < 0.2 else "stored"
        result = await store.dump(ids, None, bytes_of(pipeline, ids), durability=durability)
        assert set(result.status.tolist()) <= {Status.OK, Status.NO_SPACE}, dict(result.failures)
        counts["dumped"] += int(result.ok.sum())
    elif what == "shards":
        rows = bytes_of(pipeline, ids).reshape(len(ids), 4, -1)
        for shard in generator.permutation(4).tolist()[: int(generator.integers(1, 5))]:
            await store.dump(ids, [shard] * len(ids), rows[:, shard].copy())
        counts["in shards"] += len(ids)
    elif what == "load":
        out = np.zeros((len(ids), BLOCK), dtype=np.uint8)
        result = await store.load(ids, None, out)
        assert set(result.status.tolist()) <= {Status.OK, Status.MISS}, dict(result.failures)
        assert (out[result.ok] == bytes_of(pipeline, ids)[result.ok]).all(), "wrong bytes"
        counts["loaded"] += int(result.ok.sum())
        counts["missed"] += int((~result.ok).sum())
    else:
        await store.delete(ids[:2])
        counts["deleted"] += 2


if __name__ == "__main__":
    done = asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    print("done", json.dumps(done), flush=True)
