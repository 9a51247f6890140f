"""The benchmark of space: the cap under traffic, and what collection costs the loads beside it.

One store with a cap takes new blocks at a steady pace, while clients load blocks that stay hot. Segments take turns: in
one there is room, made before it began by deleting what is cold; in the next the store is full, so what is written
must be collected. Both have the same loads and the same dumps.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..types import U8
from .blocks import BlockMaker
from .measure import Finding, Spread, percentiles
from .memory import huge_rows
from .setting import BenchError, Setting, numbered_ids, require_ok
from .usage import Peak, watch_peak

if TYPE_CHECKING:
    from ..store import Store

__all__ = ["SpaceSetting", "measure_space"]

HIGH: Final = 0.95
"""The store's default mark at which collection begins."""

SEGMENT_SHARE: Final = 0.25
"""Of the cap, so much is written in a segment."""

HOT_SHARE: Final = 1 / 16
DUMP_BLOCKS: Final = 4
LOAD_BLOCKS: Final = 4
CLIENTS: Final = 2
PAUSE_S: Final = 0.001
"""Between two loads of a client."""

IDLE_POLL_S: Final = 0.005
SEEN: Final = "collecting"


@dataclass(frozen=True, slots=True)
class SpaceSetting(Setting):
    """One run of the benchmark.

    Attributes
    ----------
    block_bytes
        Of a block.
    capacity_bytes
        The cap.
    write_bytes
        What is written in all segments together, at least two.
    seconds
        How long that should take.
    """

    block_bytes: int = 1 << 20
    capacity_bytes: int = 1 << 30
    write_bytes: int = 2 << 30
    seconds: float = 60.0


@dataclass(slots=True)
class _Seen:
    """Latencies of loads in segments of one kind, in milliseconds, by round."""

    rounds: list[list[float]] = field(default_factory=list)
    while_collecting: list[float] = field(default_factory=list)

    @property
    def all(self) -> list[float]:
        return [one for some in self.rounds for one in some]


class _Run:
    """The traffic on one store."""

    def __init__(self, setting: SpaceSetting, store: Store, maker: BlockMaker) -> None:
        self.setting = setting
        self.store = store
        self.maker = maker
        self.blocks = setting.capacity_bytes // (setting.block_bytes + 4096)
        self.segment_blocks = max(DUMP_BLOCKS, int(self.blocks * SEGMENT_SHARE))
        self.hot = numbered_ids(0, max(LOAD_BLOCKS, int(self.blocks * HOT_SHARE)))
        self.cold: deque[int] = deque()
        self.next = len(self.hot)
        self.source = huge_rows(DUMP_BLOCKS, setting.block_bytes)
        self.pace_s = setting.seconds * DUMP_BLOCKS * setting.block_bytes / setting.write_bytes
        self.written = self.refused = self.missed = 0
        self.generator = np.random.default_rng(1)

    def space(self) -> dict[str, Any]:
        """What the store says of its space."""
        return dict(self.store.statistics().pipeline["Posix"]["stage"]["space"])

    async def fill(self) -> None:
        """Store what is loaded later."""
        for at in range(0, len(self.hot), DUMP_BLOCKS):
            ids = self.hot[at : at + DUMP_BLOCKS]
            require_ok("dump", [await self.store.dump(ids, None, await asyncio.to_thread(self.maker.make, ids))])

    async def make_room(self) -> None:
        """Delete what is cold until a segment fits below the mark at which collection begins."""
        await self.rest()
        room = int(self.blocks * HIGH) - self.segment_blocks - 2 * DUMP_BLOCKS
        used = self.space()["used_bytes"] // (self.setting.block_bytes + 4096)
        while used > room and self.cold:
            ids = numbered_ids(self.cold.popleft(), 1)
            there = int((await self.store.lookup(ids)).sum())
            await self.store.delete(ids)
            used -= there

    async def rest(self) -> None:
        """Wait until nothing is collected."""
        while self.space()[SEEN]:
            await asyncio.sleep(IDLE_POLL_S)

    async def fill_up(self) -> None:
        """Dump until collection has begun."""
        before = self.space()["collected"]["runs"]
        while self.space()["collected"]["runs"] == before:
            await self.dump_some()
            await asyncio.sleep(IDLE_POLL_S)

    async def dump_some(self) -> None:
        """Dump some new blocks."""
        ids = numbered_ids(self.next, DUMP_BLOCKS)
        self.cold.extend(range(self.next, self.next + DUMP_BLOCKS))
        self.next += DUMP_BLOCKS
        source = await asyncio.to_thread(self.maker.make, ids, self.source)
        result = await self.store.dump(ids, None, source)
        self.written += int(result.ok.sum())
        self.refused += int((~result.ok).sum())

    async def segment(self, seen: _Seen) -> None:
        """Dump a segment's blocks at the pace, and load meanwhile."""
        seen.rounds.append([])
        done = asyncio.Event()
        clients = [asyncio.create_task(self.client(seen, done)) for _ in range(CLIENTS)]
        due = time.perf_counter()
        for _ in range(0, self.segment_blocks, DUMP_BLOCKS):
            await self.dump_some()
            due = max(due + self.pace_s, time.perf_counter() - self.pace_s)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        done.set()
        await asyncio.gather(*clients)

    async def client(self, seen: _Seen, done: asyncio.Event) -> None:
        """Load hot blocks and compare them."""
        out = huge_rows(LOAD_BLOCKS, self.setting.block_bytes)
        while not done.is_set():
            ids = self.hot[self.generator.choice(len(self.hot), LOAD_BLOCKS, replace=False)]
            collecting = self.space()[SEEN]
            began = time.perf_counter()
            result = await self.store.load(ids, None, out)
            took_ms = (time.perf_counter() - began) * 1e3
            seen.rounds[-1].append(took_ms)
            if collecting or self.space()[SEEN]:
                seen.while_collecting.append(took_ms)
            self.missed += int((~result.ok).sum())
            await asyncio.to_thread(self.compare, ids[result.ok], out[result.ok])
            await asyncio.sleep(PAUSE_S)

    def compare(self, ids: U8, blocks: U8) -> None:
        """Raise BenchError if a loaded byte is wrong."""
        if self.maker.wrong_bytes(blocks, ids).any():
            raise BenchError("load: a block has wrong bytes")


async def measure_space(setting: SpaceSetting, on_case: Callable[[str], None] = lambda _name: None) -> list[Finding]:
    """Run the benchmark.

    Parameters
    ----------
    setting
        What is run.
    on_case
        Told what is going on.

    Raises
    ------
    BenchError
        There is no room on the disk, the cap is too small, or a byte was wrong.
    """
    if setting.capacity_bytes < 64 * setting.block_bytes:
        raise BenchError(f"--capacity-gb: {setting.capacity_bytes} bytes, must be at least 64 blocks")
    capacity_gb = setting.capacity_bytes / (1 << 30)
    maker = await asyncio.to_thread(BlockMaker, setting.block_bytes)
    quiet, collecting = _Seen(), _Seen()
    async with setting.folder("space", setting.capacity_bytes + (1 << 28)) as folder:
        watch = watch_peak(folder)
        peak = await asyncio.to_thread(watch.__enter__)
        try:
            async with setting.open_store(folder, setting.block_bytes, posix_capacity_gb=capacity_gb) as store:
                run = _Run(setting, store, maker)
                await run.fill()
                while run.written * setting.block_bytes < setting.write_bytes or not collecting.rounds:
                    on_case(f"{run.written * setting.block_bytes >> 20} of {setting.write_bytes >> 20} MiB written")
                    await run.make_room()
                    await run.segment(quiet)
                    await run.fill_up()
                    await run.segment(collecting)
                space = run.space()
        finally:
            await asyncio.to_thread(watch.__exit__, None, None, None)
    return _findings(setting, run, space, peak, quiet, collecting)


def _findings(
    setting: SpaceSetting, run: _Run, space: dict[str, Any], peak: Peak, quiet: _Seen, collecting: _Seen
) -> list[Finding]:
    found = []
    for percent in (50, 99):
        rounds = zip(collecting.rounds, quiet.rounds, strict=True)
        of = [(np.percentile(a, percent), np.percentile(b, percent)) for a, b in rounds]
        found.append(
            Finding(
                "latency",
                f"p{percent} of {LOAD_BLOCKS} blocks while the store is full",
                Spread.of([float(a) for a, _ in of]),
                "ms",
                "with room",
                Spread.of([float(b) for _, b in of]),
                Spread.of([float(a / b) for a, b in of]),
                ("<=", 2.0) if percent == 99 else None,
            )
        )
    if collecting.while_collecting:
        during, without = percentiles(collecting.while_collecting), percentiles(quiet.all)
        found.append(
            Finding(
                "latency",
                f"p99 of loads that met collection, {len(collecting.while_collecting):,} of them",
                Spread.of([during["p99"]]),
                "ms",
                f"{len(quiet.all):,} with room",
                Spread.of([without["p99"]]),
                Spread.of([during["p99"] / without["p99"]]),
                ("<=", 2.0),
                {"while_collecting": during, "with_room": without},
            )
        )
    cap = setting.capacity_bytes
    detail = {
        "written_blocks": run.written,
        "written_bytes": run.written * setting.block_bytes,
        "refused_blocks": run.refused,
        "missed_blocks": run.missed,
        "looks": peak.looks,
        "collected": space["collected"],
    }
    use = Finding(
        "cap",
        f"peak disk use, {peak.looks:,} looks, {run.written * setting.block_bytes / 1e9:.1f} GB written",
        Spread.of([peak.nbytes / 1e6]),
        "MB",
        "the cap",
        Spread.of([cap / 1e6]),
        Spread.of([peak.nbytes / cap]),
        ("<=", 1.0),
        detail,
    )
    return [*found, use]
