"""``zstd``: Zstandard frames, by the package zstandard, over planes of bytes. The extra ``zstd``."""

from __future__ import annotations

from typing import Any, Final

import zstandard

from .... import coding as c
from ....errors import ConfigError
from .base import Context, Layout, check_options
from .foreign import ForeignCodec

__all__ = ["ZstdCodec"]

_LEVELS: Final = (-7, 19)


class ZstdCodec(ForeignCodec):
    """Takes every element type.

    Options
    -------
    planes : {"bits", "bytes", "none"}
        How elements are ordered. Default "bytes": exponents by themselves.
    level : int
        -7 to 19; default 1.

    Notes
    -----
    A compressor that two threads use at a time crashes the process, so each context has its own.
    """

    name = "zstd"
    number = c.ZSTD
    error = zstandard.ZstdError

    def __init__(self, layout: Layout, **options: Any) -> None:
        check_options(self.name, options, ("planes", "level"))
        super().__init__(layout, options.get("planes", "bytes"))
        level = options.get("level", 1)
        if not isinstance(level, int) or isinstance(level, bool) or not _LEVELS[0] <= level <= _LEVELS[1]:
            raise ConfigError(f"codec 'zstd': level {level!r}, must be an integer from {_LEVELS[0]} to {_LEVELS[1]}")
        self._level = level

    def compress(self, data: memoryview, context: Context) -> bytes:
        """See `ForeignCodec.compress`. The frame has the length in it, and no checksum: headers have one."""
        compressor = context.tool(("zstd", self._level), lambda: zstandard.ZstdCompressor(level=self._level))
        return compressor.compress(data)

    @classmethod
    def decompress(cls, payload: memoryview, raw_length: int, context: Context) -> bytes:
        """See `ForeignCodec.decompress`."""
        # The package allocates what the frame says, however much that is.
        if zstandard.get_frame_parameters(payload).content_size != raw_length:
            raise zstandard.ZstdError("the frame is of another length")
        decompressor = context.tool("zstd", zstandard.ZstdDecompressor)
        return decompressor.decompress(payload, max_output_size=raw_length, allow_extra_data=False)
