"""Files that are older than the machine's last start: how it ended may have torn those that were not synced.

A power cut may leave a file its name and its size, and bytes that never arrived. A load finds that out by the
checksums. A dump of such a block does not load it, so one that finds an older file reads it once before it calls the
block stored.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import numpy as np

from ...blocks.second_look import AT_ONCE, SOUND, look_at_blocks
from ...blocks.transfer import DIRECT_ALIGN, Transfer
from ...engines import requests as rq
from ...native import IdTable
from ...types import I64, U8, Bools
from .backend import Backend
from .files import BlockFiles
from .layout import block_paths

__all__ = ["Survivors"]

REMEMBERED_MAX: Final = 1 << 16
"""Ids that need not be looked at again; what is forgotten is only read once more."""


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
        """Tell which of some files are not, or no more, the blocks that they should be: bool, shape (n,).

        One that cannot be read counts as torn: who dumps it has its bytes. `sizes` are those of the files, int64 (n,).
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
            pages = -(-sizes[some] // DIRECT_ALIGN) * DIRECT_ALIGN
            put_ends = partial(self._put_ends, ids[some], backend[some])
            verdict = await look_at_blocks(ids[some], pages, self._namespace, self._transfer, put_ends)
            torn[some[verdict != SOUND]] = True
            sound.append(some[verdict == SOUND])
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

    def _put_ends(self, ids: U8, backend: I64, chains: rq.Requests) -> object:
        chains["opcode"][:, 1] |= rq.FLAG_LINK
        chains["opcode"][:, 2] = rq.OP_CLOSE | rq.FLAG_LINK
        return self._files.put_open_to_read(chains[:, 0], ids, backend)
