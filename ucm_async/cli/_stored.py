"""What the commands that look at stored blocks share: which namespaces there are, and how progress is shown."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import UcmError

if TYPE_CHECKING:
    from rich.table import Table

    from ..space.survey import StoredBlock, Survey

__all__ = [
    "EXIT_FOUND",
    "add_place_arguments",
    "block_id",
    "find_surveys",
    "human_bytes",
    "print_table",
    "progress",
    "tell",
    "walk",
]

EXIT_FOUND: Final = 1

LAYOUTS: Final = {
    "posix": "ucm_async.stages.posix.survey:PosixSurvey",
    "slab": "ucm_async.stages.slab.survey:SlabSurvey",
}
"""Who knows each layout: module and class, which takes the directory of a namespace."""

_WIDTH: Final = 150
_FINGERPRINT_DIGITS: Final = 32


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says where to look."""
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="a storage backend")
    parser.add_argument("--namespace", metavar="NAME", help="only this one (default: all of them)")


def find_surveys(directories: Sequence[Path], namespace: str | None) -> list[Survey]:
    """Return a survey of each namespace in some backends.

    Parameters
    ----------
    directories
        Backends.
    namespace
        Only those of this name, whatever their geometry; None: all.

    Raises
    ------
    UcmError
        A directory is none, nothing of that name is there, or its layout is not known here.
    """
    from ..blocks.directory import layout_of  # noqa: PLC0415  (not for ``--help``)
    from ..engines.system import current_system  # noqa: PLC0415

    found = []
    for directory in directories:
        if not directory.is_dir():
            raise UcmError(f"{str(directory)!r}: not a directory, must be a storage backend")
        for root in sorted(one for one in directory.iterdir() if _is_namespace(one)):
            layout = layout_of(current_system(), root)
            if layout not in LAYOUTS:
                raise UcmError(f"{str(root)!r}: layout {layout!r}, must be of {', '.join(LAYOUTS)}")
            module, _, name = LAYOUTS[layout].partition(":")
            survey: Survey = getattr(importlib.import_module(module), name)(root)
            if namespace in (None, survey.namespace):
                found.append(survey)
    if namespace is not None and not found:
        raise UcmError(f"--namespace: {namespace!r} is not in {', '.join(map(str, directories))}")
    return found


def _is_namespace(root: Path) -> bool:
    digits = root.name.rpartition("-")[2]
    return root.is_dir() and len(digits) == _FINGERPRINT_DIGITS and set(digits) <= set("0123456789abcdef")


def block_id(text: str) -> bytes:
    """Parse the id of a block: 32 hex digits."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != _FINGERPRINT_DIGITS // 2:
        raise argparse.ArgumentTypeError(f"{text!r}, must be 32 hex digits")
    return value


def walk(survey: Survey, advance: Callable[[int], None]) -> list[StoredBlock]:
    """Return all blocks of a namespace."""
    blocks: list[StoredBlock] = []
    for some in survey.blocks():
        blocks += some
        advance(len(some))
    return blocks


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr while blocks are looked at; yields what is told how many more are done."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("blocks"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda count: shown.advance(task, count)


def human_bytes(count: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.2f} TiB"


def tell(told: dict[str, Any]) -> None:
    """Print JSON."""
    print(json.dumps(told, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *lines: str) -> None:
    """Print a table, and lines below it."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:  # a pipe has no width; 80 columns would wrap every cell
        console = Console(width=_WIDTH)
    if rows:
        console.print(_table(Table, title, columns, rows))
    for line in lines:
        console.print(line, highlight=False)


def _table(make: type[Table], title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    table = make(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    return table
