"""Files that are older than the machine's last start: how it ended may have torn those that were not synced.

A power cut may leave a file its name and its size, and bytes that never arrived. A load finds that out by the
checksums. A dump of such a block does not load it, so one that finds an older file reads it once before it calls the
block stored.
"""

from __future__ import annotations

import asyncio
from typing import Final

import numpy as np

from ...blocks.transfer import DIRECT_ALIGN, Transfer
from ...blocks.verify import verify_block
from ...engines import requests as rq
from ...engines.waits import completed
from ...native import IdTable
from ...types import I64, U8, Bools
from .backend import Backend
from .files import BlockFiles
from .layout import block_paths

__all__ = ["Survivors"]

REMEMBERED_MAX: Final = 1 << 16
"""Ids that need not be looked at again; what is forgotten is only read once more."""

AT_ONCE: Final = 8
"""Files that are read at a time."""


class Survivors:
    """Tells which files are what is left of a block.

    Parameters
    ----------
    namespace
        Fingerprint that the blocks have, 16 bytes.
    backends, files, transfer
        Of the stage, and the means of its dump lane.
    """

    def __init__(self, namespace: bytes, backends: list[Backend], files: BlockFiles, transfer: Transfer) -> None:
        self._namespace = namespace
        self._backends = backends
        self._files = files
        self._transfer = transfer
        self._sound = IdTable(REMEMBERED_MAX)

    async def torn(self, ids: U8, backend: I64, sizes: I64) -> Bools:
        """Tell which of some files are not the blocks that they should be: bool, shape (n,).

        One that cannot be read at present is not said to be torn. `sizes` are those of the files, int64 (n,).
        """
        torn = np.zeros(len(ids), dtype=np.bool_)
        seen = np.empty(len(ids), dtype=np.uint64)
        self._sound.get(ids, seen)
        new = np.flatnonzero(seen == 0)
        if not len(new):
            return torn
        older = await asyncio.to_thread(self._older, ids[new], backend[new])
        sound = [new[~older]]
        for start in range(0, len(old := new[older]), AT_ONCE):
            some = old[start : start + AT_ONCE]
            verdict = await self._read(ids[some], backend[some], sizes[some])
            torn[some[verdict == _TORN]] = True
            sound.append(some[verdict == _SOUND])
        whole = np.concatenate(sound)
        self._sound.put(np.ascontiguousarray(ids[whole]), np.ones(len(whole), dtype=np.uint64))
        return torn

    def _older(self, ids: U8, backend: I64) -> Bools:
        """Tell which files were written before the machine started. Blocks."""
        older = np.zeros(len(ids), dtype=np.bool_)
        for i, (path, place) in enumerate(zip(block_paths(ids), backend.tolist(), strict=True)):
            system, root = self._backends[place].system, self._backends[place].root
            about = system.size_and_time(root / path.tobytes().rstrip(b"\0").decode())
            older[i] = about is not None and about[1] < system.started()
        return older

    async def _read(self, ids: U8, backend: I64, sizes: I64) -> U8:
        """Read files, and return a verdict on each."""
        arena = self._transfer.arena
        slots = await arena.lease(len(ids))
        try:
            table = rq.new_requests(3 * len(ids)).reshape(-1, 3)
            paths = self._files.put_open_to_read(table[:, 0], ids, backend)
            table["opcode"][:, 1] = rq.OP_READ | rq.FLAG_LINK
            table["address"][:, 1] = arena.address(slots)
            table["length"][:, 1] = np.minimum(-(-sizes // DIRECT_ALIGN) * DIRECT_ALIGN, arena.slot_bytes)
            table["opcode"][:, 2] = rq.OP_CLOSE | rq.FLAG_LINK
            await completed(self._transfer.engine.submit(table.reshape(-1), 3))
            del paths  # they lived until here
            self._transfer.counts["survivors_read"] += len(ids)
            came = table["result"][:, 1].tolist()
            return await asyncio.to_thread(self._judge, ids, arena.view(), slots.tolist(), came)
        finally:
            arena.release(slots)

    def _judge(self, ids: U8, memory: U8, slots: list[int], came: list[int]) -> U8:
        """Compare what came with the checksums in it. Blocks."""
        verdict = np.full(len(ids), _UNKNOWN, dtype=np.uint8)
        for i, (slot, length) in enumerate(zip(slots, came, strict=True)):
            if length >= 0:
                why = verify_block(memory[slot, :length], ids[i].tobytes(), self._namespace)
                verdict[i] = _TORN if why else _SOUND
        return verdict


_UNKNOWN, _SOUND, _TORN = range(3)
