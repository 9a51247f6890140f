"""The header of a block file, for many blocks at a time. Pure; the format is told in docs/design/format.md."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..types import U8, Bools

__all__ = [
    "CHECKSUM_CRC32C",
    "CHECKSUM_FROM",
    "ENTRY",
    "HEADER",
    "HEADER_ALIGN",
    "MAGIC",
    "VERSION",
    "HeaderCheck",
    "check_headers",
    "header_bytes",
    "header_template",
    "pack_headers",
    "seal_headers",
    "used_bytes",
]

MAGIC: Final = b"UCMKVBLK"
VERSION: Final = 1
CHECKSUM_CRC32C: Final = 1
CODEC_RAW: Final = 0
HEADER_ALIGN: Final = 4096
"""Data begins at a multiple of this, so that it can be read and written with O_DIRECT everywhere."""

HEADER: Final = np.dtype(
    [
        ("magic", "S8"),
        ("header_checksum", "<u4"),  # of the bytes from `version` to the end of the last entry
        ("version", "<u2"),
        ("checksum_algorithm", "<u2"),
        ("block_id", "u1", 16),
        ("namespace", "u1", 16),
        ("header_bytes", "<u4"),  # where the data begins
        ("shard_count", "<u4"),
        ("codec", "<u4"),
        ("flags", "<u4"),
        ("codec_parameters", "u1", 16),
    ]
)
ENTRY: Final = np.dtype(
    [
        ("offset", "<u8"),  # from the start of the file
        ("raw_length", "<u4"),
        ("stored_length", "<u4"),
        ("checksum", "<u4"),  # of the stored bytes
        ("codec", "<u4"),  # of this shard; 0 = as it is
    ]
)
CHECKSUM_FROM: Final = 12
"""The header's own checksum covers the bytes from here."""


_ID_AT: Final = 16


def used_bytes(shard_count: int) -> int:
    """Bytes of a header that say something."""
    return HEADER.itemsize + ENTRY.itemsize * shard_count


def header_bytes(shard_count: int) -> int:
    """Bytes that a header takes in the file."""
    return -(-used_bytes(shard_count) // HEADER_ALIGN) * HEADER_ALIGN


def pack_headers(ids: U8, namespace: bytes, shard_size: int, checksums: npt.NDArray[np.uint32]) -> U8:
    """Build the headers of raw blocks, without their own checksums.

    Parameters
    ----------
    ids
        uint8, shape (n, 16).
    namespace
        Fingerprint, 16 bytes.
    shard_size
        Bytes of every shard.
    checksums
        CRC-32C of every shard, shape (n, shards).

    Returns
    -------
    numpy.ndarray
        uint8, shape (n, used_bytes). Store the checksum of ``[:, CHECKSUM_FROM:]`` with `seal_headers`.
    """
    n, shard_count = checksums.shape
    out = np.zeros((n, used_bytes(shard_count)), dtype=np.uint8)
    head = out[:, : HEADER.itemsize].view(HEADER)[:, 0]
    head["magic"] = MAGIC
    head["version"] = VERSION
    head["checksum_algorithm"] = CHECKSUM_CRC32C
    head["block_id"] = ids
    head["namespace"] = np.frombuffer(namespace, dtype=np.uint8)
    head["header_bytes"] = header_bytes(shard_count)
    head["shard_count"] = shard_count
    head["codec"] = CODEC_RAW
    entries = out[:, HEADER.itemsize :].view(ENTRY)
    entries["offset"] = header_bytes(shard_count) + shard_size * np.arange(shard_count, dtype=np.uint64)
    entries["raw_length"] = entries["stored_length"] = shard_size
    entries["checksum"] = checksums
    return out


@lru_cache(maxsize=64)
def header_template(namespace: bytes, shard_size: int, shard_count: int) -> bytes:
    """Return a header with everything but the block's id and the checksums."""
    nobody = np.zeros((1, 16), dtype=np.uint8)
    return pack_headers(nobody, namespace, shard_size, np.zeros((1, shard_count), dtype=np.uint32)).tobytes()


def seal_headers(headers: U8, checksums: npt.NDArray[np.uint32]) -> None:
    """Write each header's own checksum into it."""
    headers[:, : HEADER.itemsize].view(HEADER)[:, 0]["header_checksum"] = checksums


@dataclass(frozen=True, slots=True)
class HeaderCheck:
    """What `check_headers` found.

    Attributes
    ----------
    good
        Bool, shape (n,).
    why
        Index of a header that is not good -> what is wrong with it.
    checksums
        Of every shard as the header tells it, uint32, shape (n, shards). Meaningless where not good.
    """

    good: Bools
    why: dict[int, str]
    checksums: npt.NDArray[np.uint32]


def check_headers(
    headers: U8, ids: U8, namespace: bytes, shard_size: int, own_checksums: npt.NDArray[Any]
) -> HeaderCheck:
    """Check headers against what they must say.

    Parameters
    ----------
    headers
        uint8, shape (n, used_bytes), C-contiguous.
    ids, namespace, shard_size
        As for `pack_headers`.
    own_checksums
        The checksums that were computed of ``headers[:, CHECKSUM_FROM:]``, shape (n,).
    """
    entries = headers[:, HEADER.itemsize :].view(ENTRY)
    checksums = np.ascontiguousarray(entries["checksum"])
    expected = np.empty_like(headers)
    expected[:] = np.frombuffer(header_template(namespace, shard_size, entries.shape[1]), dtype=np.uint8)
    expected[:, HEADER.itemsize :].view(ENTRY)["checksum"] = checksums
    expected[:, _ID_AT : _ID_AT + 16] = ids
    seal_headers(expected, own_checksums)
    good = (headers == expected).all(axis=1)
    if good.all():
        return HeaderCheck(good, {}, checksums)
    bad = np.flatnonzero(~good)
    why = _explain(headers[bad], ids[bad], namespace, shard_size, own_checksums[bad])
    return HeaderCheck(good, dict(zip(bad.tolist(), why, strict=True)), checksums)


def _explain(headers: U8, ids: U8, namespace: bytes, shard_size: int, own_checksums: npt.NDArray[Any]) -> list[str]:
    """Say what is wrong with each of some bad headers."""
    head = headers[:, : HEADER.itemsize].view(HEADER)[:, 0]
    fingerprint = np.frombuffer(namespace, dtype=np.uint8)
    tests = {
        "no block header": head["magic"] == MAGIC,
        "the header's checksum is wrong": head["header_checksum"] == own_checksums,
        "an unknown format version": head["version"] == VERSION,
        "an unknown checksum algorithm": head["checksum_algorithm"] == CHECKSUM_CRC32C,
        "the header names another block": (head["block_id"] == ids).all(axis=1),
        "the header names another namespace": (head["namespace"] == fingerprint).all(axis=1),
        "an unknown codec": head["codec"] == CODEC_RAW,
    }
    last = "another number or size of shards, or flags that are not known"
    return [next((text for text, passed in tests.items() if not passed[i]), last) for i in range(len(headers))]
