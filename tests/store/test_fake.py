"""The Fake composition."""

from __future__ import annotations

from ucm_async.testing.stores import StoreSuite


class TestFake(StoreSuite):
    pipeline = "Fake"
