"""File operations on many blocks at a time, as packed requests."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Final

import numpy as np

from ...abc import Engine
from ...blocks.verify import verify_block
from ...engines import requests as rq
from ...engines.chains import addresses_of
from ...engines.waits import completed, kept
from ...types import I64, U8, Bools
from .backend import QUARANTINE, WRITER_FANOUT, WRITER_NAME_BYTES, Backend
from .layout import block_paths, paths_below, subdirectories

__all__ = ["BlockFiles"]

_STATS_A_JOB: Final = 32


class BlockFiles:
    """Paths of blocks on several backends, and what is done with them.

    Every method takes arrays of one length: ids, uint8 (n, 16), and the position of each block's backend, int64 (n,).
    Paths are relative to a backend's directory, so that they are short.

    `removed` is told the position of a backend and the bytes of committed files that were removed from it, even if who
    wanted that is cancelled. Files that are set aside still occupy theirs. `fingerprint` is that of the namespace, 16
    bytes, and `file_bytes` the length of the longest block's file.

    The ``put_…`` methods write one step of n chains into `column`, a view of shape (n,), and return what that step
    points to: it must be kept until the chains have run. The coroutines run by themselves, and return what the system
    calls returned, or -errno: int64 (n,).
    """

    def __init__(
        self, backends: list[Backend], removed: Callable[[int, int], None], fingerprint: bytes, file_bytes: int
    ) -> None:
        self._removed = removed
        self._fingerprint = fingerprint
        self._file_bytes = file_bytes
        self._dirfds = np.array([backend.dirfd for backend in backends], dtype=np.int32)
        self._writers = np.zeros((len(backends), WRITER_NAME_BYTES), dtype=np.uint8)
        for position, backend in enumerate(backends):
            if backend.writer:
                self._writers[position] = np.frombuffer(backend.writer.encode(), dtype=np.uint8)
        self._syncing = asyncio.Lock()
        self._direct = np.array([os.O_DIRECT if backend.direct else 0 for backend in backends], dtype=np.uint64)

    # ---- steps of chains

    def put_open_to_read(self, column: rq.Requests, ids: U8, backend: I64) -> object:
        """Open committed files."""
        paths = block_paths(ids)
        column["opcode"] = rq.OP_OPEN
        column["fd"] = self._dirfds[backend]
        column["address"] = addresses_of(paths)
        column["offset"] = self._direct[backend] | np.uint64(os.O_RDONLY | os.O_CLOEXEC)
        return paths

    def put_open_to_write(self, column: rq.Requests, ids: U8, backend: I64, direct: Bools) -> object:
        """Open this writer's own files, made if need be; with O_DIRECT where `direct` says so and the backend can."""
        paths = self._own_paths(ids, backend)
        column["opcode"] = rq.OP_OPEN
        column["fd"] = self._dirfds[backend]
        column["address"] = addresses_of(paths)
        column["offset"] = np.where(direct, self._direct[backend], 0) | np.uint64(_CREATE)
        column["length"] = 0o644
        return paths

    def put_commit(self, column: rq.Requests, ids: U8, backend: I64) -> object:
        """Give this writer's files their names, if all went well before; -EEXIST where another writer was first."""
        sources, targets = self._own_paths(ids, backend), block_paths(ids)
        column["opcode"] = rq.OP_RENAME | rq.FLAG_IF_WELL
        column["fd"] = self._dirfds[backend]
        column["address"] = addresses_of(sources)
        column["offset"] = addresses_of(targets)
        column["length"] = rq.RENAME_NOREPLACE
        return sources, targets

    def _own_paths(self, ids: U8, backend: I64) -> U8:
        """Paths of this writer's files."""
        paths = paths_below("-" * (WRITER_NAME_BYTES + 2), ids)
        paths[:, :WRITER_NAME_BYTES] = self._writers[backend]
        paths[:, WRITER_NAME_BYTES] = ord("/")
        paths[:, WRITER_NAME_BYTES + 1] = _FANOUT_NAMES[subdirectories(ids) % WRITER_FANOUT]
        return paths

    # ---- by themselves

    def _requests(self, opcode: int, backend: I64, paths: U8) -> rq.Requests:
        requests = rq.new_requests(len(paths))
        requests["opcode"] = opcode
        requests["fd"] = self._dirfds[backend]
        requests["address"] = addresses_of(paths)
        return requests

    async def stat(self, ids: U8, backend: I64, pool: Engine) -> I64:
        """Sizes of committed files."""
        return await self.stat_paths(block_paths(ids), backend, pool)

    async def stat_paths(self, paths: U8, backend: I64, pool: Engine) -> I64:
        """Sizes of files anywhere in a backend; `paths`, one a row, end with a NUL."""
        requests = self._requests(rq.OP_STAT, backend, paths)
        await kept(pool.submit(requests, _STATS_A_JOB), paths)
        return _results(requests)

    async def commit_in_new_homes(self, ids: U8, backend: I64, pool: Engine, then: Callable[[I64], None]) -> None:
        """Commit files whose directory is missing: make it, then rename.

        `then` is told the results, also when who wanted that is cancelled, which waits.
        """
        homes = block_paths(ids)
        homes[:, 2] = 0  # cut "xx/…" to "xx"
        mkdirs = self._requests(rq.OP_MKDIR, backend, homes)
        mkdirs["length"] = 0o755
        await kept(pool.submit(mkdirs, 1), homes)  # one that is there already is as good
        renames = rq.new_requests(len(ids))
        paths = self.put_commit(renames, ids, backend)
        done = pool.submit(renames, 1)
        try:
            await completed(done)
        finally:
            del paths  # they lived until here
            result, made = _results(renames), mkdirs["result"]
            homeless = (result == -errno.ENOENT) & (made < 0) & (made != -errno.EEXIST)
            result[homeless] = made[homeless]
            then(result)

    async def sync(self, ids: U8, backend: I64, pool: Engine) -> I64:
        """Bring committed files and their names to the medium; -ENOENT for what is gone.

        A file of which that fails is set aside: the kernel forgets what it could not write, and the next fdatasync says
        that all is well. So there is no next one, nor one at the same time.
        """
        async with self._syncing:
            return await self._sync(ids, backend, pool)

    async def _sync(self, ids: U8, backend: I64, pool: Engine) -> I64:
        paths = block_paths(ids)
        requests = rq.new_requests(len(ids) * 3)
        requests[0::3]["fd"] = self._dirfds[backend]
        requests[0::3]["address"] = addresses_of(paths)
        result = await _run_syncs(requests, os.O_RDONLY, rq.OP_FDATASYNC, pool, paths)
        forgotten = (requests[0::3]["result"] >= 0) & (result < 0)
        if forgotten.any():
            await self.quarantine(ids[forgotten], backend[forgotten], pool, however=True)
        fine = result == 0
        result[fine] = await self.sync_directories(ids[fine], backend[fine], pool)
        return result

    async def sync_directories(self, ids: U8, backend: I64, pool: Engine) -> I64:
        """Bring the names of blocks to the medium: one fsync a directory, and one of each directory of directories."""
        if not len(ids):
            return np.zeros(0, dtype=np.int64)
        keys, mine = np.unique(backend * 256 + subdirectories(ids), return_inverse=True)
        tops, top = np.unique(backend, return_inverse=True)
        paths = np.zeros((len(keys) + len(tops), 4), dtype=np.uint8)
        hexes = np.frombuffer(b"".join(b"%02x" % (key % 256) for key in keys.tolist()), dtype=np.uint8)
        paths[: len(keys), :2] = hexes.reshape(-1, 2)
        paths[len(keys) :, 0] = ord(".")
        requests = rq.new_requests(len(paths) * 3)
        requests[0::3]["fd"] = self._dirfds[np.concatenate((keys // 256, tops))]
        requests[0::3]["address"] = addresses_of(paths)
        result = await _run_syncs(requests, os.O_RDONLY | os.O_DIRECTORY, rq.OP_FSYNC, pool, paths)
        return np.minimum(result[mine], result[len(keys) + top])

    async def unlink_own(self, ids: U8, backend: I64, pool: Engine, gone: Callable[[Bools], None]) -> None:
        """Remove this writer's files. A cancellation waits: the next write of the block has the same path.

        `gone` is told which of them are not there afterwards, also when who wanted that is cancelled.
        """
        paths = self._own_paths(ids, backend)
        requests = self._requests(rq.OP_UNLINK, backend, paths)
        done = pool.submit(requests, 1)
        try:
            await completed(done)
        finally:
            gone(np.asarray((requests["result"] == 0) | (requests["result"] == -errno.ENOENT)))

    async def unlink(self, ids: U8, backend: I64, pool: Engine) -> I64:
        """Remove committed files; returns the bytes that each had, or -errno."""
        return await self._unlink(block_paths(ids), backend, pool)

    async def purge(self, ids: U8, backend: I64, pool: Engine) -> I64:
        """Remove files that were set aside; returns the bytes that each had, or -errno."""
        return await self._unlink(paths_below(QUARANTINE, ids), backend, pool)

    async def _unlink(self, paths: U8, backend: I64, pool: Engine) -> I64:
        requests = np.repeat(self._requests(rq.OP_STAT, backend, paths), 2)
        sizes, unlinks = requests[0::2], requests[1::2]
        unlinks["opcode"] = rq.OP_UNLINK | rq.FLAG_IF_WELL
        try:
            await completed(pool.submit(requests, 2))
        finally:
            gone = unlinks["result"] == 0
            for position in np.unique(backend[gone]).tolist():
                self._removed(position, int(sizes["result"][gone & (backend == position)].sum()))
        result: I64 = np.where(sizes["result"] < 0, sizes["result"], unlinks["result"])
        result[gone] = sizes["result"][gone]
        return result

    async def quarantine(self, ids: U8, backend: I64, pool: Engine, *, however: bool = False) -> I64:
        """Set committed files aside; one copy of a block is enough to look at, so a later one is removed.

        A cancellation waits. A later copy that is sound, and another one, is left, and so is one that cannot be read:
        another process has set aside what was found corrupt, and the block has been written anew since. With `however`,
        it is removed all the same.
        """
        sources, targets = block_paths(ids), paths_below(QUARANTINE, ids)
        requests = self._requests(rq.OP_RENAME, backend, sources)
        requests["offset"] = addresses_of(targets)
        requests["length"] = rq.RENAME_NOREPLACE
        await completed(pool.submit(requests, 1))  # later it might meet another file of that name
        result = _results(requests)
        again = result == -errno.EEXIST
        if not however:
            for i in np.flatnonzero(again).tolist():
                if await self._is_another(sources[i : i + 1], targets[i : i + 1], ids[i], backend[i : i + 1], pool):
                    result[i], again[i] = -errno.ENOENT, False
        if again.any():
            result[again] = np.minimum(await self.unlink(ids[again], backend[again], pool), 0)
        return result

    async def _is_another(self, path: U8, aside: U8, block_id: U8, backend: I64, pool: Engine) -> bool:
        """Tell whether a file, one path, is not what lies aside, and is what its own header says, or may be."""
        stored = await self._read(path, backend, pool)
        if stored is None:
            return True
        if await asyncio.to_thread(verify_block, stored, block_id.tobytes(), self._fingerprint):
            return False
        before = await self._read(aside, backend, pool)
        return before is None or not await asyncio.to_thread(np.array_equal, before, stored)

    async def _read(self, path: U8, backend: I64, pool: Engine) -> U8 | None:
        """Read one file, as far as a block goes; None if that cannot be done."""
        size = min(int((await self.stat_paths(path, backend, pool))[0]), self._file_bytes)
        if size < 0:
            return None
        memory = np.empty(size, dtype=np.uint8)
        chain = self._requests(rq.OP_OPEN, np.repeat(backend, 3), np.repeat(path, 3, axis=0))
        chain["opcode"][1:] = rq.OP_READ | rq.FLAG_LINK, rq.OP_CLOSE | rq.FLAG_LINK
        chain["offset"][0], chain["address"][0] = os.O_RDONLY | os.O_CLOEXEC, addresses_of(path)[0]
        chain["address"][1], chain["length"][1] = memory.ctypes.data, size
        await completed(pool.submit(chain, 3))
        return memory if int(chain["result"][1]) == size else None


async def _run_syncs(requests: rq.Requests, flags: int, opcode: int, pool: Engine, paths: U8) -> I64:
    """Open, sync, close; what is opened, one of `paths`, is filled in. Returns 0 or -errno for each."""
    opens, syncs, closes = requests[0::3], requests[1::3], requests[2::3]
    opens["opcode"] = rq.OP_OPEN
    opens["offset"] = flags | os.O_CLOEXEC
    syncs["opcode"] = opcode | rq.FLAG_LINK
    closes["opcode"] = rq.OP_CLOSE | rq.FLAG_LINK
    await kept(pool.submit(requests, 3), paths)
    result: I64 = np.where(opens["result"] < 0, opens["result"], syncs["result"])
    return result


def _results(requests: rq.Requests) -> I64:
    """Copy the results out."""
    result: I64 = requests["result"].copy()
    return result


_FANOUT_NAMES: Final = np.frombuffer(b"%x" * WRITER_FANOUT % tuple(range(WRITER_FANOUT)), dtype=np.uint8)
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
