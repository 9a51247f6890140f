"""A table of a million entries: bytes an entry, how fast it is asked and filled, and how long it takes to start."""

from __future__ import annotations

import asyncio
from typing import Final

from ..cache import CacheSetting
from ..measure import Finding, Spread
from ..table import FilledTable

__all__ = ["measure"]

_BATCH: Final = 1000
_ROUNDS_MAX: Final = 3  # each of them fills a whole table


async def measure(setting: CacheSetting) -> list[Finding]:
    """Make the table anew each round."""
    return await asyncio.to_thread(_measure, setting)


def _measure(setting: CacheSetting) -> list[Finding]:
    probes, inserts, creates, attaches, repairs = [], [], [], [], []
    for _ in range(min(setting.rounds, _ROUNDS_MAX)):
        table = FilledTable(setting.entries)
        probes.append(table.probe_ns(_BATCH))
        inserts.append(table.insert_ns)
        creates.append(table.create_s * 1e3)
        attaches.append(table.attach_s * 1e3)
        repairs.append(table.repair_s * 1e3)
    size = table.nbytes / setting.entries
    named = f"{setting.entries} entries"
    return [
        Finding("million", f"{named}: size", Spread.of([size]), "bytes an entry", detail={"pages": table.page_mode}),
        Finding("million", f"{named}: probe of {_BATCH}", Spread.of(probes), "ns an id"),
        Finding("million", f"{named}: claim and publish", Spread.of(inserts), "ns an id"),
        Finding("million", f"{named}: made", Spread.of(creates), "ms"),
        Finding("million", f"{named}: joined", Spread.of(attaches), "ms"),
        Finding("million", f"{named}: repaired after a crash", Spread.of(repairs), "ms"),
    ]
