"""Slots that were filled before the machine's last start: how it ended may have torn what was not synced.

A power cut may leave a slot its header, or a checkpoint that names it, and other bytes than those. A load finds that
out by the checksums. A dump of such a block does not load it, so one that finds an older slot reads it once before it
calls the block stored. `ucm_async.stages.posix.survivors` does the same for files.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ...blocks.second_look import AT_ONCE, SOUND, look_at_blocks
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

    async def torn(self, ids: U8, backend: I64, slots: I64, words: U64) -> Bools:
        """Tell which of some stored blocks are not there, or no more, as a whole: bool, shape (n,).

        One that cannot be read counts as torn: who dumps it has its bytes.
        """
        torn = np.zeros(len(ids), dtype=np.bool_)
        new = self._not_seen(backend, slots, words)
        if len(new):
            await self._slabs.refresh()
            new = new[self._slabs.descriptors(backend[new], slots[new]) >= 0]
        for start in range(0, len(new), AT_ONCE):
            some = new[start : start + AT_ONCE]
            sizes = self._slabs.sizes(backend[some])
            put_ends = partial(self._put_ends, backend[some], slots[some])
            verdict = await look_at_blocks(ids[some], sizes, self._namespace, self._transfer, put_ends)
            same = self._slabs.words(backend[some], slots[some]) == words[some]
            torn[some[~same | (verdict != SOUND)]] = True  # a load may have set it aside meanwhile
            self._note(backend[some], slots[some], np.where(same & (verdict == SOUND), words[some], np.uint64(0)))
        return torn

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
        return None
