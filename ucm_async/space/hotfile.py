"""Hotness on disk: one file an open store, so that a restart keeps the order and a collector knows what others use.

``ROOT/hotness/OWNER.hot``: a header of 32 bytes, then the ids, 16 bytes each, then the numbers, float64 each; all
little-endian. The file is replaced as a whole. It is a hint: one that is damaged or missing costs the order, no block.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Final

import numpy as np

from ..engines.system import System
from ..native import crc32c
from ..types import BLOCK_ID_BYTES, U8
from .hotness import F64, HALF_LIFE_S

__all__ = ["HOTNESS_DIRECTORY", "HotFiles", "pack_hotness", "unpack_hotness"]

_log = logging.getLogger("ucm_async.space")

HOTNESS_DIRECTORY: Final = "hotness"
SUFFIX: Final = ".hot"
MAGIC: Final = b"UCMHOT01"
_HEADER: Final = np.dtype(
    [
        ("magic", "S8"),
        ("count", "<u8"),
        ("half_life_s", "<f8"),  # the unit of the numbers
        ("checksum", "<u4"),  # CRC-32C of what follows the header
        ("reserved", "<u4"),
    ]
)


def pack_hotness(ids: U8, numbers: F64) -> bytes:
    """Return the content of a file."""
    body = np.ascontiguousarray(ids).tobytes() + numbers.astype("<f8").tobytes()
    head = np.zeros((), dtype=_HEADER)
    head["magic"], head["count"], head["half_life_s"], head["checksum"] = MAGIC, len(ids), HALF_LIFE_S, crc32c(body)
    return head.tobytes() + body


def unpack_hotness(content: bytes) -> tuple[U8, F64]:
    """Return ids and numbers of a file's content.

    Raises
    ------
    ValueError
        It is not what `pack_hotness` returns.
    """
    if len(content) < _HEADER.itemsize:
        raise ValueError(f"{len(content)} bytes are no header")
    head = np.frombuffer(content, dtype=_HEADER, count=1)[0]
    body, count = content[_HEADER.itemsize :], int(head["count"])
    if bytes(head["magic"]) != MAGIC or len(body) != count * (BLOCK_ID_BYTES + 8) or head["half_life_s"] <= 0:
        raise ValueError("no hotness of this version, or cut short")
    if crc32c(body) != head["checksum"]:
        raise ValueError("the checksum is wrong")
    ids = np.frombuffer(body, dtype=np.uint8, count=count * BLOCK_ID_BYTES).reshape(count, BLOCK_ID_BYTES)
    numbers = np.frombuffer(body, dtype="<f8", offset=count * BLOCK_ID_BYTES).astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("a number that is none")
    return ids, numbers * (float(head["half_life_s"]) / HALF_LIFE_S)


class HotFiles:
    """The hotness files of one namespace. Blocks: use it in a thread, one at a time.

    Parameters
    ----------
    system
        Who has the files.
    root
        The namespace's directory.
    owner
        Names this store's own file.
    """

    def __init__(self, system: System, root: Path, owner: str) -> None:
        self._system = system
        self._directory = root / HOTNESS_DIRECTORY
        self._own = owner + SUFFIX
        self._seen: dict[str, tuple[int, float]] = {}

    def read_others(self) -> list[tuple[U8, F64]]:
        """Return what other stores wrote since this was called last."""
        found = []
        for name in self._system.names(self._directory):
            about = self._system.size_and_time(self._directory / name)
            if name == self._own or not name.endswith(SUFFIX) or about is None or self._seen.get(name) == about:
                continue
            self._seen[name] = about
            try:
                found.append(unpack_hotness(self._system.read_whole(self._directory / name) or b""))
            except (ValueError, OSError) as error:
                _log.warning("%s: %s; it is ignored", self._directory / name, error)
        return found

    def write(self, ids: U8, numbers: F64, living: frozenset[str]) -> None:
        """Replace this store's own file, and remove those of stores that do not live any more and that were read.

        Raises
        ------
        OSError
            There is no room, for instance; the file is as it was.
        """
        with contextlib.suppress(FileExistsError):
            self._system.mkdir(self._directory)
        self._system.write_whole(self._directory / self._own, pack_hotness(ids, numbers))
        for name in self._system.names(self._directory):
            draft = not name.endswith(SUFFIX)  # of somebody who died while writing it
            if (draft or name in self._seen) and name.partition(".")[0] not in living:
                self._system.unlink(self._directory / name)
                self._seen.pop(name, None)
