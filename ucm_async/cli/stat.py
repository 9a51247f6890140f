"""``ucm-async stat``: who occupies how much of some backends, and since when."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from ._stored import add_place_arguments, find_surveys, human_bytes, print_table, progress, tell, walk

if TYPE_CHECKING:
    from ..space.survey import Survey

__all__ = ["add_arguments", "run"]

AGES: Final = (("hour", 3600.0), ("day", 86400.0), ("week", 7 * 86400.0))
"""Bounds of the ages that are told apart: how long ago a block was written."""

OLDER: Final = "older"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = "Tell how much each namespace occupies in each backend, and how long ago it was written."
    add_place_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    surveys = find_surveys(args.directories, args.namespace)
    with progress("look at", sum(one.count() for one in surveys)) as advance:
        told = [_look(survey, advance) for survey in surveys]
    totals = {
        "blocks": sum(one["blocks"] for one in told),
        "bytes": sum(one["bytes"] for one in told),
        "quarantine_bytes": sum(one["quarantine_bytes"] for one in told),
    }
    if args.json:
        tell({"namespaces": told, "total": totals})
        return 0
    columns = ("backend", "namespace", "blocks", "bytes", *(f"last {name}" for name, _ in AGES), OLDER)
    rows = [
        (
            one["backend"],
            one["namespace"],
            f"{one['blocks']:,}",
            human_bytes(one["bytes"]),
            *(human_bytes(one["bytes_by_age"][name]) for name in (*(name for name, _ in AGES), OLDER)),
            human_bytes(one["quarantine_bytes"]),
            one["open_stores"],
        )
        for one in told
    ]
    all_of_it = f"together {totals['blocks']:,} blocks, {human_bytes(totals['bytes'])}"
    print_table("stored blocks", (*columns, "set aside", "open stores"), rows, all_of_it)
    return 0


def _look(survey: Survey, advance: Any) -> dict[str, Any]:
    now, by_age = time.time(), Counter({name: 0 for name in (*(name for name, _ in AGES), OLDER)})
    blocks = walk(survey, advance)
    for one in blocks:
        by_age[next((name for name, bound in AGES if now - one.written_s < bound), OLDER)] += one.nbytes
    return {
        "backend": str(survey.root.parent),
        "directory": str(survey.root),
        "namespace": survey.namespace,
        "fingerprint": survey.fingerprint.hex(),
        "blocks": len(blocks),
        "bytes": sum(one.nbytes for one in blocks),
        "bytes_by_age": dict(by_age),
        "quarantine_bytes": sum(one.nbytes for one in survey.quarantine()),
        "open_stores": len(survey.living()),
    }
