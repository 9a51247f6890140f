"""``ucm-async bench``: what this machine gives, and what the store makes of it."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Final

__all__ = ["BENCHMARKS", "add_arguments", "run"]

BENCHMARKS: Final[Mapping[str, str]] = {
    "engine": "the store against a C program on the same disk, in turns",
    "cache": "the Cache: hits, index, sharing between processes, loads beside dumps",
    "slab": "slots of preallocated files against files of their own and a C program: dumps, loads, restart",
    "codecs": "every codec on your own bytes: ratio, speed, error",
    "space": "the cap under traffic, and what collection costs the loads beside it",
    "compress": "the Compress stage against its codec and its disk, each alone",
    "policies": "hit ratios of the Cache's eviction policies over a workload",
}
"""Each benchmark, whose module is ``bench_<name>`` here, and its line in the help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmarks, each with its options."""
    parser.description = __doc__
    benchmarks = parser.add_subparsers(dest="what", required=True, metavar="{" + ",".join(BENCHMARKS) + "}")
    for name, line in BENCHMARKS.items():
        benchmark = benchmarks.add_parser(
            name,
            help=line,
            description=line[0].upper() + line[1:] + ".",
            epilog="Ratios are medians over the rounds of one run (smallest … largest); absolute figures drift.",
        )
        # After the name, too, where people write it; not to overrule what stands before.
        benchmark.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON instead of tables"
        )
        _module(name).add_arguments(benchmark)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    return int(_module(args.what).run(args))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f".bench_{name}", __package__)
