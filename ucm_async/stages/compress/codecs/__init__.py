"""Codecs: shards to fewer bytes and back. See ``docs/design/codecs.md``.

General layout: ``base`` has the contract, the layout of a shard and the context; ``registry`` the names; ``decoding``
reads what any of them stored; then a module a codec. Nothing here knows stages, loops or files.

A codec is made at set-up, by `make_codec`, and is then immutable: any number of threads may use it, each with a
`Context` of its own.
"""

from .base import Codec, Context, Layout
from .decoding import can_decode, decode, failure_of, raise_for_failures
from .registry import codec_name, known_codecs, make_codec, register_codec

__all__ = [
    "Codec",
    "Context",
    "Layout",
    "can_decode",
    "codec_name",
    "decode",
    "failure_of",
    "known_codecs",
    "make_codec",
    "raise_for_failures",
    "register_codec",
]
