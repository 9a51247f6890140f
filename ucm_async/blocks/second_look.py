"""Reading stored blocks whole, to tell which of them are what they should be; for those that nobody wants to load."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Final

import numpy as np

from ..engines import requests as rq
from ..engines.waits import completed
from ..types import U8
from .transfer import Transfer
from .verify import verify_block

__all__ = ["AT_ONCE", "GONE", "SOUND", "TORN", "UNKNOWN", "look_at_blocks"]

UNKNOWN, SOUND, TORN, GONE = range(4)
"""What was found out about a block; nothing, if it could not be read."""

AT_ONCE: Final = 8
"""Blocks that are read at a time."""


async def look_at_blocks(
    ids: U8, namespace: bytes, transfer: Transfer, put_ends: Callable[[rq.Requests], object]
) -> U8:
    """Read some blocks and compare them with their own headers.

    Parameters
    ----------
    ids
        uint8, shape (n, 16), at most `AT_ONCE`.
    namespace
        Fingerprint that they have, 16 bytes.
    transfer
        Whose slots and engine are used.
    put_ends
        Completes the chains, shape (n, 3), whose second request reads; returns what they point to.

    Returns
    -------
    numpy.ndarray
        uint8, shape (n,): `UNKNOWN`, `SOUND`, `TORN`, or `GONE` where the first request has found nothing.
    """
    arena = transfer.arena
    slots = await arena.lease(len(ids))
    try:
        chains = rq.new_requests(3 * len(ids)).reshape(-1, 3)
        chains["opcode"][:, 1] = rq.OP_READ
        chains["address"][:, 1] = arena.address(slots)
        chains["length"][:, 1] = arena.slot_bytes  # whatever is there by then, as far as it goes
        kept = put_ends(chains)
        await completed(transfer.engine.submit(chains.reshape(-1), 3))
        del kept  # it lived until here
        transfer.counts["looked_at"] += len(ids)
        gone, came = chains["result"][:, 0] == -errno.ENOENT, chains["result"][:, 1].tolist()
        verdict = await asyncio.to_thread(_judge, ids, namespace, arena.view(), slots.tolist(), came)
        verdict[gone] = GONE
        return verdict
    finally:
        arena.release(slots)


def _judge(ids: U8, namespace: bytes, memory: U8, slots: list[int], came: list[int]) -> U8:
    verdict = np.full(len(ids), UNKNOWN, dtype=np.uint8)
    for i, (slot, length) in enumerate(zip(slots, came, strict=True)):
        if length >= 0:
            verdict[i] = TORN if verify_block(memory[slot, :length], ids[i].tobytes(), namespace) else SOUND
    return verdict
