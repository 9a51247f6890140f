"""``auto``: for each shard the lossless codec of the extension that suits it."""

from __future__ import annotations

from typing import Any

from .... import coding as c
from .base import Codec, Layout, check_options, parameters_of

__all__ = ["AutoCodec"]


class AutoCodec(Codec):
    """Looks at 2048 elements of a shard and takes ``huffman``, ``packed`` or ``raw``. No options.

    Its number stands in no header: ``codec`` of each coding becomes the number of the choice. All of them have the same
    parameters. Without the extension everything is stored raw.
    """

    name = "auto"
    number = c.AUTO

    def __init__(self, layout: Layout, **options: Any) -> None:
        check_options(self.name, options, ())
        self.parameters = parameters_of(layout)
