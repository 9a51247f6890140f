"""``int4``: each element as one of 16 multiples of its group's step, from the group's lowest one on. Lossy."""

from __future__ import annotations

from .... import coding as c
from .lossy import GroupedCodec

__all__ = ["Int4Codec"]


class Int4Codec(GroupedCodec):
    """See `GroupedCodec` for what it takes, its options, and what it does to special values."""

    name = "int4"
    number = c.INT4
