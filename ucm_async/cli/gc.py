"""``ucm-async gc``: what collection would remove from some backends to keep within bounds, coldest first."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..errors import UcmError
from ._options import amount
from ._stored import add_place_arguments, find_surveys, human_bytes, print_table, progress, tell, walk

if TYPE_CHECKING:
    from pathlib import Path

    from ..space.survey import StoredBlock, Survey

__all__ = ["add_arguments", "run"]

_SHOWN_MAX: Final = 20
"""Blocks that a table shows; JSON has all of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Remove what a store with these bounds would: first what was set aside, then the coldest blocks, by the "
        "hotness that stores have written down (every ten seconds, and when they close). A store that is open with a "
        "bound does this by itself; while one does, this command waits for its turn."
    )
    add_place_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="remove nothing, say what would go")
    parser.add_argument("--capacity-gb", type=amount, default=0.0, metavar="G", help="of all namespaces together, GiB")
    parser.add_argument("--quota-gb", type=amount, default=0.0, metavar="G", help="of each namespace, GiB")
    parser.add_argument(
        "--low",
        type=amount,
        default=0.9,
        metavar="SHARE",
        help="of the bounds, to which it goes (default: %(default)s)",
    )


@dataclass(slots=True)
class _Namespace:
    """One namespace over all backends: `places` and `where` (index into `places`, by block) tell where a block is."""

    places: list[Survey]
    blocks: list[StoredBlock]
    where: list[int]
    aside: list[list[StoredBlock]]

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.blocks) + sum(one.nbytes for some in self.aside for one in some)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    if not (args.capacity_gb or args.quota_gb):
        raise UcmError("gc: no bound, must have --capacity-gb or --quota-gb")
    if args.low > 1:
        raise UcmError(f"--low: {args.low}, must be at most 1")
    surveys = find_surveys(args.directories, None)  # all of them count for the capacity
    chosen = [one for one in surveys if args.namespace in (None, one.namespace)]
    if args.namespace is not None and not chosen:
        raise UcmError(f"--namespace: {args.namespace!r} is not in {', '.join(map(str, args.directories))}")
    told = []
    with ExitStack() as held:
        if not args.dry_run:
            _take_turns(chosen, held)
        with progress("look at", sum(one.count() for one in surveys)) as advance:
            found = _gather(surveys, advance)
        charged = sum(one.nbytes for one in found)
        for one in found:
            if one.places[0] in chosen:
                told.append(_collect(args, one, charged))
                charged -= told[-1]["bytes"]
    if args.json:
        tell({"removed": not args.dry_run, "namespaces": told})
    else:
        _print(args, told)
    return 0


def _take_turns(surveys: Sequence[Survey], held: ExitStack) -> None:
    """Keep stores from collecting at the same time: together they would remove too much."""
    from ..engines.system import current_system  # noqa: PLC0415  (not for ``--help``)
    from ..space.survey import collecting  # noqa: PLC0415

    roots: dict[bytes, list[Path]] = {}
    for survey in surveys:
        roots.setdefault(survey.fingerprint, []).append(survey.root)
    for fingerprint in sorted(roots):  # two that run at once take them in the same order
        held.enter_context(collecting(current_system(), fingerprint, roots[fingerprint]))


def _gather(surveys: Sequence[Survey], advance: Callable[[int], None]) -> list[_Namespace]:
    found: dict[bytes, _Namespace] = {}
    for survey in surveys:
        one = found.setdefault(survey.fingerprint, _Namespace([], [], [], []))
        blocks = walk(survey, advance)
        one.blocks += blocks
        one.where += [len(one.places)] * len(blocks)
        one.aside.append(survey.quarantine())
        one.places.append(survey)
    return list(found.values())


def _collect(args: argparse.Namespace, namespace: _Namespace, charged: int) -> dict[str, Any]:
    """Choose what goes of a namespace, and remove it unless that is only tried."""
    from ..space.limits import GIB, SpaceLimits  # noqa: PLC0415  (not for ``--help``)

    limits = SpaceLimits(int(args.capacity_gb * GIB), int(args.quota_gb * GIB), high=args.low, low=args.low)
    excess = limits.excess(charged, namespace.nbytes)
    aside = namespace.aside if excess > 0 else [[] for _ in namespace.places]
    left = excess - sum(one.nbytes for some in aside for one in some)
    chosen: list[tuple[int, float]] = []
    for index, hotness in _coldest_first(namespace) if left > 0 else ():
        if left <= 0:
            break
        chosen.append((index, hotness))
        left -= namespace.blocks[index].nbytes
    if not args.dry_run:
        for place, survey in enumerate(namespace.places):
            survey.remove([*aside[place], *(namespace.blocks[i] for i, _ in chosen if namespace.where[i] == place)])
    return {
        "namespace": namespace.places[0].namespace,
        "fingerprint": namespace.places[0].fingerprint.hex(),
        "stored_bytes": namespace.nbytes,
        "excess_bytes": max(0, excess),
        "bytes": sum(namespace.blocks[i].nbytes for i, _ in chosen) + sum(one.nbytes for some in aside for one in some),
        "set_aside": sum(map(len, aside)),
        "blocks": [
            {"block_id": namespace.blocks[i].block_id.hex(), "bytes": namespace.blocks[i].nbytes, "hotness": hotness}
            for i, hotness in chosen
        ],
    }


def _coldest_first(namespace: _Namespace) -> list[tuple[int, float]]:
    """Return the index of each block and its number, as the collector orders them."""
    from ..engines.system import current_system  # noqa: PLC0415
    from ..space.hotfile import HotFiles  # noqa: PLC0415
    from ..space.hotness import access_number  # noqa: PLC0415

    known: dict[bytes, float] = {}
    for survey in namespace.places:
        for ids, numbers in HotFiles(current_system(), survey.root, "").read_others():
            for one, number in zip(ids, numbers.tolist(), strict=True):
                key = one.tobytes()
                known[key] = max(known.get(key, number), number)
    order = [
        (index, known.get(one.block_id, access_number(one.written_s, 1.0)))
        for index, one in enumerate(namespace.blocks)
    ]
    return sorted(order, key=lambda pair: pair[1])


def _print(args: argparse.Namespace, told: Sequence[dict[str, Any]]) -> None:
    rows = [
        (one["namespace"], block["block_id"], human_bytes(block["bytes"]), f"{block['hotness']:.3f}")
        for one in told
        for block in one["blocks"]
    ]
    verb = "would go" if args.dry_run else "gone"
    lines = [f"{len(rows) - _SHOWN_MAX:,} more blocks are not shown; --json has all of them"]
    lines = lines if len(rows) > _SHOWN_MAX else []
    lines += [
        f"{one['namespace']}: {human_bytes(one['stored_bytes'])} stored, {human_bytes(one['excess_bytes'])} too much; "
        f"{verb}: {len(one['blocks']):,} blocks and {one['set_aside']:,} that were set aside, "
        f"{human_bytes(one['bytes'])}"
        for one in told
    ]
    print_table("coldest first", ("namespace", "block", "size", "hotness"), rows[:_SHOWN_MAX], *lines)
