"""What the tests of whole stores share: blocks that can be made smaller, stores of them, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import ucm_async as ucm
from ucm_async.blocks.encoded_header import header_checksums
from ucm_async.blocks.header import ENTRY, HEADER, used_bytes
from ucm_async.store import Store

from .tools import U8, kv_blocks

SHARD = 16 << 10
SHARDS = 4
BLOCK = SHARD * SHARDS
PAGE = 4096
PLAIN_FILE = BLOCK + PAGE


def keys(directory: Path, **changes: Any) -> dict[str, Any]:
    """Keys of a small store."""
    return {
        "storage_backends": [str(directory)],
        "block_size": BLOCK,
        "shard_size": SHARD,
        "namespace": "compress tests",
        "staging_buffer_gb": 0.002,
        "known_blocks_max": 4096,
        "compress_threads": 2,
    } | changes


def open_compressed(directory: Path, codec: str = "huffman", **changes: Any) -> Any:
    """Open ``Compress|Posix``."""
    return ucm.open_store("Compress|Posix", **keys(directory, compress_codec=codec, **changes))


def open_plain(directory: Path, **changes: Any) -> Any:
    """Open ``Posix`` on the same blocks."""
    return ucm.open_store("Posix", **keys(directory, **changes))


def real_blocks(count: int, seed: int = 0, size: int = BLOCK) -> tuple[U8, U8]:
    """Ids, and real KV, bf16: uint8, shape (count, size); a number in each block tells them apart."""
    generator = np.random.default_rng(seed)
    tape = kv_blocks().reshape(-1)
    starts = generator.integers(0, (len(tape) - size) // 128, count) * 128
    data = np.stack([tape[start : start + size] for start in starts.tolist()])
    data[:, 64:72] = np.arange(count, dtype="<u8").reshape(-1, 1).view(np.uint8)
    return ucm.block_ids(range(seed << 20, (seed << 20) + count)), data


def file_of(directory: Path, block_id: U8) -> Path:
    """The file of a block that is stored."""
    (found,) = directory.glob(f"*/??/{block_id.tobytes().hex()}")
    return found


def is_stored(directory: Path, block_id: U8) -> bool:
    return bool(list(directory.glob(f"*/??/{block_id.tobytes().hex()}")))


def quarantined(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*/quarantine/*"))


class StoredFile:
    """The bytes of a block's file, to be changed and put back with all checksums right."""

    def __init__(self, path: Path, shards: int = SHARDS) -> None:
        self.path = path
        self.bytes: U8 = np.frombuffer(bytearray(path.read_bytes()), np.uint8)
        self.head: Any = self.bytes[: HEADER.itemsize].view(HEADER)[0:1]
        self.entries: Any = self.bytes[HEADER.itemsize : used_bytes(shards)].view(ENTRY)
        self._used = used_bytes(shards)

    @property
    def end(self) -> int:
        """Where the last shard ends."""
        return int((self.entries["offset"] + self.entries["stored_length"]).max())

    def shard(self, i: int) -> U8:
        start, length = int(self.entries["offset"][i]), int(self.entries["stored_length"][i])
        return self.bytes[start : start + length]

    def put(self, *, sums: bool = True) -> None:
        """Write it, with checksums that fit."""
        if sums:
            for i in range(len(self.entries)):
                self.entries["checksum"][i] = ucm.native.crc32c(self.shard(i)) if len(self.shard(i)) else 0
        header = np.ascontiguousarray(self.bytes[: self._used]).reshape(1, -1)
        self.head["header_checksum"] = header_checksums(header)[0]
        self.path.write_bytes(self.bytes.tobytes())


async def load_all(store: Store, ids: U8, size: int = BLOCK) -> tuple[Any, U8]:
    """Load whole blocks over memory full of 0xEE."""
    back = np.full((len(ids), size), 0xEE, np.uint8)
    return await store.load(ids, None, back), back
