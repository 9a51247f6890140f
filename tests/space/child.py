"""A process of the kill tests: ``python -m tests.space.child DIRECTORY CAPACITY SEED`` fills a capped store for ever.

It says a line when its store is open, and one whenever it begins to collect. It ends with an error if a byte is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator

import numpy as np

import ucm_async as ucm
from ucm_async import Status
from ucm_async.engines.system import System, use_system
from ucm_async.types import U8

from .support import BLOCK, content, keys

IDS = 200
"""Of so many blocks each process dumps and loads some, so that they meet."""


class Telling(System):
    """The real system, which says when blocks are collected."""

    @contextlib.contextmanager
    def collecting(self, ids: U8) -> Iterator[None]:
        print("collecting", flush=True)
        yield


async def work(store: ucm.Store, seed: int) -> None:
    generator = np.random.default_rng(seed)
    while True:
        ids = ucm.block_ids(generator.choice(IDS, generator.integers(1, 9), replace=False).tolist())
        durability = ("stored", "synced")[int(generator.random() < 0.1)]
        if generator.random() < 0.3:
            shard = int(generator.integers(4))
            part = np.ascontiguousarray(content(ids).reshape(len(ids), 4, -1)[:, shard])
            await store.dump(ids, [shard] * len(ids), part)
        else:
            dumped = await store.dump(ids, None, content(ids), durability=durability)  # type: ignore[arg-type]
            assert set(dumped.status.tolist()) <= {Status.OK, Status.NO_SPACE}, dumped.failures
        out = np.zeros((len(ids), BLOCK), np.uint8)
        loaded = await store.load(ids, None, out)
        assert set(loaded.status.tolist()) <= {Status.OK, Status.MISS}, loaded.failures
        assert (out[loaded.ok] == content(ids)[loaded.ok]).all()


async def main(directory: str, capacity: int, seed: int) -> None:
    with use_system(Telling()):
        store = await ucm.open_store("Posix", **keys(directory, capacity=capacity, partial_blocks_max=8))
    print("ready", flush=True)
    await asyncio.gather(*(work(store, 3 * seed + n) for n in range(3)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
