"""What a test of this library, or of a part made for it, can use. Needs the extra ``test``.

General layout::

    engines         conformance suite for engines
    faults          an engine that fails on demand
    blocking_calls  a guard that fails a test whose code blocks the event loop

Import the modules, not this package: each needs only what it uses.
"""
