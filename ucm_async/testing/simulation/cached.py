"""What a Cache adds to a plan: its size, a bound on what it owes, and calls that only it makes worth while.

Drawn by a generator of its own, from the seed: the same seed is the same machine for every pipeline.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

from .plan import Plan, Setting, Step

__all__ = ["with_cache"]

SLOTS: Final = (4, 4, 5, 8, 24)
"""The smallest cache there is, most often: what is not evicted tests little."""

SCALE: Final = 4
LARGE_BYTES: Final = 64 << 10
"""Smaller blocks are made larger: a cache is no smaller than 64 KiB."""

BEHIND_BLOCKS: Final = (0, 0, 1, 2)
SHARE_OF_CALLS: Final = 0.3
HOLD_S: Final = (0.0, 1e-4, 1e-2, 0.3)
"""How long leases are kept."""

_VERBS: Final = ("lease", "lease", "prefetch", "flush", "retract")


def with_cache(plan: Plan) -> Plan:
    """Return `plan` with a Cache, and with leases, prefetches and flushes between its steps."""
    generator = random.Random(f"a cache of {plan.seed}")
    setting = _scaled(plan.setting, SCALE if plan.setting.block_bytes < LARGE_BYTES else 1)
    setting = replace(setting, cache_slots=generator.choice(SLOTS), behind_blocks=generator.choice(BEHIND_BLOCKS))
    steps: list[Step] = []
    for step in plan.steps:
        if generator.random() < SHARE_OF_CALLS:
            steps += _draw_calls(generator, setting.blocks, setting.processes)
        durability = "cached" if generator.random() < SHARE_OF_CALLS else step.durability
        steps.append(replace(step, durability=durability))
    return Plan(plan.seed, setting, tuple(steps))


def _scaled(setting: Setting, scale: int) -> Setting:
    bounds = {name: scale * getattr(setting, name) for name in ("capacity_bytes", "cap_bytes", "quota_bytes")}
    return replace(setting, shard_bytes=scale * setting.shard_bytes, **bounds)


def _draw_calls(generator: random.Random, blocks: int, processes: int) -> list[Step]:
    step = Step(
        generator.choice(_VERBS),
        generator.randrange(processes),
        tuple(generator.sample(range(blocks), generator.randint(1, blocks))),
        seconds=generator.choice(HOLD_S) * generator.random(),
        timeout_s=generator.choice((None, None, 1e-3)),
        pause_s=generator.choice((0.0, 1e-4, 1e-3)) * generator.random(),
    )
    return _retract(generator, step) if step.verb == "retract" else [step]


def _retract(generator: random.Random, step: Step) -> list[Step]:
    """Dump a block, and delete it when it is OK, which is before it is written to the stage below."""
    block = step.blocks[:1]
    join = Step("join", step.process)
    return [
        join,
        Step("dump", step.process, block, durability="cached"),
        join,
        Step("delete", step.process, block, pause_s=generator.choice((0.0, 1e-2))),
        join,
        Step("lookup", step.process, block),
    ]
