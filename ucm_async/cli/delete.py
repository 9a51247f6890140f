"""``ucm-async delete``: remove blocks by their ids, or all of a namespace."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._stored import EXIT_FOUND, block_id, find_surveys, human_bytes, progress, tell, walk

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Remove blocks. Stores may go on meanwhile: a load of a block that goes is a miss, and what they say they use "
        "is right. Those that know a block may answer a lookup from memory until they find it gone."
    )
    parser.epilog = "Exit code: 0 done, 1 an id was not there, 2 it could not be done."
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="a storage backend")
    parser.add_argument("--namespace", metavar="NAME", required=True, help="which one")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--id", dest="ids", action="append", type=block_id, metavar="HEX", help="a block; any number")
    what.add_argument("--all", action="store_true", help="every block of the namespace, and what was set aside")
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    surveys = find_surveys(args.directories, args.namespace)
    wanted = None if args.all else set(args.ids)
    found: set[bytes] = set()
    count, nbytes = 0, 0
    with progress("look at", sum(one.count() for one in surveys)) as advance:
        for survey in surveys:
            blocks = [one for one in walk(survey, advance) if wanted is None or one.block_id in wanted]
            if args.all:
                blocks += survey.quarantine()
            found |= {one.block_id for one in blocks}
            count += len(blocks)
            nbytes += sum(one.nbytes for one in blocks) if args.dry_run else survey.remove(blocks)
    missing = sorted(one.hex() for one in (wanted or set()) - found)
    _tell(args, {"removed": not args.dry_run, "blocks": count, "bytes": nbytes, "missing": missing})
    return EXIT_FOUND if missing else 0


def _tell(args: argparse.Namespace, told: dict[str, Any]) -> None:
    if args.json:
        tell(told)
        return
    verb = "Would remove" if args.dry_run else "Removed"
    print(f"{verb} {told['blocks']:,} blocks, {human_bytes(told['bytes'])}.")
    for one in told["missing"]:
        print(f"not there: {one}")
