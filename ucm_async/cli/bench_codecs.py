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
    from rich.table import Table

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
    parser.add_argument("--rounds", type=positive_int, default=5, help="default: %(default)s")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw ratio against speed (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; returns its exit code."""
    from ..bench.codecs import ALL_CODECS, load_bytes, measure_codec  # noqa: PLC0415
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
    if args.json:
        about = {**describe_machine(), "bytes": len(raw), "shard_bytes": args.shard_bytes, "dtype": layout.dtype}
        told = {"setting": about, "codecs": [one.as_dict() for one in reports], "left_out": left_out}
        print(json.dumps(told, indent=2))
    else:
        _print(reports, left_out)
    if args.plot is not None:
        _plot(reports, args.plot)
    return 0


def _print(reports: Sequence[CodecReport], left_out: dict[str, str]) -> None:
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    console = console if console.is_terminal else Console(width=150)
    console.print(_codec_table(reports))
    for spec, why in left_out.items():
        console.print(f"left out: {spec}: {why}", highlight=False, markup=False)
    console.print(_thread_table(reports))
    console.print(_pool_table(reports))


def _codec_table(reports: Sequence[CodecReport]) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table("codec", "ratio", "encode GB/s", "decode GB/s", "relative L2", "max abs", title="one thread")
    for one in reports:
        errors = ["lossless", ""] if one.relative_l2 is None else [f"{one.relative_l2:.4g}", f"{one.max_abs:.4g}"]
        table.add_row(one.codec, f"{one.ratio:.3f}", _spread(one.encode), _spread(one.decode), *errors)
    return table


def _thread_table(reports: Sequence[CodecReport]) -> Table:
    """Two threads over one, beside what the loops of `beside.REFERENCES` gained in the same rounds."""
    from rich.table import Table  # noqa: PLC0415

    from ..bench.beside import REFERENCES  # noqa: PLC0415

    title = "two threads over one, and what this machine gave to plain loops in the same rounds"
    table = Table("codec", "encode", "decode", *REFERENCES, title=title)
    for one in reports:
        table.add_row(one.codec, *(_spread(one.two_over_one[name]) for name in ("encode", "decode", *REFERENCES)))
    return table


def _pool_table(reports: Sequence[CodecReport]) -> Table:
    from rich.table import Table  # noqa: PLC0415

    title = "encoding one shard with leased context and slot, and with its own"
    table = Table("codec", "leased us", "its own us", "its own over leased", title=title)
    for one in reports:
        table.add_row(one.codec, *map(_spread, (one.pooled_us, one.fresh_us, one.fresh_over_pooled)))
    return table


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
