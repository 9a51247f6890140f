"""``packed``: the fast lossless codec. Exponents take four bits each, at nearly the speed of a copy."""

from __future__ import annotations

from typing import Any, Final

from .... import coding as c
from ....errors import ConfigError
from .base import Codec, Layout, check_options, parameters_of
from .extension import need_extension

__all__ = ["PackedCodec"]

_DTYPES: Final = ("bfloat16", "float32")


class PackedCodec(Codec):
    """Takes bfloat16 and float32, whose exponents have eight bits. No options."""

    name = "packed"
    number = c.PACKED

    def __init__(self, layout: Layout, **options: Any) -> None:
        check_options(self.name, options, ())
        if layout.dtype not in _DTYPES:
            raise ConfigError(f"codec 'packed': dtype {layout.dtype!r}, must be one of {', '.join(map(repr, _DTYPES))}")
        need_extension(self.name)
        self.parameters = parameters_of(layout)
