"""What a seed stands for: a machine, a store, what goes wrong, and what is asked of it. Data, drawn before the run.

Steps do not depend on each other's outcome, so the first K of them are a plan as well: the way to a shorter failure.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from ...types import Durability
from .faults import FaultRates

__all__ = ["STEPS", "Plan", "Setting", "Step", "draw_plan"]

STEPS: Final = 16
"""Steps of a plan, unless somebody says otherwise."""

SEGMENT_PAGES: Final = 8
"""A slab has a page before its slots; where space is short, a segment has one slot, and there are as many blocks."""

CODED_SCALE: Final = 8
"""Blocks in slabs below a codec are so many times as large as others."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The machine and the store of a seed.

    Attributes
    ----------
    blocks
        How many ids there are.
    shards, shard_bytes
        Of a block.
    processes
        Stores open at a time, each in a process of its own, on one disk.
    sector_bytes, direct, capacity_bytes
        Of the disk.
    rates
        What goes wrong while the steps run.
    queue_number, queue_depth, io_depth, partial_blocks_max
        Configuration keys.
    cap_bytes, quota_bytes
        The bounds that the stores must keep, of all namespaces and of their own one; 0 for none.
    cache_slots, behind_blocks
        Of a Cache: its slots, and how many blocks it may owe to the stage below, 0 for the default.
    last
        How the run ends: "close", "kill" or "power cut". What was promised must then be there.
    """

    blocks: int
    shards: int
    shard_bytes: int
    processes: int
    sector_bytes: int
    direct: bool
    capacity_bytes: int
    rates: FaultRates
    queue_number: int
    queue_depth: int
    io_depth: int
    partial_blocks_max: int
    last: str
    cap_bytes: int = 0
    quota_bytes: int = 0
    cache_slots: int = 0
    behind_blocks: int = 0

    @property
    def bounded(self) -> bool:
        """Whether the stores have to keep within bounds of their own."""
        return bool(self.cap_bytes or self.quota_bytes)

    def suited_to(self, pipeline: str) -> Setting:
        """Return it as a pipeline needs it.

        Slabs have room for the first page of each segment; and below a codec larger blocks, so that there are several
        classes of slots.
        """
        slab = "Slab" in pipeline
        scale = CODED_SCALE if slab and "Compress" in pipeline else 1
        more = SEGMENT_PAGES * 4096 if slab else 0
        cap, quota = (scale * bound + more if bound else 0 for bound in (self.cap_bytes, self.quota_bytes))
        return replace(
            self,
            shard_bytes=self.shard_bytes * scale,
            cap_bytes=cap,
            quota_bytes=quota,
            capacity_bytes=scale * self.capacity_bytes + more,
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return self.shards * self.shard_bytes


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is asked, or that happens.

    Attributes
    ----------
    verb
        "dump", "load", "lease", "prefetch", "lookup", "prefix", "delete", "flush", "setup", "join" (wait for what was
        asked of the process),
        "reopen", "kill", "power cut", "hang", "flip".
    process
        Which store is asked.
    blocks, shards
        The rows of a dump or load; `shards` None: whole blocks.
    durability
        Of a dump.
    timeout_s, cancel_s
        Deadline, and when the wait for it is cancelled; None: the store's own, and never.
    registered
        Whether the memory is registered.
    seconds
        How long a hang lasts, or a lease; for "kill", operations on the disk until it happens.
    pause_s
        What passes before the next step.
    """

    verb: str
    process: int = 0
    blocks: tuple[int, ...] = ()
    shards: tuple[int, ...] | None = None
    durability: Durability = "stored"
    timeout_s: float | None = None
    cancel_s: float | None = None
    registered: bool = False
    seconds: float = 0.0
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A setting and its steps."""

    seed: int
    setting: Setting
    steps: tuple[Step, ...]


_GEOMETRIES: Final = (*((4, 1024), (2, 4096), (1, 4096), (3, 1536), (2, 2048), (8, 512)) * 4, (1, 256 << 10))
"""Shards and bytes of a shard: aligned and not, on the short way and not, and one that is loaded without a slot."""

_DURABILITIES: Final[tuple[Durability, ...]] = ("stored", "stored", "synced", "cached")
_WEIGHTS: Final = {
    "dump": 22,
    "scatter": 8,
    "load": 30,
    "crowd": 6,
    "lookup": 6,
    "prefix": 3,
    "delete": 5,
    "flush": 2,
    "setup": 1,
    "join": 10,
    "reopen": 2,
    "kill": 3,
    "power cut": 3,
    "hang": 3,
    "flip": 2,
}
_VERBS: Final = tuple(_WEIGHTS)
_SUMS: Final = tuple(sum(list(_WEIGHTS.values())[: i + 1]) for i in range(len(_WEIGHTS)))


def draw_plan(generator: random.Random, seed: int, steps: int = STEPS) -> Plan:
    """Draw a setting and `steps` steps."""
    kind = generator.choice(tuple(_KINDS))
    setting = _draw_setting(generator, kind)
    drawn: list[Step] = []
    while len(drawn) < steps:
        drawn += _draw_step(generator, setting, kind)
    return Plan(seed, setting, tuple(drawn[:steps]))


_KINDS: Final[dict[str, Callable[[random.Random], FaultRates]]] = {
    "calm": lambda _: FaultRates(),
    "slow": lambda generator: FaultRates(slow=0.3 * generator.random()),
    "errors": lambda generator: FaultRates(
        slow=0.02,
        read_error=0.4 * generator.random(),
        write_error=0.1 * generator.random(),
        sync_error=0.3 * generator.random(),
        file_error=0.05 * generator.random(),
    ),
    "syncs": lambda generator: FaultRates(sync_error=0.5 * generator.random()),
    "full": lambda generator: FaultRates(short_write=0.05 * generator.random()),
    "capped": lambda generator: FaultRates(slow=0.02 * generator.random()),
    "lying": lambda generator: FaultRates(
        short_read=0.2 * generator.random(),
        lost_write=0.1 * generator.random(),
        misdirected_write=0.1 * generator.random(),
    ),
}


def _draw_setting(generator: random.Random, kind: str) -> Setting:
    shards, shard_bytes = generator.choice(_GEOMETRIES)
    blocks = generator.choice((2, 3, 3, 4, 6))  # few: calls that overlap should meet
    file_bytes = 4096 + -(-shards * shard_bytes // 4096) * 4096
    # Room for some of the blocks, and for the few small files beside them.
    room = 4 * 4096 + file_bytes * generator.randint(1, blocks)
    bounded = kind == "capped" or generator.random() < 0.15
    bound = file_bytes * generator.randint(1, blocks) + generator.randrange(file_bytes) if bounded else 0
    quota = generator.random() < 0.4
    return Setting(
        blocks=blocks,
        shards=shards,
        shard_bytes=shard_bytes,
        processes=1 + (generator.random() < 0.3),
        sector_bytes=generator.choice((512, 512, 4096)),
        direct=generator.random() < 0.8,
        capacity_bytes=room if kind == "full" else 1 << 40,
        rates=_KINDS[kind](generator),
        queue_number=generator.choice((1, 2, 2, 3)),
        queue_depth=generator.choice((1, 4, 64)),
        io_depth=generator.choice((1, 2, 4, 16)),
        partial_blocks_max=generator.choice((2, 64, 64)),
        last=generator.choice(("close", "kill", "power cut")),
        cap_bytes=0 if quota else bound,
        quota_bytes=bound if quota else 0,
    )


def _draw_step(generator: random.Random, setting: Setting, kind: str) -> list[Step]:
    drawn = generator.random() * _SUMS[-1]
    verb = next(verb for verb, top in zip(_VERBS, _SUMS, strict=True) if drawn < top)
    step = Step(
        verb,
        process=generator.randrange(setting.processes),
        pause_s=generator.choice((0.0, 0.0, 1e-5, 1e-4, 1e-3)) * generator.random(),
    )
    if verb in ("scatter", "crowd"):
        return (_scatter if verb == "scatter" else _crowd)(generator, setting, step)
    if verb in ("dump", "load"):
        return [_draw_rows(generator, setting, step)]
    if verb in ("lookup", "prefix", "delete"):
        if verb == "delete":
            return [replace(step, blocks=(_draw_block(generator, setting),))]
        count = generator.randint(1, setting.blocks)
        return [replace(step, blocks=tuple(generator.sample(range(setting.blocks), count)))]
    if verb == "hang":
        return [replace(step, seconds=generator.choice((0.01, 0.3, 5.0)))]
    if verb == "kill":
        return [replace(step, seconds=float(generator.randint(0, 40)))]
    if verb == "flip" and kind != "lying":
        return [replace(step, verb="join")]
    return [step]


def _draw_rows(generator: random.Random, setting: Setting, step: Step) -> Step:
    """Draw what a dump or a load moves, and how long it may take."""
    count = generator.choice((1, 1, 1, 2, setting.blocks))
    blocks = [_draw_block(generator, setting) for _ in range(min(count, setting.blocks))]
    shards: tuple[int, ...] | None = None
    if setting.shards > 1 and generator.random() < 0.4:
        pairs = dict.fromkeys((block, generator.randrange(setting.shards)) for block in blocks for _ in range(2))
        rows = list(pairs)
        generator.shuffle(rows)
        blocks, shards = [block for block, _ in rows], tuple(shard for _, shard in rows)
    elif step.verb == "dump":
        blocks = list(dict.fromkeys(blocks))
    return replace(
        step,
        blocks=tuple(blocks),
        shards=shards,
        durability=generator.choice(_DURABILITIES),
        registered=generator.random() < 0.25,
        **_draw_patience(generator),
    )


def _draw_block(generator: random.Random, setting: Setting) -> int:
    """Draw one block; every other time it is the first."""
    return 0 if generator.random() < 0.5 else generator.randrange(setting.blocks)


def _draw_patience(generator: random.Random) -> dict[str, Any]:
    chance = generator.random()
    if chance < 0.6:
        return {}
    if chance < 0.8:
        return {"timeout_s": generator.choice((0.0, 2e-4, 2e-3)) * generator.random()}
    return {"cancel_s": generator.choice((0.0, 2e-4, 1e-3)) * generator.random()}


def _crowd(generator: random.Random, setting: Setting, step: Step) -> list[Step]:
    """Give up a load whose reads are under way, and load as much again and again: the next ones take other slots."""
    everything = tuple(range(setting.blocks))
    stored = replace(step, verb="dump", blocks=everything)
    load = replace(step, verb="load", blocks=everything, pause_s=1e-4)
    gives_up = replace(load, timeout_s=2e-4 + 1e-3 * generator.random(), pause_s=2e-3)
    return [stored, replace(step, verb="join"), gives_up, load, load, load]


def _scatter(generator: random.Random, setting: Setting, step: Step) -> list[Step]:
    """Dump the shards of one block from several tasks, in any order, all of them under way together."""
    block = _draw_block(generator, setting)
    shards = list(range(setting.shards))
    generator.shuffle(shards)
    durability = generator.choice(_DURABILITIES)
    steps = []
    while shards:
        count = generator.randint(1, len(shards))
        part, shards = shards[:count], shards[count:]
        steps.append(
            replace(step, verb="dump", blocks=(block,) * count, shards=tuple(part), durability=durability, pause_s=0.0)
        )
    return steps
