"""``int8``: each element as a multiple, -127 to 127, of its group's step. Lossy."""

from __future__ import annotations

from .... import coding as c
from .lossy import GroupedCodec

__all__ = ["Int8Codec"]


class Int8Codec(GroupedCodec):
    """See `GroupedCodec` for what it takes, its options, and what it does to special values."""

    name = "int8"
    number = c.INT8
