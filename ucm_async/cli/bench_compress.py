"""``ucm-async bench compress``: the Compress stage against its codec and its disk, each alone."""

from __future__ import annotations

import argparse
from typing import Final

from ..errors import UcmError
from ._bench_common import add_case_arguments, add_store_arguments, status, tell

__all__ = ["add_arguments", "run"]

_DEFAULT_SHAPES: Final = "1048576x128"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    from ..bench.compress import CASES, DEFAULT_CODECS  # noqa: PLC0415  (the other commands need not import this)

    group = add_case_arguments(parser, tuple(CASES), _DEFAULT_SHAPES)
    default = ", ".join(DEFAULT_CODECS)
    group.add_argument("--codec", action="append", metavar="SPEC", help=f"may be given several times ({default})")
    add_store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; returns its exit code."""
    from ..bench.compress import DEFAULT_CODECS, CompressSetting, run_cases  # noqa: PLC0415
    from ..bench.limit import LimitProgram, compile_limit  # noqa: PLC0415
    from ..bench.loops import loop_name, run_on  # noqa: PLC0415
    from ..bench.running import describe_machine  # noqa: PLC0415

    loop, direct = loop_name(args.loop), not args.buffered
    about = {**describe_machine(), "loop": loop, "io_engine": args.engine or "auto", "direct": direct}
    program = None
    try:
        program = LimitProgram(compile_limit(), direct)
    except UcmError as error:
        about["without a C program"] = str(error)
    setting = CompressSetting(
        directory=args.dir,
        shapes=args.shape,
        rounds=args.rounds,
        engine=args.engine,
        direct=direct,
        reader=program,
        creator=program,
        codecs=tuple(args.codec or DEFAULT_CODECS),
    )
    with status("starting") as on_case:
        findings = run_on(loop, run_cases(setting, args.only, on_case))
    tell(args, findings, {**about, "rounds": args.rounds})
    return 0
