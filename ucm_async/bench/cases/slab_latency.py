"""One 64 KiB load on an idle store of slots, against a bare ``preadv`` of the same slot."""

from __future__ import annotations

from ..measure import Finding
from ..slab import SlabSetting
from . import latency

__all__ = ["measure"]


async def measure(setting: SlabSetting) -> list[Finding]:
    """See `latency.measure`."""
    return await latency.measure(setting, "Slab")
