"""``ucm-async bench codecs``: every codec on your own bytes."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError, UcmError
from ._bench_common import status
from ._options import positive_int

if TYPE_CHECKING:
    from ..bench.codecs import CodecReport

__all__ = ["add_arguments", "run"]

_SHORT: Final = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    parser.add_argument("--data", type=Path, metavar="FILE.npy", help="default: the KV sample of the package")
    parser.add_argument("--dtype", default="bfloat16", help="element type of the data (default: %(default)s)")
    parser.add_argument("--codec", action="append", metavar="SPEC", help="measure this one; may be given several times")
    parser.add_argument("--shard-bytes", type=positive_int, default=368_640, metavar="N", help="default: %(default)s")
    parser.add_argument("--parts", choices=("kv", "k", "v"), default="kv", help="default: %(default)s")
    parser.add_argument("--tokens", type=positive_int, default=16, help="of a table (default: %(default)s)")
    parser.add_argument("--channels", type=positive_int, default=64, help="of a table (default: %(default)s)")
    parser.add_argument("--part-bytes", type=positive_int, help="default: 6144 for the sample, else one table")
    parser.add_argument("--rounds", type=positive_int, default=3, help="default: %(default)s")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw ratio against speed (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; returns its exit code."""
    from ..bench.codecs import ALL_CODECS, load_bytes, measure_codec, measure_pool  # noqa: PLC0415
    from ..bench.running import describe_machine  # noqa: PLC0415
    from ..stages.compress.codecs import Layout  # noqa: PLC0415

    part_bytes = args.part_bytes or (0 if args.data else 6144)
    layout = Layout(_SHORT.get(args.dtype, args.dtype), args.parts, args.tokens, args.channels, part_bytes)
    raw = load_bytes(args.data)
    reports, left_out = [], {}
    with status("codecs") as on_case:
        for spec in args.codec or ALL_CODECS:
            on_case(spec)
            try:
                reports.append(measure_codec(spec, raw, layout, args.shard_bytes, args.rounds))
            except ConfigError as error:
                if args.codec:
                    raise
                left_out[spec] = str(error)
        on_case("pool")
        pool = measure_pool(raw, layout, args.shard_bytes, args.rounds)
    if args.json:
        about = {**describe_machine(), "bytes": len(raw), "shard_bytes": args.shard_bytes, "dtype": layout.dtype}
        told = {"setting": about, "codecs": [one.as_dict() for one in reports], "left_out": left_out, "pool": pool}
        print(json.dumps(told, indent=2))
    else:
        _print(reports, left_out, pool)
    if args.plot is not None:
        _plot(reports, args.plot)
    return 0


def _print(reports: Sequence[CodecReport], left_out: dict[str, str], pool: dict[str, list[float]]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("codec", "ratio", "encode GB/s", "decode GB/s", "2 threads", "relative L2", "max abs")
    for one in reports:
        two = f"{one.encode_two[0] / one.encode[0]:.2f}x, {one.decode_two[0] / one.decode[0]:.2f}x"
        errors = ["lossless", ""] if one.relative_l2 is None else [f"{one.relative_l2:.4g}", f"{one.max_abs:.4g}"]
        table.add_row(one.codec, f"{one.ratio:.3f}", _spread(one.encode), _spread(one.decode), two, *errors)
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    console.print(table)
    for spec, why in left_out.items():
        console.print(f"left out: {spec}: {why}", highlight=False, markup=False)
    console.print(f"a fresh context for each job takes {_spread(pool['fresh_over_pooled'])} times a pooled one")


def _spread(values: Sequence[float]) -> str:
    return f"{values[0]:.3g} ({values[1]:.3g} … {values[2]:.3g})"


def _plot(reports: Sequence[CodecReport], target: Path) -> None:
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise UcmError("--plot needs matplotlib (pip install matplotlib)") from None
    figure = figures.Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for one in reports:
        axes.plot(one.decode[0], one.ratio, "o", color="tab:blue" if one.lossless else "tab:red")
        axes.annotate(one.codec, (one.decode[0], one.ratio), xytext=(4, 4), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel("decode, GB/s of raw bytes, one core (blue: lossless)")
    axes.set_ylabel("ratio")
    figure.savefig(target, dpi=120)
