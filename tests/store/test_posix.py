"""The Posix composition, with each engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from ucm_async.testing.stores import BytesTests, PersistenceTests, PersistentStoreSuite


class PosixKeys:
    """What a suite must know of Posix."""

    pipeline = "Posix"
    engine: ClassVar[str]

    @pytest.fixture
    def store_keys(self, tmp_path: Path) -> dict[str, Any]:
        return {"storage_backends": [str(tmp_path)], "io_engine": self.engine}

    def raw_read(self, keys: dict[str, Any], block_id: bytes) -> bytes | None:
        found = find_block(keys, block_id)
        return found.read_bytes() if found else None

    def raw_write(self, keys: dict[str, Any], block_id: bytes, stored: bytes) -> None:
        found = find_block(keys, block_id)
        assert found is not None
        found.write_bytes(stored)


def find_block(keys: dict[str, Any], block_id: bytes) -> Path | None:
    """Return the committed file of a block, if it is there; only one namespace has it."""
    (backend,) = keys["storage_backends"]
    found = [path for path in Path(backend).glob(f"*/??/{block_id.hex()}")]
    assert len(found) <= 1
    return found[0] if found else None


class TestPsync(PosixKeys, PersistentStoreSuite):
    engine = "psync"


class TestAuto(PosixKeys, PersistentStoreSuite):
    engine = "auto"


class TestUring(PosixKeys, BytesTests, PersistenceTests):
    """What the engine has a part in; the rest would be the same tests again."""

    engine = "uring"


class TestAio(PosixKeys, BytesTests):
    """Bytes only: the kernel takes a tenth of a second to free each of its contexts."""

    engine = "aio"
