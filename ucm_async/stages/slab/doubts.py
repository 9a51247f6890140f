"""Slots that were filled before the machine's last start: how it ended may have torn what was not synced.

A power cut may leave a slot its header, or a checkpoint that names it, and other bytes than those. A load finds that
out by the checksums. A dump of such a block does not load it, so one that finds an older slot reads it once before it
calls the block stored. `ucm_async.stages.posix.survivors` does the same for files.
"""

from __future__ import annotations

import errno
from functools import partial

import numpy as np

from ...blocks.second_look import AT_ONCE, SOUND, TORN, UNKNOWN, look_at_blocks
from ...blocks.transfer import Transfer
from ...engines import requests as rq
from ...types import I64, U8, U64, Bools
from .slabs import Slabs

__all__ = ["Doubts"]


class Doubts:
    """Tells which slots hold the blocks that they should.

    Parameters
    ----------
    namespace
        Fingerprint that the blocks have, 16 bytes.
    slabs, transfer
        The slots, and the means of the dump lane.
    """

    def __init__(self, namespace: bytes, slabs: Slabs, transfer: Transfer) -> None:
        self._namespace = namespace
        self._slabs = slabs
        self._transfer = transfer
        self._sound: dict[int, U64] = {
            position: np.zeros(slab.table.slots, dtype=np.uint64)  # the word of each slot that was looked at
            for position, slab in enumerate(slabs.slabs)
            if slab is not None and slab.memory.doubtful
        }

    def __bool__(self) -> bool:
        """Whether there is anything to doubt."""
        return bool(self._sound)

    async def look(self, ids: U8, backend: I64, slots: I64, words: U64) -> tuple[I64, Bools]:
        """Look at slots once: int64 (n,), 0 for what can be relied on, -ENOENT for what is torn, or gone.

        -EIO where a slot cannot be read, although nobody has found it sound meanwhile. The second value, bool (n,),
        tells which are torn, to be set aside.
        """
        result, torn = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.bool_)
        new = self._not_seen(backend, slots, words)
        if len(new):
            await self._slabs.refresh()
            new = new[self._slabs.descriptors(backend[new], slots[new]) >= 0]
        for start in range(0, len(new), AT_ONCE):
            some = new[start : start + AT_ONCE]
            put_ends = partial(self._put_ends, backend[some], slots[some])
            verdict = await look_at_blocks(ids[some], self._namespace, self._transfer, put_ends)
            same = self._slabs.words(backend[some], slots[some]) == words[some]
            sound = some[same & (verdict == SOUND)]
            self._note(backend[sound], slots[sound], words[sound])
            torn[some] = same & (verdict == TORN)
            result[some[~same | (verdict == TORN)]] = -errno.ENOENT  # a load may have set it aside meanwhile
            unknown = some[same & (verdict == UNKNOWN)]
            result[unknown[self._not_seen(backend[unknown], slots[unknown], words[unknown])]] = -errno.EIO
        return result, torn

    def _not_seen(self, backend: I64, slots: I64, words: U64) -> I64:
        unseen = np.zeros(len(slots), dtype=np.bool_)
        for position, sound in self._sound.items():
            mine = backend == position
            unseen[mine] = sound[slots[mine]] != words[mine]
        return np.flatnonzero(unseen)

    def _note(self, backend: I64, slots: I64, words: U64) -> None:
        """Note that slots hold what they should as long as these are their words."""
        for position, sound in self._sound.items():
            mine = backend == position
            sound[slots[mine]] = words[mine]

    def _put_ends(self, backend: I64, slots: I64, chains: rq.Requests) -> object:
        chains["fd"][:, 1] = self._slabs.descriptors(backend, slots)
        chains["offset"][:, 1] = self._slabs.offsets(backend, slots)
        chains["length"][:, 1] = self._slabs.lengths(backend, slots)
        return None
