"""What every test here gets: both event loops, and a guard against blocking calls on them."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Iterator, Mapping

import pytest
from blockbuster import BlockBuster
from hypothesis import settings

from ucm_async.testing.blocking_calls import make_guard

# A slow machine is no failure of ours: no deadline an example.
settings.register_profile("suite", deadline=None, print_blob=True)
settings.load_profile("suite")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every asynchronous test on asyncio's loop, and again on uvloop's where that is installed."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if importlib.util.find_spec("uvloop"):
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture(scope="session")
def blockbuster() -> BlockBuster:
    """The guard. The suites of `testing` are tests themselves, which may write files; what they call is watched."""
    guard = make_guard("ucm_async", ["ucm_async.testing"])
    # `open_store("store.toml")` reads one small file, once, before there is a store that could be late.
    guard.functions["io.TextIOWrapper.read"].can_block_in("ucm_async/_config_sources.py", "_read_file")
    return guard


@pytest.fixture(autouse=True)
def no_blocking_calls(request: pytest.FixtureRequest, blockbuster: BlockBuster) -> Iterator[None]:
    """Fail a test if the package blocks a running loop; ``@pytest.mark.may_block("why")`` allows it."""
    if request.node.get_closest_marker("may_block"):
        yield
        return
    blockbuster.activate()
    try:
        yield
    finally:
        blockbuster.deactivate()
