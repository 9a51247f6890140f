"""From a seed to its outcome."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from .clock import SimulatedLoop, SimulationError
from .faults import Faults
from .model import Violation
from .plan import STEPS, Plan, draw_plan
from .walk import Walk

__all__ = ["Outcome", "run_seed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a seed.

    Attributes
    ----------
    seed, pipeline, plan
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

    seed: int
    pipeline: str
    plan: Plan
    violation: str
    steps: int
    digest: str
    simulated_s: float
    struck: Counter[str]
    tail: list[str]

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"ucm-async simulate --seed {self.seed} --steps {self.steps} --pipeline '{self.pipeline}'"


def run_seed(
    seed: int, *, steps: int = STEPS, pipeline: str = "Posix", strict: bool = False, digest: bool = False
) -> Outcome:
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
    plan = draw_plan(generator, seed, max(steps, STEPS))
    plan = Plan(seed, plan.setting, plan.steps[:steps])
    loop = SimulatedLoop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    walk: Walk | None = None
    violation = ""

    async def main() -> None:
        nonlocal walk
        walk = Walk(plan, Faults(generator), pipeline, strict=strict)
        await walk.run()

    try:
        loop.run_until_complete(main())
    except (Violation, SimulationError) as error:
        violation = f"{type(error).__name__}: {error}"
    except Exception as error:
        violation = f"unexpected {type(error).__name__}: {error}"
    if told and not violation:
        violation = f"the loop was told: {told[0]['message']} {told[0].get('exception')!r}"
    assert walk is not None
    outcome = Outcome(
        seed,
        pipeline,
        plan,
        violation,
        walk.steps_done,
        walk.trace.digest() if digest else "",
        loop.time(),
        walk.disk.faults.struck,
        walk.trace.last(40) if violation else [],
    )
    loop.close()
    return outcome
