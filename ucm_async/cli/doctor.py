"""``ucm-async doctor [DIR]``: what this machine offers, and what to change."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from .machine import Finding, examine

__all__ = ["add_arguments", "run"]

_MARKS = {"ok": "[green]ok[/]", "slower": "[yellow]slower[/]", "broken": "[bold red]broken[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``doctor``."""
    parser.add_argument("directory", nargs="?", default=".", metavar="DIR", help="where blocks would be stored")


def run(arguments: argparse.Namespace) -> int:
    """Examine the machine and print what was found; 0 if a store can serve here, 1 if not."""
    findings = examine(arguments.directory)
    can_serve = all(finding.state != "broken" for finding in findings)
    if arguments.json:
        print(json.dumps({"can_serve": can_serve, "findings": [one.as_dict() for one in findings]}, indent=2))
    else:
        _print_table(findings, can_serve)
    return 0 if can_serve else 1


def _print_table(findings: Sequence[Finding], can_serve: bool) -> None:
    from rich.console import Console  # noqa: PLC0415 - only people need tables
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console()
    table = Table(title="ucm-async doctor", title_justify="left")
    for column in ("", "what", "found", "state", "what to change"):
        table.add_column(column, overflow="fold")
    area = ""
    for one in findings:
        if area and one.area != area:
            table.add_section()
        first = one.area if one.area != area else ""
        area = one.area
        found = one.text or str(one.value if one.value is not None else "unknown")
        table.add_row(first, escape(one.name), escape(found), _MARKS[one.state], escape(one.advice))
    console.print(table)
    slower = sum(one.state == "slower" for one in findings)
    if not can_serve:
        console.print("[bold red]A store cannot serve here[/]: see the lines marked broken.")
    else:
        console.print(f"A store can serve here. Lines marked slower: {slower}.")
