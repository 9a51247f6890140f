"""Setting bad blocks aside: a copy of the slot in quarantine, for people, and the slot out of use."""

from __future__ import annotations

import errno
import os

import numpy as np

from ...blocks.transfer import Transfer
from ...engines import requests as rq
from ...engines.arena import Arena
from ...engines.waits import completed
from .backend import QUARANTINE, SlabBackend

__all__ = ["copy_to_quarantine"]


async def copy_to_quarantine(
    backend: SlabBackend, fd: int, offset: int, nbytes: int, block_id: bytes, transfer: Transfer
) -> int:
    """Copy a slot to a file, as Posix sets one aside: 0, or the errno of what failed; then there is no such file."""
    arena = await Arena.create(nbytes, 1)  # its own: whoever finds a bad block holds slots of the lane already
    try:
        read = rq.new_requests(1)
        read["opcode"], read["fd"], read["offset"] = rq.OP_READ, fd, offset
        read["address"], read["length"] = arena.base, nbytes
        await completed(transfer.engine.submit(read, 1))
        got = int(read["result"][0])
        if got != nbytes:
            return -got if got < 0 else errno.EIO
        return await _write(backend, arena.base, nbytes, block_id, transfer)
    finally:
        arena.close()


async def _write(backend: SlabBackend, address: int, nbytes: int, block_id: bytes, transfer: Transfer) -> int:
    path = np.frombuffer(f"{QUARANTINE}/{block_id.hex()}".encode() + b"\0", dtype=np.uint8)
    steps = rq.new_requests(3)
    steps["opcode"] = [rq.OP_OPEN, rq.OP_WRITE | rq.FLAG_LINK, rq.OP_CLOSE | rq.FLAG_LINK]
    steps["fd"][0] = backend.dirfd
    steps["address"][:2] = path.ctypes.data, address
    steps["offset"][0] = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    steps["length"][:2] = 0o644, nbytes
    await completed(transfer.pool.submit(steps, 3))
    opened, written = steps["result"][:2].tolist()
    if opened < 0 or written == nbytes:
        return int(-min(opened, 0))
    unlink = rq.new_requests(1)
    unlink["opcode"], unlink["fd"], unlink["address"] = rq.OP_UNLINK, backend.dirfd, path.ctypes.data
    await completed(transfer.pool.submit(unlink, 1))
    return int(-written) if written < 0 else errno.ENOSPC
