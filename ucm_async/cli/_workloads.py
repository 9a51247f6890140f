"""The workload that a command serves: a trace, or seeded chats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..bench.workloads import Request

__all__ = ["open_workload"]


@contextmanager
def open_workload(trace: Path | None, requests: int | None, seed: int) -> Iterator[Iterable[Request]]:
    """Open a workload, to be read lazily; of a trace without `requests` all, of chats their default number."""
    from ..bench.workloads import MultiTurn, parse_trace  # noqa: PLC0415  (not for ``--help``)

    if trace is None:
        yield MultiTurn(seed=seed, requests=requests or MultiTurn().requests)
        return
    with trace.open("rb") as lines:
        yield islice(parse_trace(lines, str(trace)), requests)
