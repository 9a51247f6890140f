"""The files of segments: made, measured, mended, removed, as packed requests in a pool of threads."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ...abc import Engine
from ...engines import requests as rq
from ...engines.chains import addresses_of
from ...engines.waits import completed
from ...types import U8
from .backend import HOME, SlabBackend
from .layout import (
    PAGE_BYTES,
    SegmentPage,
    SlabGeometry,
    check_segment,
    pack_segment,
    segment_name,
    segment_number,
)

__all__ = ["NEW_NAME", "FoundSegment", "SegmentFiles"]

NEW_NAME: Final = "new"
"""Of a segment that is being made: one at a time, under the lock of the directory."""


@dataclass(frozen=True, slots=True)
class FoundSegment:
    """A segment's file as it was found.

    Attributes
    ----------
    number
        Of the segment.
    page
        What its first page says.
    nbytes
        Length of the file; -1 if even that is not known.
    """

    number: int
    page: SegmentPage
    nbytes: int


class SegmentFiles:
    """The segments' files of one backend.

    Parameters
    ----------
    backend
        Whose they are.
    namespace
        Fingerprint, 16 bytes.
    sizes
        Bytes of slots, by class.
    """

    def __init__(self, backend: SlabBackend, namespace: bytes, sizes: tuple[int, ...]) -> None:
        self._backend = backend
        self._namespace = namespace
        self._sizes = sizes

    def path(self, number: int) -> Path:
        """Return the path of a segment."""
        return self._backend.home / segment_name(number)

    async def survey(self, pool: Engine) -> list[FoundSegment]:
        """Return what is there, by number."""
        names = await asyncio.to_thread(self._backend.system.names, self._backend.home)
        numbers = sorted(number for name in names if (number := segment_number(name)) >= 0)
        if not numbers:
            return []
        pages = np.zeros((len(numbers), PAGE_BYTES), dtype=np.uint8)
        paths = np.stack([_path(segment_name(number)) for number in numbers])
        requests = rq.new_requests(4 * len(numbers)).reshape(-1, 4)
        stats, opens, reads, closes = requests.T
        stats["opcode"] = rq.OP_STAT
        opens["opcode"] = rq.OP_OPEN
        opens["offset"] = os.O_RDONLY | os.O_CLOEXEC
        stats["fd"] = opens["fd"] = self._backend.dirfd
        stats["address"] = opens["address"] = addresses_of(paths)
        reads["opcode"] = rq.OP_READ | rq.FLAG_LINK
        reads["address"] = addresses_of(pages)
        reads["length"] = PAGE_BYTES
        closes["opcode"] = rq.OP_CLOSE | rq.FLAG_LINK
        await completed(pool.submit(requests.reshape(-1), 4))
        found = []
        for i, number in enumerate(numbers):
            got, size = int(reads["result"][i]), int(stats["result"][i])
            if got < 0 or size < 0:
                page = SegmentPage(0, 0, why=f"it cannot be read: {os.strerror(-min(got, size))}")
            else:
                page = check_segment(pages[i, :got].tobytes(), self._sizes, self._namespace, number)
            found.append(FoundSegment(number, page, max(size, -1)))
        return found

    async def create(self, geometry: SlabGeometry, kind: int, number: int, pool: Engine) -> int:
        """Make a segment of a class, its name on the medium: 0 or the errno of what failed; nothing is there then."""
        page, zeros, names = self._pages(geometry, kind, number)
        nbytes = geometry.segment_bytes(kind)
        requests = rq.new_requests(7)
        requests["opcode"] = [
            rq.OP_OPEN,
            rq.OP_FALLOCATE | rq.FLAG_LINK | rq.FLAG_IF_WELL,
            rq.OP_WRITE | rq.FLAG_LINK | rq.FLAG_IF_WELL,
            # The last page, so that the file has its length also where nothing can be reserved.
            rq.OP_WRITE | rq.FLAG_LINK | rq.FLAG_IF_WELL,
            rq.OP_FDATASYNC | rq.FLAG_LINK | rq.FLAG_IF_WELL,
            rq.OP_CLOSE | rq.FLAG_LINK,
            rq.OP_RENAME | rq.FLAG_IF_WELL,
        ]
        requests["fd"][[0, 6]] = self._backend.dirfd
        requests["address"][[0, 6]] = addresses_of(names)[0]
        requests["offset"][0] = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        requests["length"][0] = 0o644
        requests["length"][1] = nbytes
        requests["address"][2:4] = page.ctypes.data, zeros.ctypes.data
        requests["length"][2:4] = PAGE_BYTES
        requests["offset"][3] = nbytes - PAGE_BYTES
        requests["offset"][6] = addresses_of(names)[1]  # a file that is there already is none of a segment
        failed = await self._run(requests, pool)
        if not failed:
            failed = await self._sync_names()
        if failed:
            await self.remove_new(pool)
        return failed

    def _pages(self, geometry: SlabGeometry, kind: int, number: int, lost_s: int = 0) -> tuple[U8, U8, U8]:
        content = pack_segment(geometry.slots, geometry.sizes[kind], self._namespace, number, lost_s)
        page = np.frombuffer(content, dtype=np.uint8)
        names = np.stack([_path(NEW_NAME), _path(segment_name(number))])
        return page, np.zeros(PAGE_BYTES, dtype=np.uint8), names

    async def mend(self, geometry: SlabGeometry, kind: int, number: int, pool: Engine, lost_s: int = 0) -> int:
        """Give a segment its length and its first page again, which says `lost_s`: 0 or the errno of what failed.

        Nothing is synced: if that failed, the kernel would forget what else it has not written of the segment.
        """
        page, _, names = self._pages(geometry, kind, number, lost_s)
        requests = rq.new_requests(4)
        requests["opcode"] = [
            rq.OP_OPEN,
            rq.OP_FALLOCATE | rq.FLAG_LINK | rq.FLAG_IF_WELL,
            rq.OP_WRITE | rq.FLAG_LINK | rq.FLAG_IF_WELL,
            rq.OP_CLOSE | rq.FLAG_LINK,
        ]
        requests["fd"][0] = self._backend.dirfd
        requests["address"][0] = addresses_of(names)[1]
        requests["offset"][0] = os.O_WRONLY | os.O_CLOEXEC
        requests["length"][1] = geometry.segment_bytes(kind)
        requests["address"][2] = page.ctypes.data
        requests["length"][2] = PAGE_BYTES
        return await self._run(requests, pool)

    async def remove(self, number: int, pool: Engine) -> int:
        """Cut a segment to nothing, so that open descriptors hold no space, and remove it: 0 or an errno."""
        return await self._remove(segment_name(number), pool)

    async def remove_new(self, pool: Engine) -> None:
        """Remove what is left of a segment that was not finished."""
        await self._remove(NEW_NAME, pool)

    async def _remove(self, name: str, pool: Engine) -> int:
        path = _path(name)
        requests = rq.new_requests(3)
        requests["opcode"] = [rq.OP_OPEN, rq.OP_CLOSE | rq.FLAG_LINK, rq.OP_UNLINK]
        requests["fd"] = self._backend.dirfd
        requests["address"] = path.ctypes.data
        requests["offset"][0] = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
        await completed(pool.submit(requests, 3))
        result = int(requests["result"][2])
        return 0 if result in (0, -errno.ENOENT) else -result

    async def _run(self, requests: rq.Requests, pool: Engine) -> int:
        """Run a chain, which keeps alive what it works on; returns the errno of the first step that failed, or 0."""
        await completed(pool.submit(requests, len(requests)))
        results = requests["result"]
        writes = (requests["opcode"] & rq.OP_MASK) == rq.OP_WRITE
        short = writes & (results >= 0) & (results != requests["length"].astype(np.int64))
        failed = results[(results < 0) & (results != -errno.ECANCELED)].tolist()  # these only follow from another
        return -failed[0] if failed else errno.ENOSPC if short.any() else 0

    async def _sync_names(self) -> int:
        try:
            await asyncio.to_thread(self._backend.system.sync_directory, self._backend.home)
        except OSError as error:
            return error.errno or errno.EIO
        return 0


def _path(name: str) -> U8:
    """Return the path of a file of the home, relative to the backend's directory: uint8, NUL-terminated."""
    path = np.zeros(32, dtype=np.uint8)
    content = f"{HOME}/{name}".encode()
    path[: len(content)] = np.frombuffer(content, dtype=np.uint8)
    return path
