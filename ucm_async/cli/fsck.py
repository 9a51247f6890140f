"""``ucm-async fsck``: verify everything that is stored, beside stores that run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ._options import positive_int
from ._stored import EXIT_FOUND, add_place_arguments, find_surveys, human_bytes, print_table, progress, tell

if TYPE_CHECKING:
    from ..space.survey import Finding, StoredBlock, Survey

__all__ = ["add_arguments", "run"]

_AT_ONCE: Final = 8
"""Blocks that a thread verifies at a time."""

_SHOWN_MAX: Final = 100
"""Findings that a table shows; JSON has all of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Read every block and verify its header, its place and its checksums; look for what dead writers left and for "
        "what no store has put there. Stores may go on meanwhile. Name all backends of a store, as its configuration "
        "does: then blocks on the wrong one are found, too."
    )
    parser.epilog = "Exit code: 0 clean, or repaired; 1 something was found and is still there; 2 it could not be done."
    add_place_arguments(parser)
    parser.add_argument(
        "--repair",
        action="store_true",
        help="set damaged blocks aside (they are misses from then on) and remove leftovers; what is strange stays",
    )
    parser.add_argument("--threads", type=positive_int, default=4, metavar="N", help="default: %(default)s")


@dataclass(slots=True)
class _Report:
    survey: Survey
    blocks: int = 0
    nbytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    set_aside: int = 0
    swept_bytes: int = 0
    repaired: bool = False

    @property
    def left(self) -> int:
        """How many findings are still there."""
        from ..space.survey import STRANGE  # noqa: PLC0415

        return sum(not self.repaired or one.kind == STRANGE for one in self.findings)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    reports = [_Report(survey) for survey in find_surveys(args.directories, args.namespace)]
    places = _places(reports)
    with progress("verify", sum(one.survey.count() for one in reports)) as advance:
        for report in reports:
            siblings = places[report.survey.fingerprint]
            for blocks, findings in _verify(report.survey, args.threads):
                report.blocks += len(blocks)
                report.nbytes += sum(one.nbytes for one in blocks)
                report.findings += findings + _misplaced(report.survey, siblings, blocks)
                advance(len(blocks))
            report.findings += report.survey.loose()
    if args.repair:
        for report in reports:
            _repair(report)
    _tell(args, reports)
    return EXIT_FOUND if any(report.left for report in reports) else 0


def _places(reports: Sequence[_Report]) -> dict[bytes, list[str]]:
    """Return the backends of each namespace among those that were named, as a store spells them."""
    places: dict[bytes, list[str]] = {}
    for report in reports:
        places.setdefault(report.survey.fingerprint, []).append(os.path.abspath(report.survey.root.parent))
    return places


def _misplaced(survey: Survey, places: Sequence[str], blocks: Sequence[StoredBlock]) -> list[Finding]:
    """Find blocks that a store with these backends would look for on another one.

    A block of the whole set of backends is at home in each part of that set which has its own, so naming only some of
    a store's backends accuses nobody.
    """
    if len(places) < 2 or not blocks:
        return []
    import numpy as np  # noqa: PLC0415  (not for ``--help``)

    from ..blocks.spread import backend_seeds, choose_backend  # noqa: PLC0415
    from ..space.survey import STRANGE, Finding  # noqa: PLC0415

    ids = np.frombuffer(b"".join(one.block_id for one in blocks), dtype=np.uint8).reshape(len(blocks), -1)
    homes = choose_backend(ids, backend_seeds(tuple(places)))
    here = places.index(os.path.abspath(survey.root.parent))
    return [
        Finding(STRANGE, block.where, block.nbytes, f"a store with these backends looks for it in {places[home]}")
        for block, home in zip(blocks, homes.tolist(), strict=True)
        if home != here
    ]


def _verify(survey: Survey, threads: int) -> Iterator[tuple[Sequence[StoredBlock], list[Finding]]]:
    """Yield some blocks at a time, and what is wrong with them; bounded, however many there are."""
    parts = (some[at : at + _AT_ONCE] for some in survey.blocks() for at in range(0, len(some), _AT_ONCE))
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(parts, 8 * threads)):
            yield from zip(batch, pool.map(survey.check, batch), strict=True)


def _repair(report: _Report) -> None:
    from ..space.survey import LEFTOVER  # noqa: PLC0415

    damaged = [one.block for one in report.findings if one.block is not None]
    report.set_aside = report.survey.set_aside(damaged)
    if any(one.kind == LEFTOVER for one in report.findings):
        report.swept_bytes = report.survey.sweep()
    report.repaired = True


def _tell(args: argparse.Namespace, reports: Sequence[_Report]) -> None:
    if args.json:
        tell({"clean": not any(one.left for one in reports), "namespaces": [_as_dict(one) for one in reports]})
        return
    rows = [
        (report.survey.root, one.kind, one.where, human_bytes(one.nbytes), one.why)
        for report in reports
        for one in report.findings
    ]
    lines = [
        f"{one.survey.root}: {one.blocks:,} blocks, {human_bytes(one.nbytes)}, {len(one.findings):,} findings"
        + (f"; set aside {one.set_aside:,}, removed {human_bytes(one.swept_bytes)}" if one.repaired else "")
        for one in reports
    ]
    if len(rows) > _SHOWN_MAX:
        lines.append(f"{len(rows) - _SHOWN_MAX:,} findings are not shown; --json has all of them")
    print_table("findings", ("directory", "kind", "where", "size", "what is wrong"), rows[:_SHOWN_MAX], *lines)
    if not reports:
        print("ucm-async fsck: there is no namespace there", file=sys.stderr)


def _as_dict(report: _Report) -> dict[str, Any]:
    return {
        "directory": str(report.survey.root),
        "namespace": report.survey.namespace,
        "blocks": report.blocks,
        "bytes": report.nbytes,
        "set_aside": report.set_aside,
        "swept_bytes": report.swept_bytes,
        "findings": [
            {
                "kind": one.kind,
                "where": one.where,
                "bytes": one.nbytes,
                "why": one.why,
                "block_id": one.block.block_id.hex() if one.block else None,
            }
            for one in report.findings
        ],
    }
