"""Building chains of requests for the tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ucm_async.engines.requests import (
    FLAG_IF_WELL,
    FLAG_LINK,
    OP_CHECKSUM,
    OP_CLOSE,
    OP_COPY,
    OP_NOP,
    OP_OPEN,
    OP_READ,
    Requests,
    new_requests,
)

from .tools import U8, address_of, aligned, c_path, native, noise, results

OPEN, READ, HEAD, COPY, PAD, CLOSE = range(6)
STEPS = 6
HEAD_BYTES = 64
AT_FDCWD = -100


class Blocks:
    """Files of `size` random bytes, and chains that open, read, check, copy and close each; `times` of them each.

    Attributes
    ----------
    contents
        uint8, shape (n, size): what is in the file of each chain; n is the number of files times `times`.
    slots, targets
        uint8, shape (n, size): where the chains read to, and copy to.
    """

    def __init__(self, folder: Path, count: int, size: int, flags: int = os.O_RDONLY, times: int = 1) -> None:
        self.size, self.flags = size, flags
        contents = noise(count * size, count).reshape(count, size)
        self.contents = np.tile(contents, (times, 1))
        self.slots: U8 = aligned(self.contents.size).reshape(self.contents.shape)
        self.targets = np.zeros_like(self.contents)
        self.paths = [folder / f"block{i}" for i in range(count)]
        for path, content in zip(self.paths, contents, strict=True):
            path.write_bytes(content.tobytes())
        self.paths *= times
        self._kept: list[Any] = []

    def chains(self, gate: int = 0) -> Requests:
        """Requests of shape (n, STEPS)."""
        n = len(self.paths)
        table = new_requests(n * STEPS).reshape(n, STEPS)
        table["opcode"] = [
            OP_OPEN,
            OP_READ | FLAG_LINK,
            OP_CHECKSUM | FLAG_IF_WELL,
            OP_COPY | FLAG_IF_WELL,
            OP_NOP,
            OP_CLOSE | FLAG_LINK,
        ]
        rows = np.arange(n, dtype=np.uint64) * np.uint64(self.size)
        table["fd"][:, OPEN] = AT_FDCWD
        for i, path in enumerate(self.paths):
            kept, table["address"][i, OPEN] = c_path(str(path))
            self._kept.append(kept)
        table["offset"][:, OPEN] = self.flags
        table["address"][:, READ] = table["address"][:, HEAD] = address_of(self.slots) + rows
        table["length"][:, READ] = self.size
        table["length"][:, HEAD] = HEAD_BYTES
        table["address"][:, COPY] = address_of(self.targets) + rows
        table["offset"][:, COPY] = address_of(self.slots) + rows
        table["length"][:, COPY] = self.size
        table["gate"][:, COPY] = gate
        return table

    def forget(self) -> None:
        """Wipe the memory that chains write to."""
        self.slots[:] = 0xEE
        self.targets[:] = 0xEE

    def check(self, table: Requests, rows: Any = slice(None)) -> None:
        """Fail unless the chains of `rows` did everything."""
        assert (table["result"][rows, OPEN] >= 0).all()
        assert (table["result"][rows, READ] == self.size).all()
        contents = self.contents[rows]
        assert table["result"][rows, HEAD].tolist() == [native.crc32c(one[:HEAD_BYTES]) for one in contents]
        assert table["result"][rows, COPY].tolist() == [native.crc32c(one) for one in contents]
        assert (table["result"][rows, PAD:] == 0).all()
        assert np.array_equal(self.targets[rows], contents)


def results_of(table: Requests) -> list[list[int]]:
    """Results as ints, a list a chain."""
    return [results(chain) for chain in table]
