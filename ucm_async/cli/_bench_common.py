"""What the benchmarks of the command line share: options, the status line, and how findings are told."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._options import positive_int, stamped_bytes

if TYPE_CHECKING:
    from ..bench.measure import Finding
    from ..bench.setting import Shape

__all__ = ["add_case_arguments", "add_store_arguments", "shapes", "status", "tell"]


def add_case_arguments(parser: argparse.ArgumentParser, cases: Sequence[str], default_shapes: str) -> Any:
    """Add what says which cases are measured, how often, with how many blocks; returns the group."""
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--only", type=_names(tuple(cases)), default=tuple(cases), metavar="CASE,…", help=f"of {', '.join(cases)}"
    )
    group.add_argument(
        "--rounds", type=positive_int, default=5, metavar="N", help="after a warm-up (default: %(default)s)"
    )
    group.add_argument(
        "--shape",
        type=shapes,
        default=default_shapes,
        metavar="BYTESxN,…",
        help="blocks moved (default: %(default)s)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios (needs matplotlib)")
    return group


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says where and how the store works."""
    group = parser.add_argument_group("store")
    group.add_argument(
        "--dir", type=Path, default=Path(), help="measure the file system of this directory (default: here)"
    )
    group.add_argument("--engine", choices=("auto", "psync", "aio", "uring"), help="default: auto")
    group.add_argument("--buffered", action="store_true", help="without O_DIRECT")
    group.add_argument(
        "--loop", choices=("auto", "asyncio", "uvloop"), default="auto", help="default: uvloop where it is installed"
    )


@contextlib.contextmanager
def status(begin: str) -> Iterator[Callable[[str], None]]:
    """Show what is going on, on stderr; yields what to call with the name of each case."""
    from rich.console import Console  # noqa: PLC0415

    with Console(stderr=True).status(begin) as shown:
        yield lambda name: shown.update(f"measuring: {name}")


def tell(args: argparse.Namespace, findings: Sequence[Finding], about: dict[str, Any]) -> None:
    """Print findings, and draw them if that is asked for."""
    if args.json:
        told = {"setting": about, "findings": [one.as_dict() for one in findings]}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        from ..bench.tables import print_findings  # noqa: PLC0415

        print_findings(args.what, findings, about)
    if args.plot is not None:
        from ..bench.plot import plot_ratios  # noqa: PLC0415

        plot_ratios(findings, args.plot)


def shapes(text: str) -> list[Shape]:
    """Parse the value of ``--shape``."""
    from ..bench.setting import Shape  # noqa: PLC0415

    found = []
    for one in text.split(","):
        size, x, count = one.strip().partition("x")
        if not x:
            raise argparse.ArgumentTypeError(f"{one!r}, must be BYTESxBLOCKS, for example 65536x2000")
        found.append(Shape(stamped_bytes(size), positive_int(count)))
    return found


def _names(known: tuple[str, ...]) -> Callable[[str], Any]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(one.strip() for one in text.split(","))
        for one in names:
            if one not in known:
                raise argparse.ArgumentTypeError(f"{one!r}, must be of {', '.join(known)}")
        return names

    return parse
