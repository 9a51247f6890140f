"""What a test of this library, or of a part made for it, can use. Needs the extra ``test``.

General layout::

    engines         conformance suite for engines
    stages          conformance suite for stages
    stores          conformance suites for stores; their parts are the modules `_store_…`
    stateful        a store driven by hypothesis against a dictionary
    faults          an engine that fails on demand
    simulation      whole stores on a simulated machine, from a seed
    blocking_calls  a guard that fails a test whose code blocks the event loop

Import the modules, not this package: each needs only what it uses.
"""

from __future__ import annotations

import sys

_SUITES = (
    "_store_bytes",
    "_store_case",
    "_store_index",
    "_store_persistence",
    "_store_tasks",
    "engines",
    "stages",
    "stateful",
)

if "pytest" in sys.modules:  # a failed assertion of a suite should show its values, as those of test modules do
    sys.modules["pytest"].register_assert_rewrite(*(f"{__name__}.{module}" for module in _SUITES))
