"""The engine benchmark: its cases, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from . import running

if TYPE_CHECKING:
    from .measure import Finding
    from .setting import Setting

__all__ = ["CASES", "run_cases"]

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
    """See `running.run_cases`."""
    return await running.run_cases(CASES, setting, names, on_case)
