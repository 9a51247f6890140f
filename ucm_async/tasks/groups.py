"""Rows of one block: a group; and ids among other ids. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np

from ..types import I64, U8, U64, Bools

__all__ = ["group_blocks", "group_rows", "ids_among", "rank_in_group"]


def group_rows(ids: U8) -> tuple[I64, I64]:
    """Group consecutive rows of one block.

    Returns
    -------
    first
        int64, shape (g,): the first row of each group.
    group
        int64, shape (n,): the group of each row.
    """
    words = ids.view(np.uint64)
    low = words[:, 0]
    if (low[1:] != low[:-1]).all():  # a row a block, as usual
        each = np.arange(len(ids))
        return each, each
    new = np.ones(len(ids), dtype=np.bool_)
    new[1:] = (words[1:] != words[:-1]).any(axis=1)
    return np.flatnonzero(new).astype(np.int64), (np.cumsum(new) - 1).astype(np.int64)


def group_blocks(ids: U8) -> tuple[I64, I64]:
    """Group the rows of each block wherever they are; the groups are in order of their first rows.

    Returns
    -------
    first
        int64, shape (g,), ascending: the first row of each group. No two of them have the same id.
    group
        int64, shape (n,): the group of each row.
    """
    first, group = group_rows(ids)
    if len(first) == 1:
        return first, group
    words = ids[first].view(np.uint64)
    order = np.lexsort((words[:, 1], words[:, 0]))  # stable: of equal ids the first run comes first
    ordered = words[order]
    new = np.ones(len(first), dtype=np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    if new.all():
        return first, group
    leader = np.empty_like(first)  # of each run, the first run of its block
    leader[order] = order[new][np.cumsum(new) - 1]
    leads = leader == np.arange(len(first))
    return first[leads], (np.cumsum(leads) - 1)[leader[group]]


def ids_among(ids: U8, others: list[U8]) -> Bools:
    """Tell which of `ids`, uint8 (n, 16), are among `others`, arrays of ids; bool, shape (n,).

    Ids are compared by one word each: once in 2^64 another id is taken for the same.
    """
    if not sum(map(len, others)):
        return np.zeros(len(ids), dtype=np.bool_)
    among, words = np.sort(_words(np.concatenate(others))), _words(ids)
    at = np.searchsorted(among, words)  # which takes a fifth of the time of `numpy.isin`
    return np.asarray(among[np.minimum(at, len(among) - 1)] == words)


def _words(ids: U8) -> U64:
    words = np.ascontiguousarray(ids).view("<u8")
    return np.asarray(words[:, 0] ^ (words[:, 1] * np.uint64(0x9E3779B97F4A7C15)))


def rank_in_group(group: I64, groups: int) -> tuple[I64, int]:
    """Count the rows of each group from 0 on.

    Parameters
    ----------
    group
        int64, shape (n,), ascending: the group of each row.
    groups
        How many groups there are.

    Returns
    -------
    rank
        int64, shape (n,).
    most
        Rows of the largest group.
    """
    n = len(group)
    if n == groups:
        return _zeros(n), 1
    count = np.bincount(group, minlength=groups)
    first = np.cumsum(count) - count
    return np.arange(n) - first[group], int(count.max())


def _zeros(n: int) -> I64:
    return _ZEROS[:n] if n <= len(_ZEROS) else np.zeros(n, dtype=np.int64)


_ZEROS: Final = np.zeros(1024, dtype=np.int64)
_ZEROS.flags.writeable = False
