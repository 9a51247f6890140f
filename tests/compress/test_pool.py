"""The pool leases each context to one at a time, first come first served."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from ucm_async.errors import StoreClosedError, WouldBlock
from ucm_async.stages.compress.codecs import Context, make_codec
from ucm_async.stages.compress.pool import ContextPool

from .tools import decoded, encode, kv_blocks


async def test_contexts_are_made_at_set_up_and_lent_once() -> None:
    pool = await ContextPool.create(3, 10_000)
    leased = [pool.lease_nowait() for _ in range(3)]
    assert len({id(one) for one in leased}) == 3
    assert all(one.shard_bytes == 10_000 for one in leased)
    with pytest.raises(WouldBlock, match="0 of 3 contexts free, 0 waiting"):
        pool.lease_nowait()
    pool.release(leased[1])
    assert pool.lease_nowait() is leased[1], "the one used last is still in the processor's cache"
    told = pool.statistics()
    assert told["context_bytes"] == sum(one.nbytes for one in leased) > 3 * 10_000
    assert (told["contexts"], told["leased"], told["leased_max"], told["leases"]) == (3, 3, 3, 4)
    assert (told["waits"], told["waiting"], told["waited_s"]) == (0, 0, 0.0)


async def test_waiters_are_served_in_order_and_counted() -> None:
    pool = ContextPool(1, 1000)
    first = await pool.lease()
    order: list[int] = []

    async def wait(number: int) -> None:
        async with pool.leased():
            order.append(number)

    tasks = [asyncio.ensure_future(wait(i)) for i in range(3)]
    await asyncio.sleep(0.01)
    assert pool.statistics()["waiting"] == 3
    with pytest.raises(WouldBlock):
        pool.lease_nowait()
    pool.release(first)
    await asyncio.gather(*tasks)
    told = pool.statistics()
    assert order == [0, 1, 2]
    assert (told["waits"], told["leased"], told["leased_max"]) == (3, 0, 1)
    assert told["waited_s"] >= told["waited_s_max"] >= 0.009


async def test_a_cancelled_wait_leases_nothing() -> None:
    pool = ContextPool(1, 1000)
    held = await pool.lease()
    waiting = asyncio.ensure_future(pool.lease())
    crossed = asyncio.ensure_future(pool.lease())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    pool.release(held)  # grants the second one ...
    crossed.cancel()  # ... which gives up in the same turn
    await asyncio.gather(crossed, return_exceptions=True)
    assert pool.statistics()["leased"] == 0
    assert pool.lease_nowait() is held


async def test_what_is_given_back_wrongly() -> None:
    pool, other = ContextPool(1, 100), ContextPool(1, 100)
    context = pool.lease_nowait()
    with pytest.raises(RuntimeError, match="another pool"):
        other.release(context)
    pool.release(context)
    with pytest.raises(RuntimeError, match="released twice"):
        pool.release(context)
    with pytest.raises(RuntimeError, match="another pool"):
        pool.release(Context(100))
    with pytest.raises(ValueError, match="contexts: 0, must be at least 1"):
        ContextPool(0, 100)


async def test_closing_ends_the_waits() -> None:
    pool = ContextPool(1, 100)
    held = pool.lease_nowait()
    waiting = asyncio.ensure_future(pool.lease())
    await asyncio.sleep(0)
    pool.close()
    pool.close()
    with pytest.raises(StoreClosedError):
        await waiting
    with pytest.raises(StoreClosedError):
        await pool.lease()
    with pytest.raises(StoreClosedError):
        pool.lease_nowait()
    pool.release(held)


async def test_jobs_in_threads() -> None:
    """Many jobs on few contexts: never two threads in one, every block right."""
    pool = await ContextPool.create(2, 20_000)
    codec = make_codec("zstd")
    rng = random.Random(1)

    def job(context: Context, start: int) -> bool:
        raw = np.ascontiguousarray(kv_blocks()[0][start : start + 20_000])
        return bool(np.array_equal(decoded(encode(codec, raw, context), context), raw))

    async def one() -> bool:
        async with pool.leased() as context:
            return await asyncio.to_thread(job, context, rng.randrange(0, 300_000))

    assert all(await asyncio.gather(*(one() for _ in range(20))))
    told = pool.statistics()
    assert told["leased"] == 0 and told["leases"] == 20 and told["leased_max"] == 2 and told["waits"] == 18
