"""What the tests of the extension share: making contexts and requests, and waiting for tokens."""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ucm_async.engines.requests import OP_READ, Requests, new_requests

native = pytest.importorskip("ucm_async._native", reason="the extension is not built")

WAIT_S = 30.0
"""No test waits this long unless the code hangs."""

U8 = npt.NDArray[np.uint8]


def _make_uring(depth: int = 8, **options: Any) -> Any:
    try:
        return native.UringContext(depth, **options)
    except OSError as error:
        pytest.skip(f"no io_uring here: {error}")


def _make_aio(depth: int = 8, **options: Any) -> Any:
    try:
        return native.AioContext(depth, **options)
    except OSError as error:
        pytest.skip(f"no native AIO here: {error}")


def _make_pool(depth: int = 8, **options: Any) -> Any:
    return native.ThreadPool(min(depth, 4), **options)


def _make_driver(ring: str, depth: int = 8, **options: Any) -> Any:
    try:
        return native.Driver(ring, depth, **options)
    except OSError as error:
        pytest.skip(f"no {ring} here: {error}")


MAKERS: dict[str, Callable[..., Any]] = {
    "pool": _make_pool,
    "aio": _make_aio,
    "uring": _make_uring,
    "aio driver": partial(_make_driver, "aio"),
    "uring driver": partial(_make_driver, "uring"),
}
RINGS = ("aio", "uring")
DRIVERS = ("aio driver", "uring driver")


def readable(context: Any, timeout_s: float) -> bool:
    """Tell whether the context's descriptor becomes readable in time."""
    return bool(select.select([context.fileno()], [], [], timeout_s)[0])


def reap(context: Any, count: int = 1) -> list[Any]:
    """Wait for `count` tokens, as a loop would."""
    tokens: list[Any] = []
    end = time.monotonic() + WAIT_S
    while len(tokens) < count:
        if not readable(context, end - time.monotonic()):
            raise AssertionError(f"{len(tokens)} of {count} tokens after {WAIT_S} s")
        tokens += context.reap()
    return tokens


def run(context: Any, requests: Requests, chunk: int = 1) -> list[int]:
    """Submit, wait, and return the results."""
    token = object()
    context.submit(requests, token, chunk)
    assert reap(context) == [token]
    return results(requests)


def results(requests: Requests) -> list[int]:
    """Results as ints."""
    return [int(one) for one in requests["result"]]


def request(opcode: int, **fields: Any) -> Requests:
    """One request."""
    one = new_requests(1)
    one["opcode"] = opcode
    for name, value in fields.items():
        one[name] = value
    return one


def join(*parts: Requests) -> Requests:
    """Several requests, one after another."""
    return np.concatenate(parts)


def address_of(array: npt.NDArray[Any]) -> int:
    """Where an array lies."""
    return int(array.ctypes.data)


def c_path(path: str) -> tuple[Any, int]:
    """A NUL-terminated path and its address; keep the first as long as the second is used."""
    buffer = ctypes.create_string_buffer(os.fsencode(path))
    return buffer, ctypes.addressof(buffer)


def reads(fd: int, memory: U8, length: int, offsets: list[int]) -> Requests:
    """A read of `length` bytes at each of `offsets`, into consecutive pieces of `memory`."""
    requests = new_requests(len(offsets))
    requests["opcode"] = OP_READ
    requests["fd"] = fd
    requests["offset"] = offsets
    requests["length"] = length
    requests["address"] = address_of(memory) + np.arange(len(offsets), dtype=np.uint64) * length
    return requests


def aligned(length: int) -> U8:
    """Zeroed memory that O_DIRECT accepts."""
    raw = np.zeros(length + 4096, np.uint8)
    start = -address_of(raw) % 4096
    return raw[start : start + length]


def noise(length: int, seed: int = 1) -> U8:
    """Bytes that look random and are the same each time."""
    return np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)


def open_direct(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open with O_DIRECT, or skip where the file system has none."""
    try:
        return os.open(path, flags | os.O_DIRECT | os.O_CREAT, 0o600)
    except OSError as error:
        pytest.skip(f"no O_DIRECT here: {error}")


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))
