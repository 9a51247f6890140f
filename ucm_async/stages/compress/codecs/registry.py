"""Codecs by name and by number. Modules are imported when first needed, for some need packages that may be missing."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from .... import coding as c
from ....errors import ConfigError, UnknownNameError
from .base import Codec, Layout

__all__ = ["codec_class", "codec_name", "known_codecs", "make_codec", "register_codec"]

ENTROPY_SUFFIX: Final = "+huffman"
_NAME_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int
    target: str | type[Codec]
    install: str = ""  # what to install where the import fails


_HERE: Final = __package__
_entries: dict[str, _Entry] = {
    "raw": _Entry(c.RAW, f"{_HERE}.raw:RawCodec"),
    "auto": _Entry(c.AUTO, f"{_HERE}.auto:AutoCodec"),
    "huffman": _Entry(c.HUFFMAN, f"{_HERE}.huffman:HuffmanCodec"),
    "packed": _Entry(c.PACKED, f"{_HERE}.packed:PackedCodec"),
    "lz4": _Entry(c.LZ4, f"{_HERE}.lz4:Lz4Codec", "lz4"),
    "zstd": _Entry(c.ZSTD, f"{_HERE}.zstd:ZstdCodec", "zstandard"),
    "fp8_e4m3": _Entry(c.FP8_E4M3, f"{_HERE}.fp8_e4m3:Fp8E4M3Codec"),
    "int8": _Entry(c.INT8, f"{_HERE}.int8:Int8Codec"),
    "int4": _Entry(c.INT4, f"{_HERE}.int4:Int4Codec"),
}


def register_codec(name: str, number: int, codec: str | type[Codec], *, install: str = "") -> None:
    """Make a codec known.

    Parameters
    ----------
    name
        As it will stand in ``compress_codec``.
    number
        As it will stand in headers, for ever: from 256 to 2**32 - 1; the smaller ones are ours.
    codec
        The class, or ``"module:Class"``.
    install
        The package to name where the module cannot be imported.

    Raises
    ------
    ValueError
        The name or the number is taken, or the number is out of range.
    """
    if name in _entries:
        raise ValueError(f"name: a codec {name!r} is registered already")
    if not 256 <= number < 2**32:
        raise ValueError(f"number: {number}, must be 256 ... 2**32 - 1")
    if any(entry.number == number for entry in _entries.values()):
        raise ValueError(f"number: {number} is codec {codec_name(number)!r} already")
    _entries[name] = _Entry(number, codec, install)


def known_codecs() -> list[str]:
    """Names that `make_codec` knows, whether or not they can be imported here."""
    return list(_entries)


def codec_name(number: int) -> str:
    """Return the name of the codec with that number, or the number itself as text."""
    return next((name for name, entry in _entries.items() if entry.number == number), str(number))


def make_codec(spec: str, layout: Layout | None = None, **options: Any) -> Codec:
    """Make a codec, once, at set-up.

    Parameters
    ----------
    spec
        Name, an optional ``+huffman`` for lossy codecs, and options: ``"zstd:level=3"``, ``"int4+huffman"``,
        ``"int4:group_tokens=32,group_channels=128"``.
    layout
        How to read a shard. Default: bfloat16, without a layout.
    **options
        Further options; they go before those of `spec`.

    Raises
    ------
    UnknownNameError
        There is no codec of that name; the nearest one is named.
    ConfigError
        The codec's package is not installed, an option is unknown or out of range, or the codec cannot take the layout.
    """
    name, entropy, written = _parse(spec)
    options = written | options
    if entropy:
        options["entropy"] = True
    make: Callable[..., Codec] = codec_class(name)
    return make(layout or Layout(), **options)


def codec_class(name: str) -> type[Codec]:
    """Return the class of codec `name`. Errors as of `make_codec`."""
    entry = _entries.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, _entries, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownNameError(f"no codec {name!r}{hint} (known: {', '.join(_entries)})")
    if not isinstance(entry.target, str):
        return entry.target
    module, _, attribute = entry.target.partition(":")
    try:
        found: type[Codec] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        what = f"; pip install {entry.install}" if entry.install else ""
        raise ConfigError(f"codec {name!r} is not installed: {error}{what}") from error
    return found


def _parse(spec: str) -> tuple[str, bool, dict[str, Any]]:
    if not isinstance(spec, str) or not spec or len(spec) > _NAME_MAX:
        raise ConfigError(f"codec: {spec!r}, must be a name such as 'auto' or 'zstd:level=3'")
    name, _, rest = spec.partition(":")
    options: dict[str, Any] = {}
    for one in rest.split(",") if rest else ():
        key, equals, value = one.partition("=")
        if not equals or not key or key in options:
            raise ConfigError(f"codec {spec!r}: {one!r}, must be option=value, each option once")
        options[key] = _value(value)
    entropy = name.endswith(ENTROPY_SUFFIX)
    return name.removesuffix(ENTROPY_SUFFIX), entropy, options


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        return text
