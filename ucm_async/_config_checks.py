"""What each configuration key takes: one check a key, which returns the value in its final form.

A check raises `ConfigError` that names the key, the value it got and what it must be.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from .errors import ConfigError

__all__ = ["CHECKS", "wrong"]

Check: TypeAlias = Callable[[str, Any], Any]

DTYPES: Final = ("bfloat16", "float16", "float32", "float8_e4m3", "float8_e5m2", "int8", "uint8")
ENGINES: Final = ("auto", "psync", "aio", "uring")
POLICIES: Final = ("s3fifo", "sieve", "lru", "fifo")
BLOCK_BYTES_MAX: Final = 2**40
NAMESPACE_CHARS_MAX: Final = 256
UNIQUE_ID_CHARS_MAX: Final = 64  # it becomes part of a shared memory object's name


def wrong(key: str, value: object, what: str) -> ConfigError:
    """Return the error for a value that cannot be used."""
    return ConfigError(f"{key}: {value!r}, must be {what}")


def _integer(low: int, high: int) -> Check:
    what = f"an integer from {low} to {high}"

    def check(key: str, value: Any) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise wrong(key, value, what)
        number = value.__index__()  # numpy integers come out as int
        if not low <= number <= high:
            raise wrong(key, value, what)
        return int(number)

    return check


def _number(low: float, high: float, what: str) -> Check:
    def check(key: str, value: Any) -> float:
        # `low <= nan` is false, so not-a-number ends here too.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise wrong(key, value, what)
        return value

    return check


def _boolean(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(key, value, "true or false")
    return value


def _optional(check: Check) -> Check:
    return lambda key, value: None if value is None else check(key, value)


def _one_of(choices: Sequence[object]) -> Check:
    what = "one of " + ", ".join(map(repr, choices))

    def check(key: str, value: Any) -> Any:
        # 1 == True, so the type is compared too.
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise wrong(key, value, what)
        return value

    return check


def _text(low: int, high: int, pattern: str = "", what: str = "") -> Check:
    what = what or f"a string of {low} to {high} characters"
    allowed = re.compile(pattern) if pattern else None

    def check(key: str, value: Any) -> str:
        if not isinstance(value, str) or not low <= len(value) <= high or (allowed and not allowed.fullmatch(value)):
            raise wrong(key, value, what)
        return value

    return check


def _pipeline(key: str, value: Any) -> str:
    what = "stage names joined by '|', such as 'Cache|Compress|Posix'"
    if not isinstance(value, str):
        raise wrong(key, value, what)
    names = [name.strip() for name in value.split("|")]
    if not all(names):
        raise wrong(key, value, what)
    return "|".join(names)


def _paths(key: str, value: Any) -> tuple[str, ...]:
    what = "a path, several joined by ':', or a list of paths"
    if isinstance(value, str):
        parts: Iterable[Any] = value.split(":") if value else ()
    elif isinstance(value, os.PathLike):
        parts = (value,)
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        parts = value
    else:
        raise wrong(key, value, what)
    paths = tuple(_path(key, value, one, what) for one in parts)
    if len(set(paths)) != len(paths):
        raise wrong(key, value, f"{what}, each once")
    return paths


def _path(key: str, value: Any, one: Any, what: str) -> str:
    path = os.fspath(one) if isinstance(one, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise wrong(key, value, what)
    return path


def _sizes(key: str, value: Any) -> tuple[int, ...]:
    what = "a list of at least one size in bytes"
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise wrong(key, value, what)
    size = _integer(1, BLOCK_BYTES_MAX)
    return tuple(size(f"{key}[{i}]", one) for i, one in enumerate(value))


def _options(key: str, value: Any) -> dict[str, dict[str, Any]]:
    what = "a mapping of stage names to mappings of their options"
    if not isinstance(value, Mapping):
        raise wrong(key, value, what)
    for name, options in value.items():
        if not isinstance(options, Mapping) or not all(isinstance(one, str) for one in (name, *options)):
            raise wrong(key, value, what)
    return {name: dict(options) for name, options in value.items()}


_BLOCK_BYTES = _integer(1, BLOCK_BYTES_MAX)
_MANY = _integer(1, 2**31 - 1)
_UNIQUE_ID = _text(0, UNIQUE_ID_CHARS_MAX, r"[A-Za-z0-9_.-]*", f"up to {UNIQUE_ID_CHARS_MAX} of A-Z a-z 0-9 _ . -")

CHECKS: Final[Mapping[str, Check]] = {
    "block_size": _BLOCK_BYTES,
    "shard_size": _BLOCK_BYTES,
    "tensor_size": _optional(_BLOCK_BYTES),
    "tensor_size_list": _optional(_sizes),
    "dtype": _one_of(DTYPES),
    "namespace": _text(1, NAMESPACE_CHARS_MAX),
    "store_pipeline": _pipeline,
    "storage_backends": _paths,
    "timeout_ms": _number(0, math.inf, "a number of milliseconds, 0 for none"),
    "io_engine": _one_of(ENGINES),
    "io_direct": _one_of((True, False, "auto")),
    "io_depth": _integer(1, 4096),
    "io_threads": _integer(1, 512),
    "queue_number": _integer(1, 64),
    "queue_depth": _integer(1, 65536),
    "slice_bytes": _integer(4096, 2**31 - 1),
    "task_max": _MANY,
    "staging_buffer_gb": _number(2**-14, 4096, "a number of GiB, at least 64 KiB"),
    "unique_id": _UNIQUE_ID,
    "share_buffer_enable": _boolean,
    "cache_buffer_capacity_gb": _number(2**-14, 2**20, "a number of GiB, at least 64 KiB"),
    "cache_policy": _one_of(POLICIES),
    "dump_behind_bytes": _integer(0, 2**50),
    "cache_shared_queue": _boolean,
    "posix_capacity_gb": _number(0, 2**30, "a number of GiB, 0 for no cap"),
    "namespace_quota_gb": _number(0, 2**30, "a number of GiB, 0 for no quota"),
    "space_watermark_gb": _number(0, 2**30, "a number of GiB, 0 for none"),
    "space_high": _number(0.01, 1, "a share from 0.01 to 1"),
    "space_low": _number(0, 1, "a share from 0 to 1"),
    "hot_blocks_max": _integer(1, 2**31 - 1),
    "recover": _one_of(("quiet", "strict")),
    "compress_codec": _text(1, 200),
    "compress_threads": _integer(0, 256),
    "compress_parts": _one_of(("v", "k", "kv")),
    "compress_tokens": _integer(1, 65535),
    "compress_channels": _integer(2, 65534),
    "compress_part_bytes": _integer(0, 2**34),
    "refuse_lossy": _boolean,
    "partial_blocks_max": _MANY,
    "known_blocks_max": _MANY,
    "plugin_dirs": _paths,
    "stage_options": _options,
}
"""Every key of `StoreConfig`, and its check."""
