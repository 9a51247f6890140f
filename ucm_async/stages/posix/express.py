"""The short way of one small block to a file: it is opened, read, checked and closed by one chain that stands ready."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import numpy as np

from ...blocks.express import ADDRESS, OFFSET, READ_AT, BlockExpress, ExpressChain
from ...blocks.layout import BlockLayout
from ...blocks.transfer import Transfer
from ...engines import requests as rq
from ...native import LoadChains, block_paths
from ...space import WEIGHT_LOAD
from ...types import U8, U64
from .backend import Backend
from .known import KnownBlocks
from .layout import PATH_BYTES, choose_backend

__all__ = ["ExpressLoads"]

_OPEN: Final = rq.OP_OPEN | rq.FLAG_CACHED
_READ: Final = rq.OP_READ | rq.FLAG_LINK
_CLOSE: Final = rq.OP_CLOSE | rq.FLAG_LINK


class _FileChain(ExpressChain):
    """OPEN leads to the block, CLOSE ends it."""

    def __init__(self, layout: BlockLayout, native: LoadChains, base: int) -> None:
        super().__init__(layout, native, base)
        self._path = np.zeros(PATH_BYTES, dtype=np.uint8)
        self._path_at = self._path.ctypes.data

    def aim(self, dirfd: int, flags: int) -> None:
        """Write down which file it is."""
        block_paths(self.ids, self._path)
        words = self.words
        words[0], words[OFFSET], words[ADDRESS] = _OPEN | dirfd << 32, flags, self._path_at
        words[READ_AT] = _READ
        words[-READ_AT] = _CLOSE


class ExpressLoads(BlockExpress):
    """See `BlockExpress`; from the files of several backends."""

    def __init__(
        self,
        layout: BlockLayout,
        namespace: bytes,
        backends: list[Backend],
        seeds: U64,
        known: KnownBlocks,
        touch: Callable[[U8, float], None],
        transfer: Transfer,
    ) -> None:
        super().__init__(layout, namespace, transfer)
        self._seeds = seeds
        self._known = known
        self._touch = touch
        self._dirfds = [backend.dirfd for backend in backends]
        self._flags = [os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if backend.direct else 0) for backend in backends]

    def _chain(self, layout: BlockLayout, native: LoadChains, base: int) -> _FileChain:
        return _FileChain(layout, native, base)

    def _aim(self, chain: ExpressChain) -> bool:
        assert isinstance(chain, _FileChain), "made by `_chain`"
        backend = 0 if len(self._dirfds) == 1 else int(choose_backend(chain.ids, self._seeds)[0])
        dirfd = self._dirfds[backend]
        if dirfd < 0:
            return False
        chain.place = self._known.removals
        chain.aim(dirfd, self._flags[backend])
        return True

    def _came(self, ids: U8, place: int) -> None:
        self._known.add(ids, place)
        self._touch(ids, WEIGHT_LOAD)
