"""``ucm-async simulate``: run whole stores on a simulated machine with faults, one seed after another."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ._options import positive_int

if TYPE_CHECKING:
    from ..testing.simulation.run import Outcome

__all__ = ["add_arguments", "run"]

_EXIT_FAILED: Final = 1
_FAILURES_MAX: Final = 20
"""Failures that are kept for the report; so many seeds say what there is to say."""

_SEEDS_A_JOB: Final = 50
"""A second or two: what a process is started for, and what is lost when a failure ends the run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = __doc__
    parser.epilog = (
        "Exit code: 0 every promise was kept, 1 one was broken. A failure prints the command that repeats it."
    )
    parser.add_argument("--seeds", type=positive_int, default=1000, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first of them (default: %(default)s)")
    parser.add_argument("--seed", type=int, metavar="N", help="run this one alone, and show what happened")
    parser.add_argument("--steps", type=positive_int, metavar="K", help="take only the first K steps of a seed")
    parser.add_argument("--pipeline", default="Posix", help="stages, joined by | (default: %(default)s)")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    parser.add_argument(
        "--jobs", type=positive_int, default=1, metavar="N", help="processes side by side (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the seeds; returns the exit code."""
    alone = args.seed is not None
    seeds = range(args.seed, args.seed + 1) if alone else range(args.first, args.first + args.seeds)
    failures: list[Outcome] = []
    struck: Counter[str] = Counter()
    count, simulated_s, began_s = 0, 0.0, time.monotonic()
    outcome = None
    with _progress(len(seeds)) as advance:
        for outcome in _outcomes(args, seeds, digest=alone):
            count += 1
            struck += outcome.struck
            simulated_s += outcome.simulated_s
            advance()
            if outcome.violation:
                failures.append(outcome)
                if not args.keep_going or len(failures) >= _FAILURES_MAX:
                    break
    seconds = time.monotonic() - began_s
    told: dict[str, Any] = {
        "seeds": count,
        "seconds": round(seconds, 3),
        "seeds_a_minute": round(60 * count / max(seconds, 1e-9)),
        "simulated_s": round(simulated_s, 3),
        "struck": dict(sorted(struck.items())),
        "failures": [
            {"seed": one.plan.seed, "steps": one.steps, "violation": one.violation, "command": one.command}
            for one in failures
        ],
    }
    if alone and outcome is not None:
        told["digest"] = outcome.digest
    _show(args, told, failures)
    return _EXIT_FAILED if failures else 0


def _outcomes(args: argparse.Namespace, seeds: range, *, digest: bool) -> Iterator[Outcome]:
    """Run seeds, in their order; in several processes if that was asked for."""
    parts = [seeds[at : at + _SEEDS_A_JOB] for at in range(0, len(seeds), _SEEDS_A_JOB)]
    if args.jobs == 1 or len(parts) == 1:
        for seed in seeds:
            yield from _run_some(args, range(seed, seed + 1), digest=digest)
        return
    context = multiprocessing.get_context("spawn")  # a copy of this process would have its threads' locks, too
    executor = ProcessPoolExecutor(min(args.jobs, len(parts)), context)
    try:
        for future in [executor.submit(_run_some, args, part, digest=digest) for part in parts]:
            yield from future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _run_some(args: argparse.Namespace, seeds: range, *, digest: bool) -> list[Outcome]:
    from ..testing.simulation.plan import STEPS  # noqa: PLC0415  (the other commands need not import this)
    from ..testing.simulation.run import run_seed  # noqa: PLC0415

    logging.getLogger("ucm_async").setLevel(logging.CRITICAL)  # of faults there are enough
    steps = args.steps or STEPS
    return [run_seed(seed, steps=steps, pipeline=args.pipeline, digest=digest) for seed in seeds]


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("simulate"), BarColumn(), MofNCompleteColumn(), TextColumn("seeds"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("simulate", total=total)
        yield lambda: progress.advance(task)


def _show(args: argparse.Namespace, told: dict[str, Any], failures: list[Outcome]) -> None:
    if args.json:
        print(json.dumps(told, indent=2))
        return
    for one in failures:
        print(f"seed {one.plan.seed}, step {one.steps}: {one.violation}", file=sys.stderr)
        print(f"  {one.plan.setting}", file=sys.stderr)
        for line in one.tail:
            print(f"  {line}", file=sys.stderr)
        print(f"repeat it: {one.command}", file=sys.stderr)
    faults = ", ".join(f"{name} {count}" for name, count in told["struck"].items())
    print(
        f"{told['seeds']} seeds in {told['seconds']:.1f} s, {told['seeds_a_minute']} a minute; "
        f"{told['simulated_s']:.0f} simulated seconds; {len(failures)} failed"
    )
    print(f"what went wrong on purpose: {faults or 'nothing'}")
    if "digest" in told:
        print(f"digest {told['digest']}")
