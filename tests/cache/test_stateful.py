"""Any sequence of verbs against a dictionary, with a Cache above the stage that stores."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

from ucm_async.testing.stateful import StoreMachine

from .support import fresh_id


class Machine(StoreMachine):
    slots = 6

    def store_keys(self, directory: str) -> dict[str, Any]:
        return {
            "unique_id": fresh_id(),
            "cache_buffer_capacity_gb": self.slots * 3 * 4096 / (1 << 30),
            "storage_backends": [directory] if self.pipeline.endswith("Posix") else [],
            "io_engine": "psync",
        }


class OverFake(Machine):
    """Hardly more slots than blocks."""

    pipeline = "Cache|Fake"
    persistent = False


class OverPosix(Machine):
    pipeline = "Cache|Posix"
    slots = 12


TestOverFake = OverFake.TestCase
TestOverFake.settings = settings(max_examples=15, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow])
TestOverPosix = OverPosix.TestCase
TestOverPosix.settings = settings(max_examples=8, stateful_step_count=20, suppress_health_check=[HealthCheck.too_slow])
