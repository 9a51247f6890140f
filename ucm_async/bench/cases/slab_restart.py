"""How long a store with many blocks takes until it is open again, and whether it knows all of them then."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Final

from ..measure import Finding, Spread
from ..memory import huge_rows
from ..setting import BenchError, numbered_ids, require_ok
from ..slab import SlabSetting, slot_bytes

__all__ = ["measure"]

_GOALS_S: Final = {"checkpoint": 2.0, "headers": 10.0}
_AT_ONCE: Final = 2000


async def measure(setting: SlabSetting) -> list[Finding]:
    """Fill a store, and open it again and again, from its checkpoint and without."""
    blocks, block_bytes = setting.restart_blocks, setting.restart_block_bytes
    ids = numbered_ids(0, blocks)
    memory = huge_rows(min(blocks, _AT_ONCE), block_bytes)
    times: dict[str, list[float]] = {where: [] for where in _GOALS_S}
    keys = {"posix_capacity_gb": 1.25 * blocks * slot_bytes(block_bytes) / (1 << 30)}
    async with setting.folder("slab-restart", 2 * blocks * slot_bytes(block_bytes)) as folder:
        async with setting.open_store(folder, block_bytes, "Slab", **keys) as store:
            for start in range(0, blocks, _AT_ONCE):
                part = ids[start : start + _AT_ONCE]
                require_ok("dump", [await store.dump(part, None, memory[: len(part)])])
        for _, where in itertools.product(range(setting.rounds), times):
            if where == "headers":
                await asyncio.to_thread(_remove_checkpoint, folder)
            began = time.perf_counter()
            async with setting.open_store(folder, block_bytes, "Slab", **keys) as store:
                times[where].append(time.perf_counter() - began)
                if not (await store.lookup(ids)).all():
                    raise BenchError(f"opened from its {where}, the store misses blocks")
    what = f"{blocks} blocks, from "
    return [
        Finding("restart", what + where, Spread.of(taken), "s", goal=("<=", _GOALS_S[where]))
        for where, taken in times.items()
    ]


def _remove_checkpoint(folder: Path) -> None:
    (found,) = folder.glob("*/slab/checkpoint")
    found.unlink()
