"""The command line, ``ucm-async``.

One module a command, imported only when that command is called. Such a module has::

    def add_arguments(parser: argparse.ArgumentParser) -> None    its options; --json is there already
    def run(arguments: argparse.Namespace) -> int                 does it, returns the exit code

Exit codes: 0 all is well, 1 the command ran and what it found is not, 2 wrong usage or an error.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from .. import __version__
from ..errors import UcmError

__all__ = ["COMMANDS", "main"]

COMMANDS: Final[Mapping[str, str]] = {
    "replay": "run a workload as an inference frontend does, and compare every loaded byte",
    "bench": "measure an engine on this machine",
    "simulate": "whole stores on a simulated machine, with faults, from a seed",
    "fsck": "verify everything that is stored; repair it",
    "gc": "what collection would remove, coldest first; collect",
    "stat": "who occupies how much of some backends",
    "delete": "remove blocks, or all of a namespace",
    "quarantine": "list, restore or remove what was set aside as damaged",
    "shm": "list, inspect and remove the shared memory of the Cache",
    "doctor": "what this machine offers, and what to change",
}
"""Each command, the name of its module here, and its line in the help."""

EXIT_ERROR: Final = 2
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        The arguments; default: those of the process.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    SystemExit
        Wrong usage, or ``--help``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = _make_parser(argv).parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (UcmError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            return _leave_quietly()
        print(f"ucm-async {arguments.command}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser that knows every command, and the options of the one that `argv` names."""
    parser = argparse.ArgumentParser(prog="ucm-async", description="An asyncio-native KV-cache store: tools.")
    parser.add_argument("--version", action="version", version=f"ucm-async {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    chosen = next((one for one in argv if not one.startswith("-")), None)
    for name, line in COMMANDS.items():
        command = commands.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
        if name == chosen:
            module = importlib.import_module(f".{name}", __name__)
            command.add_argument("--json", action="store_true", help="print JSON instead of tables")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def _leave_quietly() -> int:
    """End as other tools do when their reader (``| head``) has gone."""
    # What is still buffered would raise again when the interpreter flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
