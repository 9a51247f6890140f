"""The Compress stage's room.

General layout: ``codecs`` has the codecs, ``pool`` the memory they work in and ``workers`` the threads; ``units`` is
pure and tells which shards the rows of a batch are; ``encoding`` and ``decoding`` are the two lanes, on what ``lane``
has for both; ``stage`` puts them together.
"""

from .stage import CompressStage

__all__ = ["CompressStage"]
