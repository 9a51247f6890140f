"""``ucm-async bench slab``: the Slab stage against the Posix stage and a C program, in turns."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from ._bench_common import add_case_arguments, add_store_arguments, status, tell
from ._options import positive_int

__all__ = ["add_arguments", "run"]

_DEFAULT_SHAPES: Final = "1048576x400,65536x2000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    from ..bench.slab import CASES  # noqa: PLC0415  (the other commands need not import this)

    what = add_case_arguments(parser, tuple(CASES), _DEFAULT_SHAPES)
    what.add_argument(
        "--restart-blocks", type=positive_int, default=100_000, metavar="N", help="of 4 KiB (default: %(default)s)"
    )
    add_store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; returns its exit code."""
    from ..bench.limit import LimitError, LimitProgram, compile_limit  # noqa: PLC0415
    from ..bench.loops import loop_name, run_on  # noqa: PLC0415
    from ..bench.running import describe_machine  # noqa: PLC0415
    from ..bench.slab import SlabSetting, run_cases  # noqa: PLC0415

    loop, direct = loop_name(args.loop), not args.buffered
    with status("compiling the C program") as on_case:
        try:
            program = LimitProgram(compile_limit(), direct)
        except LimitError as error:
            print(f"ucm-async bench: {error}", file=sys.stderr)
            program = None
        setting = SlabSetting(
            directory=args.dir,
            shapes=args.shape,
            rounds=args.rounds,
            engine=args.engine,
            direct=direct,
            program=program,
            restart_blocks=args.restart_blocks,
        )
        findings = run_on(loop, run_cases(setting, args.only, on_case))
    about = {
        **describe_machine(),
        "loop": loop,
        "io_engine": args.engine or "auto",
        "direct": direct,
        "rounds": args.rounds,
    }
    tell(args, findings, about)
    return 0
