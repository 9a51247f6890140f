"""Codecs on the user's own bytes: ratio, speed of one core and of two threads, error, and what a pool saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..coding import Codings, new_codings
from ..errors import ConfigError
from ..stages.compress.codecs import Codec, Context, Layout, decode, make_codec, raise_for_failures
from ..types import U8
from .measure import Spread
from .setting import BenchError

__all__ = ["ALL_CODECS", "CodecReport", "load_bytes", "measure_codec", "measure_pool"]

_LOSSLESS: Final = ("raw", "auto", "huffman", "packed", "lz4", "zstd")
_LOSSY: Final = ("fp8_e4m3", "int8", "int4")
ALL_CODECS: Final = (*_LOSSLESS, *(spec for name in _LOSSY for spec in (name, f"{name}+huffman")))
_SAMPLE_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class CodecReport:
    """What one codec did: speeds in GB/s of raw bytes, as median, smallest and largest of the rounds."""

    codec: str
    ratio: float
    encode: list[float]
    decode: list[float]
    encode_two: list[float]
    decode_two: list[float]
    lossless: bool
    relative_l2: float | None
    max_abs: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def load_bytes(path: Path | None) -> U8:
    """Return the bytes of a ``.npy`` file, or of the sample that comes with the package: uint8, one dimension.

    Raises
    ------
    BenchError
        The file is no array of numbers.
    """
    if path is None:
        with resources.as_file(resources.files(__package__) / "data" / "kv_smollm2_bf16.npy") as sample:
            return _flat(np.load(sample))
    try:
        return _flat(np.load(path, allow_pickle=False))
    except ValueError as error:
        raise BenchError(f"{path}: {error}") from error


def _flat(array: npt.NDArray[Any]) -> U8:
    flat: U8 = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat


class _Work:
    """Shards of some bytes, and where a codec puts them."""

    def __init__(self, codec: Codec, raw: U8, shard_bytes: int) -> None:
        count = len(raw) // shard_bytes
        if count < 1:
            raise BenchError(f"{len(raw)} bytes of data, must be at least one shard of {shard_bytes}")
        self.codec = codec
        self.shard_bytes = shard_bytes
        self.raw = raw[: count * shard_bytes]
        self.stored, self.back = np.zeros_like(self.raw), np.zeros_like(self.raw)
        at = np.arange(count, dtype=np.uint64) * np.uint64(shard_bytes)
        self.encoding = self._codings(self.raw, self.stored, at)
        context = Context(shard_bytes)
        codec.encode(self.encoding, context)
        raise_for_failures(self.encoding)
        self.decoding = self._codings(self.stored, self.back, at)
        for field in ("codec", "parameters"):
            self.decoding[field] = self.encoding[field]
        self.decoding["source_length"] = self.encoding["result"]
        decode(self.decoding, context)
        raise_for_failures(self.decoding)

    def _codings(self, source: U8, target: U8, at: npt.NDArray[np.uint64]) -> Codings:
        codings = new_codings(len(at))
        codings["source"] = at + np.uint64(source.ctypes.data)
        codings["target"] = at + np.uint64(target.ctypes.data)
        codings["source_length"] = codings["target_length"] = self.shard_bytes
        return codings


def _seconds(job: Callable[[], object]) -> float:
    """Seconds of one run, from as many as take a moment."""
    runs, started = 0, time.perf_counter()
    while True:
        job()
        runs += 1
        taken = time.perf_counter() - started
        if taken >= _SAMPLE_SECONDS:
            return taken / runs


def measure_codec(spec: str, raw: U8, layout: Layout, shard_bytes: int, rounds: int) -> CodecReport:
    """Measure one codec; a lossless one must give back every byte.

    Raises
    ------
    BenchError
        A lossless codec changed a byte, or there is no whole shard.
    ConfigError, UnknownNameError
        There is no such codec here, or it does not take the layout.
    """
    codec = make_codec(spec, layout)
    work = _Work(codec, raw, shard_bytes)
    if codec.lossless and not np.array_equal(work.raw, work.back):
        raise BenchError(f"codec {spec!r}: a lossless codec changed bytes")
    contexts = [Context(shard_bytes) for _ in range(2)]
    halves = [np.array_split(one, 2) for one in (work.encoding.copy(), work.decoding.copy())]
    rates: list[list[float]] = [[] for _ in range(4)]
    with ThreadPoolExecutor(2) as threads:
        jobs: list[Callable[[], object]] = [
            lambda: codec.encode(work.encoding, contexts[0]),
            lambda: decode(work.decoding, contexts[0]),
            lambda: list(threads.map(codec.encode, halves[0], contexts)),
            lambda: list(threads.map(decode, halves[1], contexts)),
        ]
        for round_number in range(-1, rounds):
            for rate, job in zip(rates, jobs, strict=True):
                seconds = _seconds(job)
                if round_number >= 0:
                    rate.append(len(work.raw) / seconds / 1e9)
    relative_l2, max_abs = (None, None) if codec.lossless else _errors(work.raw, work.back, layout)
    encode, decoded, encode_two, decode_two = (Spread.of(rate).as_list() for rate in rates)
    ratio = len(work.raw) / float(work.encoding["result"].sum())
    return CodecReport(spec, ratio, encode, decoded, encode_two, decode_two, codec.lossless, relative_l2, max_abs)


def _errors(raw: U8, back: U8, layout: Layout) -> tuple[float, float]:
    """Relative L2 and greatest absolute error, over what is finite."""
    one, other = _floats(raw, layout.dtype), _floats(back, layout.dtype)
    finite = np.isfinite(one)
    difference = one[finite] - other[finite]
    norm = float(np.linalg.norm(one[finite]))
    return float(np.linalg.norm(difference)) / (norm or 1.0), float(np.abs(difference).max(initial=0))


def _floats(data: U8, dtype: str) -> npt.NDArray[np.float64]:
    if dtype == "bfloat16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return data.view(dtype).astype(np.float64)


def measure_pool(raw: U8, layout: Layout, shard_bytes: int, rounds: int) -> dict[str, list[float]]:
    """Compare jobs of one shard on a context made before, and on a fresh one each: seconds a job, and their ratio."""
    try:
        codec = make_codec("huffman", layout)
    except ConfigError:
        codec = make_codec("raw", layout)
    work = _Work(codec, raw, shard_bytes)
    kept, one = Context(shard_bytes), work.encoding[:1]
    pooled, fresh = [], []
    for _ in range(rounds):
        pooled.append(_seconds(lambda: codec.encode(one, kept)))
        fresh.append(_seconds(lambda: codec.encode(one, Context(shard_bytes))))
    ratios: Sequence[float] = [a / b for a, b in zip(fresh, pooled, strict=True)]
    spreads = {"pooled_s": pooled, "fresh_s": fresh, "fresh_over_pooled": ratios}
    return {name: Spread.of(values).as_list() for name, values in spreads.items()}
