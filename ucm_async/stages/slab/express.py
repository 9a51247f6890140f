"""The short way of one small block from a slot: a look at the table, and one read."""

from __future__ import annotations

from ...blocks.express import OFFSET, READ_AT, BlockExpress, ExpressChain
from ...blocks.layout import BlockLayout
from ...blocks.transfer import Transfer
from ...engines import requests as rq
from ...space import WEIGHT_LOAD
from ...types import U8
from .load import Touch
from .slabs import Place, Slabs

__all__ = ["ExpressLoads"]


class ExpressLoads(BlockExpress):
    """See `BlockExpress`. As long as a chain has its `Place`, the descriptor stays what it is."""

    def __init__(self, layout: BlockLayout, namespace: bytes, slabs: Slabs, touch: Touch, transfer: Transfer) -> None:
        super().__init__(layout, namespace, transfer)
        self._slabs = slabs
        self._touch = touch

    def _aim(self, chain: ExpressChain) -> bool:
        found = self._slabs.place_one(chain.ids)
        if found is None:
            return False
        chain.place, fd, offset = found
        chain.words[READ_AT] = rq.OP_READ | fd << 32
        chain.words[READ_AT + OFFSET] = offset
        return True

    def _came(self, ids: U8, place: Place) -> None:
        self._touch(ids, WEIGHT_LOAD)
