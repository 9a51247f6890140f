"""``fp8_e4m3``: each element as a byte of OCP E4M3. Lossy: three bits of mantissa are left."""

from __future__ import annotations

import struct
from typing import Any, Final

from .... import coding as c
from ....errors import ConfigError
from .base import Codec, Layout, check_options
from .extension import need_extension
from .lossy import entropy_flag, need_float

__all__ = ["Fp8E4M3Codec"]

_PARAMETERS: Final = struct.Struct("<BBb13x")  # struct parameters of ext/fp8.c
_POWER_MAX: Final = 32


class Fp8E4M3Codec(Codec):
    """Takes bfloat16, float16 and float32.

    Options
    -------
    entropy : bool
        Huffman code what is left. Default False; ``fp8_e4m3+huffman`` says the same.
    power : int
        Elements are multiplied by 2**power before, and by 2**-power after. Default 0: as vLLM's fp8 caches have it.

    Notes
    -----
    To nearest, ties to even; magnitudes beyond 448 become 448. A shard with an infinity or what is not a number is
    stored raw.
    """

    name = "fp8_e4m3"
    number = c.FP8_E4M3
    lossless = False

    def __init__(self, layout: Layout, **options: Any) -> None:
        check_options(self.name, options, ("entropy", "power"))
        need_float(self.name, layout)
        need_extension(self.name)
        power = options.get("power", 0)
        if not isinstance(power, int) or isinstance(power, bool) or abs(power) > _POWER_MAX:
            raise ConfigError(
                f"codec 'fp8_e4m3': power {power!r}, must be an integer from {-_POWER_MAX} to {_POWER_MAX}"
            )
        self.parameters = _PARAMETERS.pack(layout.dtype_number, entropy_flag(self.name, options), power)
