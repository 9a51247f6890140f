"""``ucm-async bench engine``: the store against a C program on the same disk, in turns."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._bench_common import add_case_arguments, add_store_arguments, status, tell
from ._options import positive_int

if TYPE_CHECKING:
    from ..bench.limit import LimitProgram
    from ..bench.setting import Setting

__all__ = ["add_arguments", "run"]

_DEFAULT_SHAPES: Final = "1048576x500,65536x2000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    from ..bench.engine import CASES  # noqa: PLC0415  (the other commands need not import this)

    what = add_case_arguments(parser, tuple(CASES), _DEFAULT_SHAPES)
    what.add_argument("--per-call", type=positive_int, metavar="K", help="blocks a call (default: all in one)")
    add_store_arguments(parser)
    other = parser.add_argument_group("C program")
    other.add_argument("--yardstick", type=Path, metavar="PROGRAM", help="compare loads with this one instead")
    other.add_argument(
        "--read-depth", type=positive_int, default=64, metavar="N", help="its requests in flight (default: %(default)s)"
    )
    other.add_argument(
        "--create-threads",
        type=positive_int,
        default=8,
        metavar="N",
        help="its threads for dumps (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; returns its exit code."""
    from ..bench.engine import run_cases  # noqa: PLC0415
    from ..bench.loops import loop_name, run_on  # noqa: PLC0415
    from ..bench.running import describe_machine  # noqa: PLC0415

    loop = loop_name(args.loop)
    with status("compiling the C program") as on_case:
        setting = _setting(args)
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


def _setting(args: argparse.Namespace) -> Setting:
    from ..bench.setting import Setting  # noqa: PLC0415

    reader, creator = _programs(args)
    return Setting(
        directory=args.dir,
        shapes=args.shape,
        rounds=args.rounds,
        per_call=args.per_call,
        engine=args.engine,
        direct=not args.buffered,
        reader=reader,
        creator=creator,
        read_depth=args.read_depth,
        create_threads=args.create_threads,
    )


def _programs(args: argparse.Namespace) -> tuple[LimitProgram | None, LimitProgram | None]:
    """Return what to compare loads and dumps with. Without a compiler there is nothing; the rest is still measured."""
    from ..bench.limit import LimitError, LimitProgram, compile_limit  # noqa: PLC0415

    direct = not args.buffered
    try:
        ours = LimitProgram(compile_limit(), direct)
    except LimitError as error:
        print(f"ucm-async bench: {error}", file=sys.stderr)
        ours = None
    if args.yardstick is None:
        return ours, ours
    if not args.yardstick.is_file():
        raise FileNotFoundError(2, "no such program", str(args.yardstick))
    return LimitProgram(args.yardstick.resolve(), direct), ours
