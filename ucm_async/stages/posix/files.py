"""File operations on many blocks at a time, as packed requests for a thread pool."""

from __future__ import annotations

import errno
import os
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...abc import Engine
from ...engines import requests as rq
from ...native import execute
from ...types import I64, U8, Bools
from .backend import QUARANTINE, WRITER_NAME_BYTES, Backend
from .layout import block_paths, paths_below, subdirectories

__all__ = ["BlockFiles"]

_INLINE_OPENS_MAX: Final = 8
"""So many cached opens take less time on the loop (3 µs each) than a hop to another thread and back."""

_OPENS_A_JOB: Final = 8
_STATS_A_JOB: Final = 32


class BlockFiles:
    """Paths and descriptors of blocks on several backends.

    Every method takes arrays of one length: ids, uint8 (n, 16), and the position of each block's backend, int64 (n,).
    Results are int64, shape (n,): what the system call returned, or -errno. Paths are relative to a backend's
    directory, so that they are short.
    """

    def __init__(self, backends: list[Backend]) -> None:
        self.backends = backends
        self._dirfds = np.array([backend.dirfd for backend in backends], dtype=np.int32)
        self._writers = np.zeros((len(backends), WRITER_NAME_BYTES), dtype=np.uint8)
        for position, backend in enumerate(backends):
            if backend.writer:
                self._writers[position] = np.frombuffer(backend.writer.encode(), dtype=np.uint8)
        self._direct = np.array([os.O_DIRECT if backend.direct else 0 for backend in backends], dtype=np.uint64)

    def _requests(self, opcode: int, backend: I64, paths: U8) -> rq.Requests:
        requests = rq.new_requests(len(paths))
        requests["opcode"] = opcode
        requests["fd"] = self._dirfds[backend]
        requests["address"] = _addresses(paths)
        return requests

    async def stat(self, ids: U8, backend: I64, pool: Engine) -> I64:
        """Sizes of the committed files."""
        paths = block_paths(ids)
        requests = self._requests(rq.OP_STAT, backend, paths)
        await pool.submit(requests, _STATS_A_JOB)
        return _results(requests, paths)

    async def open_to_read(self, ids: U8, backend: I64, pool: Engine) -> I64:
        """Descriptors of the committed files; opened on the loop if they are few and no disk is needed for it."""
        paths = block_paths(ids)
        requests = self._requests(rq.OP_OPEN, backend, paths)
        requests["offset"] = os.O_RDONLY | os.O_CLOEXEC | self._direct[backend]
        if len(ids) <= _INLINE_OPENS_MAX:
            requests["opcode"] = rq.OP_OPEN | rq.FLAG_CACHED
            execute(requests)
            if not (requests["result"] == -errno.EAGAIN).any():
                return _results(requests, paths)
            self._close_again(requests["result"])
            requests["opcode"] = rq.OP_OPEN
        await pool.submit(requests, _OPENS_A_JOB)
        return _results(requests, paths)

    def _close_again(self, fds: I64) -> None:
        for fd in fds[fds >= 0].tolist():
            os.close(fd)

    async def open_to_write(self, ids: U8, backend: I64, pool: Engine, *, direct: Bools, reserve: int) -> I64:
        """Descriptors of this writer's own files, made if need be.

        With O_DIRECT where `direct` says so and the backend can; `reserve` bytes are allocated if it is not 0.
        """
        paths = self._writer_paths(ids, backend)
        width = 2 if reserve else 1
        requests = rq.new_requests(len(ids) * width)
        opens = requests[::width]
        opens["opcode"] = rq.OP_OPEN
        opens["fd"] = self._dirfds[backend]
        opens["address"] = _addresses(paths)
        opens["offset"] = (
            os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | np.where(direct, self._direct[backend], np.uint64(0))
        )
        opens["length"] = 0o644
        if reserve:
            requests[1::2]["opcode"] = rq.OP_FALLOCATE | rq.FLAG_LINK
            requests[1::2]["length"] = reserve
        await pool.submit(requests, width)
        if reserve:
            self._fail_unreserved(opens["result"], requests[1::2]["result"])
        return _results(opens, paths)

    def _fail_unreserved(self, fds: I64, reserved: I64) -> None:
        """Close files that could not be reserved, as if their open had failed; a file system that never can is fine."""
        failed = (fds >= 0) & (reserved < 0) & (reserved != -errno.EOPNOTSUPP)
        self._close_again(fds[failed])
        fds[failed] = reserved[failed]

    async def commit(self, ids: U8, backend: I64, fds: I64, pool: Engine, *, sync: bool) -> I64:
        """Close this writer's files and give them their names: 0, -EEXIST where another writer was first, or -errno.

        With `sync`, data is on the medium before the name is, and the name before this returns.
        """
        sources = self._writer_paths(ids, backend)
        targets = block_paths(ids)
        steps = 3 if sync else 2
        requests = rq.new_requests(len(ids) * steps)
        if sync:
            requests[0::3]["opcode"] = rq.OP_FDATASYNC
            requests[0::3]["fd"] = fds
        close = requests[steps - 2 :: steps]
        close["opcode"] = rq.OP_CLOSE
        close["fd"] = fds
        rename = requests[steps - 1 :: steps]
        rename["opcode"] = rq.OP_RENAME
        rename["fd"] = self._dirfds[backend]
        rename["address"] = _addresses(sources)
        rename["offset"] = _addresses(targets)
        rename["length"] = rq.RENAME_NOREPLACE
        await pool.submit(requests, steps)
        result: I64 = rename["result"].copy()
        if sync:
            synced = requests[0::3]["result"]
            unsynced = (synced < 0) & (result == 0)
            result[unsynced] = synced[unsynced]
        homeless = result == -errno.ENOENT
        if homeless.any():
            await self._make_homes(ids[homeless], backend[homeless], pool)
            again = np.ascontiguousarray(rename[homeless])
            await pool.submit(again, 1)
            result[homeless] = again["result"]
        if sync:
            await self._sync_directories(ids[result == 0], backend[result == 0], pool)
        del sources, targets
        return result

    async def _make_homes(self, ids: U8, backend: I64, pool: Engine) -> None:
        """Make the directories of blocks; those that are there already stay."""
        paths = block_paths(ids)
        paths[:, 2] = 0  # cut "xx/…" to "xx"
        requests = self._requests(rq.OP_MKDIR, backend, paths)
        requests["length"] = 0o755
        await pool.submit(requests, 1)
        del paths

    async def _sync_directories(self, ids: U8, backend: I64, pool: Engine) -> None:
        """Bring the names of blocks to the medium: one fsync a directory, and one of the directory of directories."""
        if not len(ids):
            return
        keys = np.unique(backend * 256 + subdirectories(ids))
        tops = np.unique(backend)
        paths = np.zeros((len(keys) + len(tops), 4), dtype=np.uint8)
        hexes = np.frombuffer(b"".join(b"%02x" % (key % 256) for key in keys.tolist()), dtype=np.uint8)
        paths[: len(keys), :2] = hexes.reshape(-1, 2)
        paths[len(keys) :, 0] = ord(".")
        requests = rq.new_requests(len(paths) * 3)
        requests[0::3]["opcode"] = rq.OP_OPEN
        requests[0::3]["fd"] = self._dirfds[np.concatenate((keys // 256, tops))]
        requests[0::3]["address"] = _addresses(paths)
        requests[0::3]["offset"] = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        requests[1::3]["opcode"] = rq.OP_FSYNC | rq.FLAG_LINK
        requests[2::3]["opcode"] = rq.OP_CLOSE | rq.FLAG_LINK
        await pool.submit(requests, 3)
        del paths

    async def abandon(self, ids: U8, backend: I64, fds: I64, pool: Engine, *, unlink: bool) -> None:
        """Close this writer's files, and remove them if `unlink`; a descriptor of -1 is not closed."""
        paths = self._writer_paths(ids, backend)
        requests = rq.new_requests(len(ids) * 2)
        requests["opcode"] = 0
        closes = requests[0::2]
        closes["opcode"][fds >= 0] = rq.OP_CLOSE
        closes["fd"] = fds
        if unlink:
            unlinks = requests[1::2]
            unlinks["opcode"] = rq.OP_UNLINK
            unlinks["fd"] = self._dirfds[backend]
            unlinks["address"] = _addresses(paths)
        requests = np.ascontiguousarray(requests[requests["opcode"] != 0])
        await pool.submit(requests, 2)
        del paths

    async def unlink(self, ids: U8, backend: I64, pool: Engine) -> I64:
        """Remove committed files."""
        paths = block_paths(ids)
        requests = self._requests(rq.OP_UNLINK, backend, paths)
        await pool.submit(requests, 1)
        return _results(requests, paths)

    async def quarantine(self, ids: U8, backend: I64, pool: Engine) -> I64:
        """Set committed files aside, over what was set aside before under that name."""
        sources, targets = block_paths(ids), paths_below(QUARANTINE, ids)
        requests = self._requests(rq.OP_RENAME, backend, sources)
        requests["offset"] = _addresses(targets)
        await pool.submit(requests, 1)
        return _results(requests, targets)

    def _writer_paths(self, ids: U8, backend: I64) -> U8:
        """Paths of this writer's files."""
        paths = paths_below("-" * WRITER_NAME_BYTES, ids)
        paths[:, :WRITER_NAME_BYTES] = self._writers[backend]
        return paths


def _addresses(paths: U8) -> npt.NDArray[np.uint64]:
    """Address of each row."""
    base, step = paths.ctypes.data, paths.strides[0]
    return np.uint64(base) + np.arange(len(paths), dtype=np.uint64) * np.uint64(step)


def _results(requests: rq.Requests, *alive: Any) -> I64:
    """Copy the results out; `alive` names what the requests pointed to until now."""
    result: I64 = requests["result"].copy()
    return result
