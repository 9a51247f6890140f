"""The checks of a caller's arguments that need no stage and no engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import I64, U8, BlockIds, as_block_ids

__all__ = ["WHOLE_BLOCK", "check_rows", "refuse_duplicates"]

WHOLE_BLOCK = -1
"""Shard index of a row that is a whole block."""

_ONE_WHOLE = np.full(1, WHOLE_BLOCK, dtype=np.int64)
_ONE_WHOLE.flags.writeable = False


def check_rows(ids: BlockIds, shard_index: Sequence[int] | I64 | None, shards_per_block: int) -> tuple[U8, I64]:
    """Check ids and shard indexes against each other.

    Returns
    -------
    ids
        uint8, shape (n, 16); a copy, so that the caller may change its array at once.
    shards
        int64, shape (n,); `WHOLE_BLOCK` everywhere if `shard_index` is None.

    Raises
    ------
    TypeError
        Not ids, or not ints.
    ValueError
        Wrong length, different counts, or an index outside of 0 … shards_per_block - 1.
    """
    checked = as_block_ids(ids)
    if isinstance(ids, np.ndarray):
        checked = checked.copy()
    if shard_index is None:
        return checked, _ONE_WHOLE if len(checked) == 1 else np.full(len(checked), WHOLE_BLOCK, dtype=np.int64)
    try:
        shards = np.array(shard_index)
    except (TypeError, ValueError) as error:
        raise ValueError(f"shard_index: {error}; must be {len(checked)} ints") from None
    if shards.ndim != 1:
        raise ValueError(f"shard_index: shape {shards.shape}, must be ({len(checked)},)")
    if len(shards) != len(checked):
        raise ValueError(f"shard_index: {len(shards)} entries, must be {len(checked)}, one for each id")
    if len(shards) and shards.dtype.kind not in "iu":
        raise TypeError(f"shard_index: {shards.dtype}, must be ints")
    shards = shards.astype(np.int64)
    wrong = np.flatnonzero((shards < 0) | (shards >= shards_per_block))
    if len(wrong):
        raise ValueError(
            f"shard_index[{wrong[0]}]: {shards[wrong[0]]}, must be 0 … {shards_per_block - 1} (shards of a block)"
        )
    return checked, shards


def refuse_duplicates(ids: U8, shards: I64) -> None:
    """Refuse a dump that names a shard twice: nobody could say which of the two is stored.

    Raises
    ------
    ValueError
        Naming the first two rows that are the same.
    """
    if len(ids) < 2:
        return
    keys = np.empty((len(ids), 3), dtype=np.uint64)
    keys[:, :2] = ids.view(np.uint64)
    keys[:, 2] = shards.view(np.uint64)
    order = np.lexsort(keys.T)
    same = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    if same.any():
        at = int(np.flatnonzero(same)[0])
        first, second = sorted((int(order[at]), int(order[at + 1])))
        what = f"shard {shards[first]}" if shards[first] >= 0 else "the whole block"
        raise ValueError(
            f"ids[{second}]: {what} of block {ids[second].tobytes().hex()} is in the dump already, as row {first}"
        )
