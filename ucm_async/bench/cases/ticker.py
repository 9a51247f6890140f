"""How late a 1 ms ticker gets on the store's loop while 1 GiB is loaded and 1 GiB is dumped."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from ...types import U8
from ..measure import Finding, Spread, percentiles
from ..setting import Setting, numbered_ids, prepare_blocks, require_ok

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["measure"]

_BLOCK_BYTES: Final = 1 << 20
_CALL_BLOCKS: Final = 256
_PERIOD_S: Final = 0.001
_IDLE_S: Final = 1.0
_PERCENTS: Final = (50, 99, 99.9)
_GOAL_MS: Final = 5.0


async def measure(setting: Setting) -> list[Finding]:
    """Tick on an idle loop, then while loads and dumps run side by side."""
    blocks = setting.busy_blocks
    stored = numbered_ids(0, blocks)
    need = (setting.rounds + 1) * blocks * _BLOCK_BYTES
    async with setting.folder("ticker", need) as folder:
        into, out_of = [await prepare_blocks(stored[:_CALL_BLOCKS], _BLOCK_BYTES) for _ in range(2)]
        async with setting.open_store(folder, _BLOCK_BYTES) as store:
            await _dump(store, stored, out_of)
            async with _ticking() as idle:
                await asyncio.sleep(_IDLE_S)
            rounds = []
            for number in range(setting.rounds):
                fresh = numbered_ids((number + 1) * blocks, blocks)
                async with _ticking() as late:
                    await asyncio.gather(_load(store, stored, into), _dump(store, fresh, out_of))
                rounds.append(late)
    every = [one for late in rounds for one in late]
    worst = Spread.of([percentiles(late, _PERCENTS)["p99.9"] for late in rounds])
    overall = {key: round(ms, 3) for key, ms in percentiles(every, _PERCENTS).items()}
    # The promise is of all ticks; a single round has too few for its 99.9th percentile to be more than its maximum.
    value = Spread(overall["p99.9"], worst.low, worst.high)
    detail = {
        "ticks": len(every),
        "busy_ms": overall,
        "idle_ms": {key: round(ms, 3) for key, ms in percentiles(idle, _PERCENTS).items()},
    }
    return [Finding("ticker", "1 ms ticker, p99.9 late by", value, "ms", goal=("<=", _GOAL_MS), detail=detail)]


@contextlib.asynccontextmanager
async def _ticking() -> AsyncIterator[list[float]]:
    """Tick inside the block; the list gets the lateness of each tick, in milliseconds."""
    late_ms: list[float] = []
    task = asyncio.create_task(_tick(late_ms))
    await asyncio.sleep(_PERIOD_S)
    late_ms.clear()
    try:
        yield late_ms
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _tick(late_ms: list[float]) -> None:
    last = time.perf_counter()
    while True:
        await asyncio.sleep(_PERIOD_S)
        now = time.perf_counter()
        late_s, last = now - last - _PERIOD_S, now
        # A long stall stands for every tick that should have come while it lasted, not for one.
        while True:
            late_ms.append(late_s * 1e3)
            late_s -= _PERIOD_S
            if late_s < _PERIOD_S:
                break


async def _load(store: Store, ids: U8, memory: U8) -> None:
    for start in range(0, len(ids), _CALL_BLOCKS):
        part = ids[start : start + _CALL_BLOCKS]
        require_ok("load", [await store.load(part, None, memory[: len(part)])])


async def _dump(store: Store, ids: U8, memory: U8) -> None:
    for start in range(0, len(ids), _CALL_BLOCKS):
        part = ids[start : start + _CALL_BLOCKS]
        require_ok("dump", [await store.dump(part, None, memory[: len(part)])])
