"""The Slab composition, with each engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from ucm_async.testing.stores import BytesTests, PersistenceTests, PersistentStoreSuite

from .support import find_block

CAPACITY_GB = 2**-5  # 32 MiB: segments of two


class SlabKeys:
    """What a suite must know of Slab."""

    pipeline = "Slab"
    engine: ClassVar[str]

    @pytest.fixture
    def store_keys(self, tmp_path: Path) -> dict[str, Any]:
        return {"storage_backends": [str(tmp_path)], "io_engine": self.engine, "posix_capacity_gb": CAPACITY_GB}

    def raw_read(self, keys: dict[str, Any], block_id: bytes) -> bytes | None:
        (backend,) = keys["storage_backends"]
        found = find_block(Path(backend), block_id)
        return found.read() if found else None

    def raw_write(self, keys: dict[str, Any], block_id: bytes, stored: bytes) -> None:
        (backend,) = keys["storage_backends"]
        found = find_block(Path(backend), block_id)
        assert found is not None
        found.write(stored.ljust(found.nbytes, b"\0"))


class TestPsync(SlabKeys, PersistentStoreSuite):
    engine = "psync"


class TestAuto(SlabKeys, PersistentStoreSuite):
    engine = "auto"


class TestUring(SlabKeys, BytesTests, PersistenceTests):
    """What the engine has a part in; the rest would be the same tests again."""

    engine = "uring"


class TestAio(SlabKeys, BytesTests):
    """Bytes only: the kernel takes a tenth of a second to free each of its contexts."""

    engine = "aio"
