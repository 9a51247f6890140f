"""``ucm-async shm``: the shared memory of the Cache on this host."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from ..errors import UcmError

if TYPE_CHECKING:
    from rich.table import Table

    from .segments import Block, Segment

__all__ = ["add_arguments", "run"]

_EXIT_REFUSED: Final = 1
_MIB: Final = 1 << 20
_WIDTH: Final = 150
_MARKS: Final = {"live": "green", "dead": "yellow"}
_ADVICE: Final = {
    "dead": "left by processes that crashed: the next store that fits adopts it with its blocks, or remove it",
    "unfinished": "somebody is making it, or died at that: then the next store replaces it, or remove it",
    "damaged": "the next store replaces it if nobody lives in it, or remove it",
    "foreign": "only that user can look at it or remove it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = __doc__
    parser.epilog = "Exit code: 0 all well, 1 a segment was not removed since somebody lives in it, 2 wrong usage."
    parser.add_argument("action", choices=("list", "show", "remove"), help="what to do")
    parser.add_argument("name", nargs="?", help="for show and remove: the name from the list, or the unique_id")
    parser.add_argument("--blocks", action="store_true", help="show: list every slot that is in use")
    parser.add_argument("--force", action="store_true", help="remove: even if somebody lives in it")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    if args.action != "list" and args.name is None:
        raise UcmError(f"{args.action}: name a segment; `ucm-async shm list` shows them")
    if args.action == "list":
        if args.name is not None:
            raise UcmError(f"list: takes no name ({args.name!r}); use show")
        return _list(as_json=args.json)
    return _show(args) if args.action == "show" else _remove(args)


def _list(*, as_json: bool) -> int:
    from .segments import inspect_all  # noqa: PLC0415  (the other commands need not import this)

    found = inspect_all()
    if as_json:
        print(json.dumps([_as_dict(one) for one in found], indent=2))
    elif not found:
        print("No shared memory of a Cache here.")
    else:
        _print_list(found)
    return 0


def _show(args: argparse.Namespace) -> int:
    from .segments import blocks_of, inspect  # noqa: PLC0415

    segment = inspect(args.name, count_blocks=True)
    listed = blocks_of(segment.name) if args.blocks else None
    if args.json:
        told = _as_dict(segment) | {"blocks": dict(segment.blocks)}
        if listed is not None:
            told["slots_in_use"] = [asdict(one) for one in listed]
        print(json.dumps(told, indent=2))
    else:
        _print_segment(segment)
        if listed is not None:
            _print_blocks(listed)
    return 0


def _remove(args: argparse.Namespace) -> int:
    from .segments import inspect, remove  # noqa: PLC0415

    removed = remove(args.name, force=args.force)
    if args.json:
        print(json.dumps({"name": args.name, "removed": removed}))
    elif removed:
        print(f"Removed {args.name}.")
    if removed:
        return 0
    pids = [str(one.pid) for one in inspect(args.name).processes if one.alive is not False]
    who = f"process {', '.join(pids)}" if pids else "somebody"
    print(f"ucm-async shm: {args.name} was not removed: {who} lives in it (--force removes it)", file=sys.stderr)
    return _EXIT_REFUSED


def _as_dict(segment: Segment) -> dict[str, Any]:
    told = asdict(segment)
    del told["blocks"]  # not counted for a list
    return told | {"hit_ratio": _hit_ratio(segment.counters)}


def _hit_ratio(counters: Mapping[str, int]) -> float | None:
    asked = counters.get("hits", 0) + counters.get("misses", 0)
    return round(counters["hits"] / asked, 4) if asked else None


# ---- for people


def _print_list(found: Sequence[Segment]) -> None:
    from rich.table import Table  # noqa: PLC0415  (only people need tables)

    table = Table(title="shared memory of the Cache", title_justify="left")
    for column in ("name", "state", "MiB", "blocks in use", "of bytes", "policy", "hit ratio", "processes"):
        table.add_column(column, overflow="fold")
    for one in found:
        used = f"{one.counters['used']:,} of {one.counters['slots']:,}" if one.counters else ""
        ratio = _hit_ratio(one.counters)
        table.add_row(
            one.name,
            f"[{_MARKS.get(one.state, 'red')}]{one.state}[/]",
            f"{one.nbytes / _MIB:,.1f}",
            used,
            str(one.header.get("block_size", "")),
            str(one.header.get("policy", "")),
            "" if ratio is None else f"{ratio:.3f}",
            ", ".join(f"{process.pid}{_life(process.alive)}" for process in one.processes),
        )
    _print(
        table, *(f"{state}: {advice}." for state, advice in _ADVICE.items() if state in {one.state for one in found})
    )


def _life(alive: bool | None) -> str:
    return {True: "", False: " (dead)", None: " (of another PID namespace)"}[alive]


def _print_segment(segment: Segment) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table("", "", title=segment.name, title_justify="left", show_header=False)
    table.add_row("state", segment.state + (f": {segment.why}" if segment.why else ""))
    table.add_row("bytes", f"{segment.nbytes:,}")
    for key, value in segment.header.items():
        table.add_row(key, str(value))
    for process in segment.processes:
        table.add_row(f"process {process.number}", f"pid {process.pid}{_life(process.alive)}")
    table.add_section()
    for key, value in segment.blocks.items():
        table.add_row(f"slots {key}", f"{value:,}")
    table.add_section()
    for key, value in segment.counters.items():
        table.add_row(key, f"{value:,}")
    ratio = _hit_ratio(segment.counters)
    table.add_row("hit ratio", "nothing asked yet" if ratio is None else f"{ratio:.4f}")
    _print(table, *([f"{segment.state}: {_ADVICE[segment.state]}."] if segment.state in _ADVICE else []))


def _print_blocks(listed: Sequence[Block]) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table("slot", "block", "state", "generation", "visits", "held by process")
    for one in listed:
        state = f"{one.state}, not stored below" if one.dirty and one.state == "ready" else one.state
        holders = ", ".join(map(str, one.holders))
        table.add_row(str(one.slot), one.block_id, state, str(one.generation), str(one.visits), holders)
    _print(table)


def _print(table: Table, *lines: str) -> None:
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:  # a pipe has no width; 80 columns would wrap every cell
        console = Console(width=_WIDTH)
    console.print(table)
    for line in lines:
        console.print(line, highlight=False)
