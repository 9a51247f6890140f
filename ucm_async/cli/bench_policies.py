"""``ucm-async bench policies``: hit ratios of the Cache's eviction policies over a workload."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._bench_common import status
from ._options import positive_int
from ._workloads import open_workload

if TYPE_CHECKING:
    from ..bench.policies import PolicyReport

__all__ = ["add_arguments", "run"]

_DEFAULT_SLOTS: Final = "3000,10000,30000"
_CHATS: Final = 20_000
_WIDTH: Final = 150


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="Mooncake-format trace, JSON lines (default: seeded chats)",
    )
    parser.add_argument("--requests", type=positive_int, metavar="N", help="serve the first N (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the chats (default: %(default)s)")
    parser.add_argument(
        "--slots", type=_sizes, default=_DEFAULT_SLOTS, metavar="N,…", help="blocks a cache (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; returns its exit code."""
    from ..bench.policies import compare_policies  # noqa: PLC0415  (the other commands need not import this)

    requests = args.requests or (_CHATS if args.trace is None else None)
    with status("reading the workload") as on_run, open_workload(args.trace, requests, args.seed) as workload:
        report = compare_policies(workload, args.slots, on_run=lambda policy, slots: on_run(f"{policy}, {slots} slots"))
    if args.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        _print(report)
    return 0


def _print(report: PolicyReport) -> None:
    from rich.console import Console  # noqa: PLC0415  (only people need tables)
    from rich.table import Table  # noqa: PLC0415

    sizes = list(next(iter(report.ratios.values())))
    table = Table("policy", *(f"{slots:,} blocks" for slots in sizes))
    for policy, ratios in report.ratios.items():
        table.add_row(policy, *(f"{ratios[slots]:.4f}" for slots in sizes))
    console = Console()
    if not console.is_terminal:  # a pipe has no width; 80 columns would wrap every cell
        console = Console(width=_WIDTH)
    console.print(f"prefix hits over {report.requests:,} requests for {report.blocks:,} blocks", highlight=False)
    console.print(table)
    console.print(f"infinite cache: {report.ideal:.4f}; best: {report.best()}", highlight=False)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(positive_int(one.strip()) for one in text.split(","))
