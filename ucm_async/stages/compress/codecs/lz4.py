"""``lz4``: LZ4 blocks, by the package lz4, over planes of bits. The extra ``lz4``."""

from __future__ import annotations

from typing import Any

import lz4.block as lz4_block

from .... import coding as c
from ....errors import ConfigError
from .base import Context, Layout, check_options
from .foreign import ForeignCodec

__all__ = ["Lz4Codec"]


class Lz4Codec(ForeignCodec):
    """Takes every element type.

    Options
    -------
    planes : {"bits", "bytes", "none"}
        How elements are ordered. Default "bits": LZ4 finds nothing in floats as they are.
    acceleration : int
        1 (default) to 65537: larger is faster and finds less.
    """

    name = "lz4"
    number = c.LZ4
    error = lz4_block.LZ4BlockError

    def __init__(self, layout: Layout, **options: Any) -> None:
        check_options(self.name, options, ("planes", "acceleration"))
        super().__init__(layout, options.get("planes", "bits"))
        acceleration = options.get("acceleration", 1)
        if not isinstance(acceleration, int) or isinstance(acceleration, bool) or not 1 <= acceleration <= 65537:
            raise ConfigError(f"codec 'lz4': acceleration {acceleration!r}, must be an integer from 1 to 65537")
        self._acceleration = acceleration

    def compress(self, data: memoryview, context: Context) -> bytes:
        """See `ForeignCodec.compress`."""
        packed: bytes = lz4_block.compress(data, mode="fast", acceleration=self._acceleration, store_size=False)
        return packed

    @classmethod
    def decompress(cls, payload: memoryview, raw_length: int, context: Context) -> bytes:
        """See `ForeignCodec.decompress`."""
        data: bytes = lz4_block.decompress(payload, uncompressed_size=raw_length)
        return data
