"""``raw``: bytes as they are."""

from __future__ import annotations

from typing import Any

from .... import coding as c
from .base import Codec, Layout, check_options

__all__ = ["RawCodec"]


class RawCodec(Codec):
    """Copies. No options."""

    name = "raw"
    number = c.RAW

    def __init__(self, layout: Layout, **options: Any) -> None:
        check_options(self.name, options, ())
        self.parameters = bytes(c.PARAMETER_BYTES)
