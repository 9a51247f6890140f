"""Conformance suites for stores: subclass one in a test module, name the composition, and pytest runs it.

::

    class TestMyStage(StoreSuite):
        pipeline = "Mine|Fake"

    class TestMyStorage(PersistentStoreSuite):
        pipeline = "MyStorage"

        @pytest.fixture
        def store_keys(self, tmp_path):
            return {"storage_backends": [tmp_path]}

        def raw_read(self, keys, block_id): ...
        def raw_write(self, keys, block_id, stored): ...

The tests are coroutines: run them with pytest-asyncio in its auto mode.
"""

from __future__ import annotations

from ._store_bytes import BytesTests
from ._store_case import BLOCK_BYTES, SHARD_BYTES, SHARDS, Opener, all_ok, make_blocks, statuses, to_shards
from ._store_index import IndexTests
from ._store_persistence import PersistenceTests
from ._store_tasks import LifeTests, TaskTests

__all__ = [
    "BLOCK_BYTES",
    "SHARDS",
    "SHARD_BYTES",
    "BytesTests",
    "IndexTests",
    "LifeTests",
    "Opener",
    "PersistenceTests",
    "PersistentStoreSuite",
    "StoreSuite",
    "TaskTests",
    "all_ok",
    "make_blocks",
    "statuses",
    "to_shards",
]


class StoreSuite(BytesTests, IndexTests, TaskTests, LifeTests):
    """What every store must do, whatever its composition.

    Override `pipeline`, and the fixture `store_keys` where the composition needs more than its name. A composition
    that keeps its blocks only as long as the store is open must hold at least 300 blocks.
    """


class PersistentStoreSuite(StoreSuite, PersistenceTests):
    """What a store must do whose blocks outlive it. Override the two accessors that bypass it, too.

    `raw_read` and `raw_write` may block: no store is at work while they run.
    """
