"""Codecs on the user's own bytes: ratio, speed of one thread and of two, error, and what a pool saves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..coding import Codings, new_codings
from ..stages.compress.codecs import Codec, Context, Layout, decode, make_codec, raise_for_failures
from ..types import U8
from .beside import REFERENCES, Crew, Job, reference_jobs
from .measure import Contestant, Measured, Spread, alternate
from .pooling import fresh_job, pooled_job
from .setting import BenchError

__all__ = ["ALL_CODECS", "CodecReport", "load_bytes", "measure_codec"]

_LOSSLESS: Final = ("raw", "auto", "huffman", "packed", "lz4", "zstd")
_LOSSY: Final = ("fp8_e4m3", "int8", "int4")
ALL_CODECS: Final = (*_LOSSLESS, *(spec for name in _LOSSY for spec in (name, f"{name}+huffman")))


@dataclass(frozen=True, slots=True)
class CodecReport:
    """What one codec did, and beside it what this machine allows. Lists are median, smallest and largest of the rounds.

    Attributes
    ----------
    codec, lossless
        Which.
    ratio
        Raw over stored bytes.
    encode, decode, encode_two, decode_two
        GB/s of raw bytes, of one thread and of two.
    two_over_one
        Rate of two threads over that of one, round by round: of ``encode``, of ``decode``, and of each loop of
        `beside.REFERENCES` in the same rounds.
    pooled_us, fresh_us, fresh_over_pooled
        Microseconds of a job, one shard, with leased context and slot, and with its own; and their ratio.
    relative_l2, max_abs
        Error of a lossy codec: L2 norm of the difference over that of the values, and the greatest difference.
    """

    codec: str
    lossless: bool
    ratio: float
    encode: list[float]
    decode: list[float]
    encode_two: list[float]
    decode_two: list[float]
    two_over_one: Mapping[str, list[float]]
    pooled_us: list[float]
    fresh_us: list[float]
    fresh_over_pooled: list[float]
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
    """Shards of some bytes, and where a codec puts them. One thread's; the raw bytes may be another's, too."""

    def __init__(self, codec: Codec, raw: U8, shard_bytes: int) -> None:
        count = len(raw) // shard_bytes
        if count < 1:
            raise BenchError(f"{len(raw)} bytes of data, must be at least one shard of {shard_bytes}")
        self._codec = codec
        self._context = Context(shard_bytes)
        self.raw = raw[: count * shard_bytes]
        self._stored, self.back = np.zeros_like(self.raw), np.zeros_like(self.raw)
        at = np.arange(count, dtype=np.uint64) * np.uint64(shard_bytes)
        self.encoding = _codings(self.raw, self._stored, at, shard_bytes)
        self.encode()
        raise_for_failures(self.encoding)
        self._decoding = _codings(self._stored, self.back, at, shard_bytes)
        for field in ("codec", "parameters"):
            self._decoding[field] = self.encoding[field]
        self._decoding["source_length"] = self.encoding["result"]
        self.decode()
        raise_for_failures(self._decoding)

    def encode(self) -> None:
        self._codec.encode(self.encoding, self._context)

    def decode(self) -> None:
        decode(self._decoding, self._context)


def _codings(source: U8, target: U8, at: npt.NDArray[np.uint64], shard_bytes: int) -> Codings:
    codings = new_codings(len(at))
    codings["source"] = at + np.uint64(source.ctypes.data)
    codings["target"] = at + np.uint64(target.ctypes.data)
    codings["source_length"] = codings["target_length"] = shard_bytes
    return codings


def measure_codec(spec: str, raw: U8, layout: Layout, shard_bytes: int, rounds: int) -> CodecReport:
    """Measure one codec; a lossless one must give back every byte. Not for an event loop: it runs one.

    Raises
    ------
    BenchError
        A lossless codec changed a byte, or there is no whole shard.
    ConfigError, UnknownNameError
        There is no such codec here, or it does not take the layout.
    """
    codec = make_codec(spec, layout)
    works = [_Work(codec, raw, shard_bytes) for _ in range(2)]
    if codec.lossless and not np.array_equal(works[0].raw, works[0].back):
        raise BenchError(f"codec {spec!r}: a lossless codec changed bytes")
    jobs: dict[str, Sequence[Job]] = {
        "encode": [one.encode for one in works],
        "decode": [one.decode for one in works],
        **reference_jobs(),
    }
    with closing(Crew()) as crew, pooled_job(codec, works[0].encoding, shard_bytes) as pooled:
        jobs |= {"pooled": [pooled], "fresh": [fresh_job(codec, works[0].encoding, shard_bytes)]}
        contestants: dict[str, Contestant] = {}
        for name, alike in jobs.items():
            contestants |= crew.contestants(name, alike)
        measured = asyncio.run(alternate(contestants, rounds))
    return _report(spec, codec, works[0], measured, layout)


def _report(spec: str, codec: Codec, work: _Work, measured: Measured, layout: Layout) -> CodecReport:
    relative_l2, max_abs = (None, None) if codec.lossless else _errors(work.raw, work.back, layout)
    compared = ("encode", "decode", *REFERENCES)

    def rate(name: str) -> list[float]:
        return measured.gb_per_s(name, len(work.raw)).as_list()

    def job_us(name: str) -> list[float]:
        return Spread.of([1e6 / one.blocks_per_s for one in measured.samples[name]]).as_list()

    return CodecReport(
        codec=spec,
        lossless=codec.lossless,
        ratio=len(work.raw) / float(work.encoding["result"].sum()),
        encode=rate("encode"),
        decode=rate("decode"),
        encode_two=rate("encode, two"),
        decode_two=rate("decode, two"),
        two_over_one={name: measured.speed_ratio(f"{name}, two", name).as_list() for name in compared},
        pooled_us=job_us("pooled"),
        fresh_us=job_us("fresh"),
        fresh_over_pooled=measured.speed_ratio("pooled", "fresh").as_list(),
        relative_l2=relative_l2,
        max_abs=max_abs,
    )


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
