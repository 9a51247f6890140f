"""The stages that need no disk, batch by batch."""

from __future__ import annotations

from ucm_async.testing.stages import StageSuite


class TestFake(StageSuite):
    pipeline = "Fake"
