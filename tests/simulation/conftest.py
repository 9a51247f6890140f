"""Tests here run on the simulated clock as well, where that makes sense."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from ucm_async.testing.simulation.clock import SimulatedLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A simulated engine runs on any loop; what is about time runs on the simulated one."""
    if item.get_closest_marker("any_loop"):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop, "simulated": SimulatedLoop}
    return {"simulated": SimulatedLoop}
