"""``ucm-async bench space``: the cap under traffic, and loads while blocks are collected against loads without that."""

from __future__ import annotations

import argparse

from ._bench_common import add_store_arguments, status, tell
from ._options import amount, positive_int, stamped_bytes

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    group = parser.add_argument_group("what is measured")
    group.add_argument("--capacity-gb", type=amount, default=1.0, metavar="G", help="the cap (default: %(default)s)")
    group.add_argument("--write-gb", type=amount, default=2.0, metavar="G", help="default: %(default)s; long form: 20")
    group.add_argument("--seconds", type=positive_int, default=60, help="default: %(default)s; long form: 600")
    group.add_argument("--block-bytes", type=stamped_bytes, default=1 << 20, metavar="N", help="default: %(default)s")
    parser.add_argument("--plot", default=None, help=argparse.SUPPRESS)
    add_store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; returns its exit code."""
    from ..bench.loops import loop_name, run_on  # noqa: PLC0415  (the other commands need not import this)
    from ..bench.running import describe_machine  # noqa: PLC0415
    from ..bench.space import SpaceSetting, measure_space  # noqa: PLC0415

    loop = loop_name(args.loop)
    setting = SpaceSetting(
        directory=args.dir,
        shapes=(),
        engine=args.engine,
        direct=not args.buffered,
        block_bytes=args.block_bytes,
        capacity_bytes=int(args.capacity_gb * (1 << 30)),
        write_bytes=int(args.write_gb * (1 << 30)),
        seconds=float(args.seconds),
    )
    with status("starting") as on_case:
        findings = run_on(loop, measure_space(setting, on_case))
    about = {
        **describe_machine(),
        "loop": loop,
        "io_engine": args.engine or "auto",
        "direct": setting.direct,
        "capacity_gb": args.capacity_gb,
        "write_gb": args.write_gb,
        "seconds": args.seconds,
    }
    tell(args, findings, about)
    return 0
