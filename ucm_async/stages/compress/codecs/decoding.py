"""Reading shards, whatever codec stored them and whatever is set now."""

from __future__ import annotations

import errno
from typing import Final

import numpy as np

from ....coding import FP8_E4M3, HUFFMAN, INT4, INT8, PACKED, Codings
from ....errors import (
    BackendIOError,
    ConfigError,
    CorruptError,
    StoreError,
    TaskCancelledError,
    UnknownCodecError,
    UnknownNameError,
)
from ....native import NATIVE
from .base import Codec, Context
from .registry import codec_class, codec_name

__all__ = ["can_decode", "decode", "failure_of", "raise_for_failures"]

_REASONS: Final = {
    -errno.EBADMSG: "the payload does not decode",
    -errno.EINVAL: "the parameters cannot be used",
    -errno.ENOBUFS: "the target or the context is too small for the shard",
    -errno.EMSGSIZE: "the shard is larger than 2 GiB",
    -errno.ENOSYS: "not available here",
}

_OF_THE_EXTENSION: Final = frozenset((HUFFMAN, PACKED, FP8_E4M3, INT8, INT4))


def decode(codings: Codings, context: Context) -> None:
    """Decode shards of any codecs.

    Parameters
    ----------
    codings
        Array of ``CODING``, shape (n,), with everything but ``result`` set: ``codec`` and ``parameters`` from the
        header, ``source_length`` the stored and ``target_length`` the raw length. ``result`` is the raw length, or a
        negative errno, for which `failure_of` has words.
    context
        For the calling thread alone.

    Notes
    -----
    What the extension can decode is one call without the GIL; the other rows follow, codec by codec. It never raises
    for a payload. A shard as long as its raw length was stored raw, whatever its codec.
    """
    context.native.decode(codings)
    missing = codings["result"] == -errno.ENOSYS
    if not missing.any():
        return
    for number in np.unique(codings["codec"][missing]).tolist():
        codec = _find(number)
        if codec is not None:
            rows = np.flatnonzero(missing & (codings["codec"] == number))
            some = codings[rows]
            codec.decode(some, context)
            codings["result"][rows] = some["result"]


def can_decode(number: int) -> bool:
    """Tell whether shards of the codec with that number can be decoded here. May import the codec."""
    return _find(number) is not None and (NATIVE or number not in _OF_THE_EXTENSION)


def _find(number: int) -> type[Codec] | None:
    try:
        return codec_class(codec_name(number))
    except (ConfigError, UnknownNameError):
        return None


def failure_of(coding: np.void) -> StoreError | None:
    """Tell what went wrong with one coding; None if nothing did.

    Returns
    -------
    StoreError
        `UnknownCodecError` or `CorruptError` for what cannot be decoded, `TaskCancelledError` for a closed gate,
        `BackendIOError` for the rest, which is a mistake of the caller's.
    """
    result, number = int(coding["result"]), int(coding["codec"])
    if result >= 0:
        return None
    name = codec_name(number)
    if result == -errno.ECANCELED:
        return TaskCancelledError()
    if result == -errno.ENOSYS:
        return UnknownCodecError(f"codec {name!r}: {_why_unknown(number)}")
    reason = f"codec {name!r}: {_REASONS.get(result, errno.errorcode.get(-result, str(result)))}"
    return CorruptError(reason) if result == -errno.EBADMSG else BackendIOError(reason)


def _why_unknown(number: int) -> str:
    name = codec_name(number)
    if name == str(number):
        return "unknown to this version"
    try:
        codec_class(name)
    except ConfigError as error:
        return str(error)
    return "needs the extension ucm_async._native"


def raise_for_failures(codings: Codings) -> None:
    """Raise the failure of the first coding that has one; see `failure_of`."""
    bad = np.flatnonzero(codings["result"] < 0)
    if len(bad):
        failure = failure_of(codings[bad[0]])
        assert failure is not None
        raise failure
