"""Reports as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .measure import Finding, Spread
from .report import Flow, Report

_WIDTH: Final = 150

__all__ = ["print_findings", "print_replay"]


def print_replay(report: Report, setting: Mapping[str, Any]) -> None:
    """Print what a replay did; `setting` has what is known of engine, loop, pipeline, block_bytes and problems."""
    console = _console()
    about = [f"{name} {setting[name]}" for name in ("pipeline", "engine", "loop") if name in setting]
    console.print(f"replay: {', '.join(about)}", highlight=False)
    console.print(_summary(report, setting))
    console.print(_flows(report))
    for problem in setting.get("problems", ()):
        console.print(Text(f"FAILED: {problem}", "bold red"))


def _console() -> Console:
    console = Console()
    # A file or a pipe has no width; 80 columns, which rich takes then, would wrap every cell.
    return console if console.is_terminal else Console(width=_WIDTH)


def _summary(report: Report, setting: Mapping[str, Any]) -> Table:
    table = Table("", "", show_header=False)
    table.add_row("requests", f"{report.requests:,}")
    block = f" of {setting['block_bytes']:,} bytes" if "block_bytes" in setting else ""
    table.add_row("blocks asked", f"{report.blocks_asked:,}{block}")
    table.add_row("prefix hits", f"{report.prefix_hits:,}")
    table.add_row("hit ratio", f"{report.hit_ratio:.4f}  (infinite cache: {report.ideal_hit_ratio:.4f})")
    if "cache" in setting:
        cache = setting["cache"]
        had = f"{cache['hits']:,} of {cache['asked']:,} asked, dumps included, policy {cache['policy']}"
        table.add_row("cache hit ratio", f"{cache['hit_ratio']:.4f}  ({had})")
    wrong = f"{report.wrong_bytes:,}" + (f" in {report.wrong_blocks:,} blocks" if report.wrong_blocks else "")
    table.add_row("wrong bytes", Text(wrong, "bold red" if report.wrong_bytes else "bold green"))
    table.add_row("wall time", f"{report.wall_s:.1f} s, blocks made and compared within it")
    return table


def _flows(report: Report) -> Table:
    table = Table("", "calls", "blocks", "GB", "GB/s", "p50 ms", "p95 ms", "p99 ms", "failures")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for verb, flow in (("load", report.load), ("dump", report.dump)):
        table.add_row(verb, *_cells(flow))
    return table


def _cells(flow: Flow) -> list[str]:
    latencies = [f"{flow.percentile_ms(percent):.2f}" for percent in (50, 95, 99)] if flow.calls else ["", "", ""]
    failures = ", ".join(f"{name} {count:,}" for name, count in sorted(flow.failures.items())) or "none"
    rate = f"{flow.gb_per_s:.2f}"
    return [f"{flow.calls:,}", f"{flow.blocks:,}", f"{flow.bytes / 1e9:.2f}", rate, *latencies, failures]


def print_findings(what: str, findings: Sequence[Finding], setting: Mapping[str, Any]) -> None:
    """Print the findings of the benchmark `what`; `setting` says on what they were made."""
    console = _console()
    console.print(f"bench {what}: " + ", ".join(f"{name} {value}" for name, value in setting.items()), highlight=False)
    table = Table("case", "what", "measured", "compared with", "ratio", "goal", "met")
    for one in findings:
        reference = (
            f"{one.reference} {_spread(one.reference_value)} {one.unit}" if one.reference_value else one.reference
        )
        goal = f"{one.goal[0]} {one.goal[1]:g}" if one.goal else ""
        met = {True: Text("yes", "green"), False: Text("no", "bold red"), None: Text("")}[one.met]
        ratio = _spread(one.ratio) if one.ratio else ""
        table.add_row(one.case, one.what, f"{_spread(one.value)} {one.unit}", reference, ratio, goal, met)
    console.print(table)
    for one in findings:
        if one.detail:
            console.print(Text(f"{one.case}: {one.what}: {_plain(one.detail)}"), highlight=False)


def _spread(spread: Spread) -> str:
    return f"{spread.median:.3g} ({spread.low:.3g} … {spread.high:.3g})"


def _plain(detail: Mapping[str, Any]) -> str:
    words = [
        f"{key} [{_plain(value)}]" if isinstance(value, Mapping) else f"{key} {value}" for key, value in detail.items()
    ]
    return ", ".join(words)
