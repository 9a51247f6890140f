"""Files that are older than the machine's last start: how it ended may have torn those that were not synced.

A power cut may leave a file its name and its size, and bytes that never arrived. A load finds that out by the
checksums. A dump of such a block does not load it, so one that finds an older file reads it once before it calls the
block stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from functools import partial
from typing import Final

import numpy as np

from ...blocks.second_look import AT_ONCE, GONE, SOUND, TORN, UNKNOWN, look_at_blocks
from ...blocks.transfer import Transfer
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
    """Tells which files hold the blocks that they should.

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

    async def look(self, ids: U8, backend: I64) -> tuple[I64, Bools]:
        """Look at files once: int64 (n,), 0 for what can be relied on, -ENOENT for what is torn, or gone.

        -EIO where a file cannot be read, although nobody has found it sound meanwhile. The second value, bool (n,),
        tells which are torn, to be set aside: what has the name of one that was gone may be good.
        """
        result, torn = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.bool_)
        new = self._not_seen(ids)
        if not len(new):
            return result, torn
        younger = await asyncio.to_thread(self._younger, ids[new], backend[new])
        self._note_sound(ids[new[younger]])
        old = new[~younger]
        for start in range(0, len(old), AT_ONCE):
            some = old[start : start + AT_ONCE]
            put_ends = partial(self._put_ends, ids[some], backend[some])
            verdict = await look_at_blocks(ids[some], self._namespace, self._transfer, put_ends)
            self._note_sound(ids[some[verdict == SOUND]])
            torn[some] = verdict == TORN
            result[some[np.isin(verdict, (TORN, GONE))]] = -errno.ENOENT
            unknown = some[verdict == UNKNOWN]
            result[unknown[self._not_seen(ids[unknown])]] = -errno.EIO
        return result, torn

    def _not_seen(self, ids: U8) -> I64:
        seen = np.zeros(len(ids), dtype=np.uint64)
        self._sound.get(np.ascontiguousarray(ids), seen)
        return np.flatnonzero(seen == 0)

    def _note_sound(self, ids: U8) -> None:
        self._sound.put(np.ascontiguousarray(ids), np.ones(len(ids), dtype=np.uint64))

    def _younger(self, ids: U8, backend: I64) -> Bools:
        """Tell which files were written since the machine started: bool (n,); not what cannot be asked. Blocks."""
        younger = np.zeros(len(ids), dtype=np.bool_)
        for i, (path, place) in enumerate(zip(block_paths(ids), backend.tolist(), strict=True)):
            system, root = self._backends[place].system, self._backends[place].root
            with contextlib.suppress(OSError):
                about = system.size_and_time(root / path.tobytes().rstrip(b"\0").decode())
                younger[i] = about is not None and about[1] >= system.started()
        return younger

    def _put_ends(self, ids: U8, backend: I64, chains: rq.Requests) -> object:
        chains["opcode"][:, 1] |= rq.FLAG_LINK
        chains["opcode"][:, 2] = rq.OP_CLOSE | rq.FLAG_LINK
        return self._files.put_open_to_read(chains[:, 0], ids, backend)
