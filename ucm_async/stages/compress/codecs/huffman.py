"""``huffman``: the best lossless codec for floats. Exponents are Huffman coded, run by run less their mean."""

from __future__ import annotations

from typing import Any

from .... import coding as c
from .base import Codec, Layout, check_options, parameters_of
from .extension import need_extension

__all__ = ["HuffmanCodec"]


class HuffmanCodec(Codec):
    """Takes every element type. No options."""

    name = "huffman"
    number = c.HUFFMAN

    def __init__(self, layout: Layout, **options: Any) -> None:
        check_options(self.name, options, ())
        need_extension(self.name)
        self.parameters = parameters_of(layout)
