"""``ucm-async quarantine``: what failed a check and was set aside."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._stored import EXIT_FOUND, block_id, find_surveys, human_bytes, print_table, tell

if TYPE_CHECKING:
    from ..space.survey import StoredBlock, Survey

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "List what was set aside, with what is wrong with it; restore what passes every check now, since a disk may "
        "have recovered; or remove it."
    )
    parser.epilog = "Exit code: 0 done; 1 restore: something did not pass, or is stored again; 2 it could not be done."
    parser.add_argument("action", choices=("list", "restore", "purge"), help="what to do")
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="a storage backend")
    parser.add_argument("--namespace", metavar="NAME", help="only this one (default: all of them)")
    parser.add_argument("--id", dest="ids", action="append", type=block_id, metavar="HEX", help="only this block")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    told: dict[str, Any] = {"blocks": []}
    done = 0
    for survey in find_surveys(args.directories, args.namespace):
        blocks = [one for one in survey.quarantine() if args.ids is None or one.block_id in args.ids]
        wrong = {one.block: one.why for one in survey.check(blocks)}
        told["blocks"] += [_as_dict(survey, one, wrong.get(one, "")) for one in blocks]
        if args.action == "purge":
            done += survey.remove(blocks)
        elif args.action == "restore":
            done += survey.restore([one for one in blocks if one not in wrong])
    if args.action != "list":
        told["purged_bytes" if args.action == "purge" else "restored"] = done
    if args.json:
        tell(told)
    else:
        _print(told)
    return EXIT_FOUND if args.action == "restore" and done < len(told["blocks"]) else 0


def _as_dict(survey: Survey, one: StoredBlock, why: str) -> dict[str, Any]:
    return {"directory": str(survey.root), "block_id": one.block_id.hex(), "bytes": one.nbytes, "why": why}


def _print(told: dict[str, Any]) -> None:
    rows = [
        (one["directory"], one["block_id"], human_bytes(one["bytes"]), one["why"] or "nothing: it can be restored")
        for one in told["blocks"]
    ]
    lines = [f"{len(rows):,} blocks were set aside"]
    if "purged_bytes" in told:
        lines.append(f"removed {human_bytes(told['purged_bytes'])}")
    if "restored" in told:
        lines.append(f"restored {told['restored']:,}")
    print_table("quarantine", ("directory", "block", "size", "what is wrong"), rows, *lines)
