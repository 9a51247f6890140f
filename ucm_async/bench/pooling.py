"""What the pools of the Compress stage save: the same jobs with leased contexts and slots, and with fresh ones each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..coding import Codings
from ..engines.arena import Arena
from ..stages.compress.codecs import Codec, Context
from ..stages.compress.pool import ContextPool
from .beside import Job

__all__ = ["fresh_job", "pooled_job"]


@contextmanager
def pooled_job(codec: Codec, codings: Codings, shard_bytes: int) -> Iterator[Job]:
    """Yield a job that encodes the first shard with a context and into a slot that it leases, as the stage does."""
    one = codings[:1].copy()
    pool, slots = ContextPool(1, shard_bytes), Arena(shard_bytes, 1)

    def job() -> None:
        context, slot = pool.lease_nowait(), slots.lease_nowait(1)
        one["target"] = slots.address(slot)
        codec.encode(one, context)
        slots.release(slot)
        pool.release(context)

    try:
        yield job
    finally:
        slots.close()
        pool.close()


def fresh_job(codec: Codec, codings: Codings, shard_bytes: int) -> Job:
    """Return a job that encodes the first shard with a context and into memory of its own."""
    one = codings[:1].copy()

    def job() -> None:
        context, memory = Context(shard_bytes), np.empty(shard_bytes, np.uint8)
        one["target"] = memory.ctypes.data
        codec.encode(one, context)

    return job
