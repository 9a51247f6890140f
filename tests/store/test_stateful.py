"""Any sequence of verbs, against a dictionary."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

from ucm_async.testing.stateful import StoreMachine


class Posix(StoreMachine):
    pipeline = "Posix"

    def store_keys(self, directory: str) -> dict[str, Any]:
        return {"storage_backends": [directory], "io_engine": "psync"}


class PosixAuto(StoreMachine):
    pipeline = "Posix"

    def store_keys(self, directory: str) -> dict[str, Any]:
        return {"storage_backends": [f"{directory}/a", f"{directory}/b"], "queue_number": 1}


class Fake(StoreMachine):
    pipeline = "Fake"
    persistent = False


# Slow only where files are made; hypothesis need not complain of that.
slow = settings(max_examples=12, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow])

TestPosix = Posix.TestCase
TestPosix.settings = slow
TestPosixAuto = PosixAuto.TestCase
TestPosixAuto.settings = slow
TestFake = Fake.TestCase
TestFake.settings = settings(max_examples=40, stateful_step_count=30)
