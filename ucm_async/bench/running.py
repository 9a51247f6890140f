"""Running the cases of a benchmark one after another."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .measure import Finding
    from .setting import Setting

__all__ = ["describe_machine", "run_cases"]


async def run_cases(
    cases: Mapping[str, str],
    setting: Setting,
    names: Sequence[str],
    on_case: Callable[[str], None] = lambda _name: None,
) -> list[Finding]:
    """Run cases.

    Parameters
    ----------
    cases
        Each case, and its module in `ucm_async.bench.cases`.
    setting
        Given to each.
    names
        Which of them, in this order.
    on_case
        Called with each name before it runs.

    Raises
    ------
    BenchError, LimitError
        The disk is too small, the store failed, or the C program did.
    """
    found: list[Finding] = []
    for name in names:
        on_case(name)
        module = importlib.import_module(f".cases.{cases[name]}", __package__)
        found += await module.measure(setting)
    return found


def describe_machine() -> dict[str, Any]:
    """Tell what the figures depend on."""
    return {"kernel": platform.release(), "python": platform.python_version(), "cpus": os.cpu_count()}
