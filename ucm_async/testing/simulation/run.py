"""From a seed to its outcome."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Final

from .cached import with_cache
from .clock import SimulatedLoop, SimulationError
from .faults import Faults
from .model import Violation
from .plan import STEPS, Plan, draw_plan
from .walk import Walk

__all__ = ["Outcome", "run_plan", "run_seed"]

TAIL: Final = 40
"""Entries of the trace that an outcome shows."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a seed.

    Attributes
    ----------
    plan, pipeline
        What was run.
    violation
        The promise that was broken; empty if none was.
    steps
        Steps that had begun by then.
    digest
        Of everything that happened; the same for the same seed, steps and pipeline.
    simulated_s
        How long it took on the simulated clock.
    struck
        How often each fault has struck.
    tail
        The last things that happened, as lines.
    """

    plan: Plan
    pipeline: str
    violation: str
    steps: int
    digest: str
    simulated_s: float
    struck: Counter[str]
    tail: list[str]

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"ucm-async simulate --seed {self.plan.seed} --steps {self.steps} --pipeline '{self.pipeline}'"


def run_seed(seed: int, *, steps: int = STEPS, pipeline: str = "Posix", digest: bool = False) -> Outcome:
    """Run a seed to its end, or to the first broken promise.

    Parameters
    ----------
    seed
        Everything follows from it.
    steps
        How many steps to take of those that the seed stands for.
    pipeline
        Composition of the stores.
    digest
        Whether to take the hash of what happened.
    """
    generator = random.Random(seed)
    whole = draw_plan(generator, seed, max(steps, STEPS))
    plan = replace(whole, setting=whole.setting.suited_to(pipeline))
    if "Cache" in pipeline:
        plan = with_cache(plan)
    plan = replace(plan, steps=plan.steps[:steps])
    return run_plan(plan, generator, pipeline=pipeline, digest=digest)


def run_plan(plan: Plan, generator: random.Random, *, pipeline: str = "Posix", digest: bool = False) -> Outcome:
    """Run a plan; `generator` decides what its rates and times come to. Otherwise as `run_seed`."""
    loop = SimulatedLoop()
    told: list[str] = []
    loop.set_exception_handler(lambda _, context: told.append(f"{context['message']}: {context.get('exception')!r}"))
    walks: list[Walk] = []

    async def main() -> None:
        walks.append(Walk(plan, Faults(generator), pipeline))
        await walks[0].run()

    violation = ""
    try:
        loop.run_until_complete(main())
    except (Violation, SimulationError) as error:
        violation = str(error)
    except Exception as error:
        violation = f"unexpected {type(error).__name__}: {error}"
    if told and not violation:
        violation = f"the loop was told: {told[0]}"
    loop.close()
    walk = walks[0]
    return Outcome(
        plan,
        pipeline,
        violation,
        walk.steps_done,
        walk.trace.digest() if digest else "",
        loop.time(),
        walk.disk.faults.struck,
        walk.trace.last(TAIL) if violation else [],
    )
