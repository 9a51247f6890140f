"""Rows of one block that follow each other: a group. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np

from ..types import I64, U8

__all__ = ["group_rows", "rank_in_group"]


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
    new = np.ones(len(ids), dtype=np.bool_)
    new[1:] = (words[1:] != words[:-1]).any(axis=1)
    return np.flatnonzero(new).astype(np.int64), (np.cumsum(new) - 1).astype(np.int64)


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
