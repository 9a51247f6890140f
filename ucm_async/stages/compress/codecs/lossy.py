"""What the lossy codecs have in common."""

from __future__ import annotations

import struct
from typing import Any, Final

from .... import coding as c
from ....errors import ConfigError
from .base import PARTS, Codec, Layout, check_options
from .extension import need_extension

__all__ = ["GroupedCodec", "entropy_flag", "need_float"]

_FLOATS: Final = ("bfloat16", "float16", "float32")
_PARAMETERS: Final = struct.Struct("<BBBxHHHHI")  # struct parameters of ext/quantize.c
_GROUP_TOKENS_MAX: Final = 512
_GROUP_CHANNELS: Final = (16, 1024)
_GROUP_TOKENS: Final = 16
_GROUP_CHANNELS_DEFAULT: Final = 64


def need_float(codec: str, layout: Layout) -> None:
    """Refuse element types that a lossy codec cannot make smaller."""
    if layout.dtype not in _FLOATS:
        raise ConfigError(f"codec {codec!r}: dtype {layout.dtype!r}, must be one of {', '.join(map(repr, _FLOATS))}")


def entropy_flag(codec: str, options: dict[str, Any]) -> int:
    """Return the flags of the parameters for the option ``entropy``."""
    entropy = options.get("entropy", False)
    if not isinstance(entropy, bool):
        raise ConfigError(f"codec {codec!r}: entropy {entropy!r}, must be true or false")
    return c.FLAG_ENTROPY if entropy else 0


class GroupedCodec(Codec):
    """An integer an element, and a step for each group of elements: keys along the tokens, values along the channels.

    Takes bfloat16, float16 and float32.

    Options
    -------
    entropy : bool
        Huffman code what is left. Default False; a ``+huffman`` behind the name says the same.
    group_tokens : int
        Keys that share a step: so many tokens of one channel, 1 ... 512. Default 16.
    group_channels : int
        Values that share a step: so many channels of one token, even, 16 ... 1024. Default 64.

    Notes
    -----
    Zero stays zero, and negative zero becomes zero. A shard with an infinity, with what is not a number, or with a
    magnitude beyond 2**120 is stored raw; so are elements at its end that are no whole part of the layout.
    """

    lossless = False

    def __init__(self, layout: Layout, **options: Any) -> None:
        check_options(self.name, options, ("entropy", "group_tokens", "group_channels"))
        need_float(self.name, layout)
        need_extension(self.name)
        tokens = self._group(options, "group_tokens", _GROUP_TOKENS, 1, _GROUP_TOKENS_MAX, 1)
        channels = self._group(options, "group_channels", _GROUP_CHANNELS_DEFAULT, *_GROUP_CHANNELS, 2)
        self.parameters = _PARAMETERS.pack(
            layout.dtype_number,
            entropy_flag(self.name, options),
            PARTS[layout.parts],
            tokens,
            channels,
            layout.tokens,
            layout.channels,
            layout.part_elements,
        )

    def _group(self, options: dict[str, Any], name: str, default: int, low: int, high: int, step: int) -> int:
        value = options.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high or value % step:
            even = "an even integer" if step > 1 else "an integer"
            raise ConfigError(f"codec {self.name!r}: {name} {value!r}, must be {even} from {low} to {high}")
        return value
