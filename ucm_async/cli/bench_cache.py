"""``ucm-async bench cache``: hits, index, sharing between processes, and loads beside dumps."""

from __future__ import annotations

import argparse
from typing import Final

from ._bench_common import add_case_arguments, add_store_arguments, status, tell

__all__ = ["add_arguments", "run"]

_DEFAULT_SHAPES: Final = "1048576x200,65536x1000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    from ..bench.cache import CASES  # noqa: PLC0415  (the other commands need not import this)

    add_case_arguments(parser, tuple(CASES), _DEFAULT_SHAPES)
    add_store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; returns its exit code."""
    from ..bench.cache import CacheSetting, run_cases  # noqa: PLC0415
    from ..bench.loops import loop_name, run_on  # noqa: PLC0415
    from ..bench.running import describe_machine  # noqa: PLC0415

    loop = loop_name(args.loop)
    setting = CacheSetting(
        directory=args.dir, shapes=args.shape, rounds=args.rounds, engine=args.engine, direct=not args.buffered
    )
    with status("starting") as on_case:
        findings = run_on(loop, run_cases(setting, args.only, on_case))
    about = {
        **describe_machine(),
        "loop": loop,
        "io_engine": args.engine or "auto",
        "direct": setting.direct,
        "rounds": args.rounds,
    }
    tell(args, findings, about)
    return 0
