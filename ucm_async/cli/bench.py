"""``ucm-async bench engine``: the store against a C program on the same disk, in turns."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ._options import positive_int, stamped_bytes

if TYPE_CHECKING:
    from ..bench.limit import LimitProgram
    from ..bench.setting import Setting, Shape

__all__ = ["add_arguments", "run"]

_DEFAULT_SHAPES: Final = "1048576x500,65536x2000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from ..bench.engine import CASES  # noqa: PLC0415  (the other commands need not import this)

    parser.description = __doc__
    parser.epilog = "Ratios are medians over the rounds of one run (smallest … largest); absolute figures drift."
    parser.add_argument("what", choices=("engine",), help="which benchmark")
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--only", type=_names(tuple(CASES)), default=tuple(CASES), metavar="CASE,…", help=f"of {', '.join(CASES)}"
    )
    what.add_argument(
        "--rounds", type=positive_int, default=5, metavar="N", help="after a warm-up (default: %(default)s)"
    )
    what.add_argument(
        "--shape",
        type=_shapes,
        default=_DEFAULT_SHAPES,
        metavar="BYTESxN,…",
        help="blocks to move (default: %(default)s)",
    )
    what.add_argument("--per-call", type=positive_int, metavar="K", help="blocks a call (default: all in one)")
    store = parser.add_argument_group("store")
    store.add_argument(
        "--dir", type=Path, default=Path(), help="measure the file system of this directory (default: here)"
    )
    store.add_argument("--engine", choices=("auto", "psync", "aio", "uring"), help="default: auto")
    store.add_argument("--buffered", action="store_true", help="without O_DIRECT, on both sides")
    store.add_argument(
        "--loop", choices=("auto", "asyncio", "uvloop"), default="auto", help="default: uvloop where it is installed"
    )
    other = parser.add_argument_group("C program")
    other.add_argument(
        "--yardstick", type=Path, metavar="PROGRAM", help="compare loads with this one instead of our own"
    )
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
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from ..bench.engine import describe_machine, run_cases  # noqa: PLC0415
    from ..bench.loops import loop_name, run_on  # noqa: PLC0415

    loop = loop_name(args.loop)
    with _status() as on_case:
        setting = _setting(args)
        findings = run_on(loop, run_cases(setting, args.only, on_case))
    about = {
        **describe_machine(),
        "loop": loop,
        "io_engine": args.engine or "auto",
        "direct": setting.direct,
        "rounds": args.rounds,
    }
    if args.json:
        told = {"setting": about, "findings": [one.as_dict() for one in findings]}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        from ..bench.tables import print_findings  # noqa: PLC0415

        print_findings(findings, about)
    if args.plot is not None:
        from ..bench.plot import plot_ratios  # noqa: PLC0415

        plot_ratios(findings, args.plot)
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


@contextlib.contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    from rich.console import Console  # noqa: PLC0415

    with Console(stderr=True).status("compiling the C program") as status:
        yield lambda name: status.update(f"measuring: {name}")


def _shapes(text: str) -> list[Shape]:
    from ..bench.setting import Shape  # noqa: PLC0415

    shapes = []
    for one in text.split(","):
        size, x, count = one.strip().partition("x")
        if not x:
            raise argparse.ArgumentTypeError(f"{one!r}, must be BYTESxBLOCKS, for example 65536x2000")
        shapes.append(Shape(stamped_bytes(size), positive_int(count)))
    return shapes


def _names(known: tuple[str, ...]) -> Callable[[str], Any]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(one.strip() for one in text.split(","))
        for one in names:
            if one not in known:
                raise argparse.ArgumentTypeError(f"{one!r}, must be of {', '.join(known)}")
        return names

    return parse
