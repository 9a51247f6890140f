"""A guard against blocking calls on an event loop, for tests.

blockbuster watches the calls that web services make; a store makes others. Used as a fixture::

    @pytest.fixture(autouse=True)
    def no_blocking_calls():
        with forbidden("my_package"):
            yield
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from blockbuster import BlockBuster, BlockBusterFunction

__all__ = ["OS_FUNCTIONS", "forbidden", "make_guard"]

OS_FUNCTIONS: Final = (
    "open",
    "pread",
    "preadv",
    "pwrite",
    "pwritev",
    "readv",
    "writev",
    "fsync",
    "fdatasync",
    "ftruncate",
)
"""What is watched besides blockbuster's own list."""


def make_guard(package: str, excluded: Sequence[str] = ()) -> BlockBuster:
    """Return a guard over `package`, not active yet.

    Parameters
    ----------
    package
        Name of the package whose calls are watched: a call counts if one of its modules is on the stack.
    excluded
        Modules of it that may block, tests for instance; what they call is watched all the same.
    """
    guard = BlockBuster(package, excluded_modules=list(excluded))
    for name in OS_FUNCTIONS:
        full_name = f"os.{name}"
        function = BlockBusterFunction(None, full_name, scanned_modules=package, excluded_modules=list(excluded))
        guard.functions.setdefault(full_name, function)
    for function in guard.functions.values():
        function.can_block_in("_portable/gate.py", {"close", "entered"})  # a lock that is held for microseconds
    return guard


@contextmanager
def forbidden(package: str, excluded: Sequence[str] = ()) -> Iterator[BlockBuster]:
    """Raise ``blockbuster.BlockingError`` wherever `package` blocks a running loop inside the ``with`` block."""
    guard = make_guard(package, excluded)
    guard.activate()
    try:
        yield guard
    finally:
        guard.deactivate()
