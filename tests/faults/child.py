"""Processes of the fault tests: ``python -m tests.faults.child ROLE JSON``.

writer      dumps blocks for ever, or `count` of them, in several tasks at once, whole and in shards; says what is done
reader      answers each line of hex ids on stdin with one 0 or 1 an id: what lookup and a load say of them
forgetful   leaves stores open with loads and dumps under way, and ends; a few times over
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

import ucm_async as ucm

from .support import Array, by_shard, content, keys, poisoned

BLOCKS_A_DUMP = 3


async def write(about: dict[str, Any]) -> None:
    """Dump for as long as nobody kills us; several tasks side by side, some of them the same blocks."""
    async with ucm.open_store("Posix", **keys(about["directory"], **about.get("keys", {}))) as store:
        say("ready")
        numbers: Iterator[int] = itertools.count(about["first"])
        if "count" in about:
            numbers = iter(range(about["first"], about["first"] + about["count"]))
        await asyncio.gather(*(_write_some(store, numbers, seed) for seed in range(about.get("tasks", 4))))
        say("done")


async def _write_some(store: ucm.Store, numbers: Iterator[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    while some := list(itertools.islice(numbers, BLOCKS_A_DUMP)):
        ids = ucm.block_ids(some)
        durability = ("stored", "synced")[seed % 2]
        if generator.random() < 0.5:
            results = [await store.dump(ids, None, content(ids), durability=durability)]
        else:
            results = await _write_shards(store, ids, generator, durability)
        for result in results:
            result.raise_for_failures()
        say(" ".join(map(str, some)))


async def _write_shards(
    store: ucm.Store, ids: Array, generator: np.random.Generator, durability: Any
) -> list[ucm.TaskResult]:
    """Shards in random order, from two tasks."""
    rows, shards, data = by_shard(ids)
    parts = np.array_split(generator.permutation(len(rows)), 2)
    return await asyncio.gather(
        *(
            store.dump(np.ascontiguousarray(rows[part]), shards[part], data[part], durability=durability)
            for part in parts
        )
    )


async def read(about: dict[str, Any]) -> None:
    """Answer from a store of our own."""
    loop = asyncio.get_running_loop()
    async with ucm.open_store("Posix", **keys(about["directory"])) as store:
        say("ready")
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            ids = ucm.block_ids(bytes.fromhex(one) for one in line.split())
            found = await store.lookup(ids)
            out = poisoned(len(ids))
            result = await store.load(ids, None, out)
            right = result.ok & (out == content(ids)).all(axis=1)
            say("".join("1" if a and b else "0" for a, b in zip(found.tolist(), right.tolist(), strict=True)))


def forget(about: dict[str, Any]) -> None:
    """Let several loops end one after another, and the process with the last."""
    for n, run in enumerate((asyncio.run, ucm.run) * about["pairs"]):
        run(_forget_one(about, n * 0.0005))


async def _forget_one(about: dict[str, Any], wait_s: float) -> None:
    """End with everything under way: no aclose, no await."""
    store = await ucm.open_store("Posix", **keys(about["directory"], **about.get("keys", {})))
    size = store.config.block_size
    ids = ucm.block_ids(range(40))
    (await store.dump(ids, None, content(ids, size))).raise_for_failures()
    await store.delete(more := ucm.block_ids(range(1000, 1020)))
    out, source = poisoned(len(ids), size), content(more, size)
    tasks = [store.load(ids[i : i + 4], None, out[i : i + 4]) for i in range(0, 40, 4)]
    tasks += [store.dump(more[i : i + 4], None, source[i : i + 4]) for i in range(0, 20, 4)]
    await asyncio.sleep(wait_s)
    say(str(sum(task.done() for task in tasks)))


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    role, about = sys.argv[1], json.loads(sys.argv[2])
    if role == "forgetful":
        forget(about)
    else:
        main = {"writer": write, "reader": read}[role]
        (ucm.run if about.get("loop") == "uvloop" else asyncio.run)(main(about))
