"""The engine benchmark: its cases, by name."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from .measure import Finding
from .setting import Setting

__all__ = ["CASES", "describe_machine", "run_cases"]

CASES: Final[Mapping[str, str]] = {
    "load": "load",
    "dump": "dump",
    "lookup": "lookup",
    "latency": "latency",
    "ticker": "ticker",
    "open": "opening",
}
"""Each case, and its module in `ucm_async.bench.cases`."""


async def run_cases(
    setting: Setting, names: Sequence[str], on_case: Callable[[str], None] = lambda _name: None
) -> list[Finding]:
    """Run cases one after another.

    Raises
    ------
    BenchError, LimitError
        The disk is too small, the store failed, or the C program did.
    """
    found: list[Finding] = []
    for name in names:
        on_case(name)
        module = importlib.import_module(f".cases.{CASES[name]}", __package__)
        found += await module.measure(setting)
    return found


def describe_machine() -> dict[str, Any]:
    """Tell what the figures depend on."""
    return {"kernel": platform.release(), "python": platform.python_version(), "cpus": os.cpu_count()}
