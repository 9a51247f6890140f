"""Dumps and loads through ``Compress|Posix`` against the slower of what it is made of, each alone.

These are the codec, on as many threads; and the disk, with files as long as the encoded ones: a C program, or where
there is none the Posix stage. What the store takes beyond the slower one was not hidden behind it.

Both need processors. Where there are few, not even a store that costs nothing could reach the slower one: "processors
allow" is what they would do if the codec and the disk's program alone kept them busy all the time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from ...coding import Codings, new_codings
from ...stages.compress.codecs import Context, decode, make_codec, raise_for_failures
from ...stages.compress.workers import default_threads
from ...types import U8
from ..blocks import verify
from ..compress import CompressSetting
from ..limit import LimitProgram
from ..measure import Contestant, Finding, Measured, Sample, Spread, alternate, stopwatch
from ..memory import huge_rows
from ..setting import BenchError, Shape, dump_once, load_once, numbered_ids, prepare_blocks, require_ok, write_files

if TYPE_CHECKING:
    from ...store import Store

__all__ = ["measure"]

_GOAL: Final = 0.85
_SEED: Final = {"dump": 0.11, "load": 0.24}
"""GB/s of the seed system's compressor, which is lossy, as it was measured once on a machine of this kind."""
_HEADER_BYTES: Final = 4096
_PAGE_BYTES: Final = 4096
_PART_BLOCKS: Final = 8


class _Alone(NamedTuple):
    """The codec alone, and what comes out of it."""

    encode: Contestant
    decode: Contestant
    stored_bytes: float
    lossless: bool


async def measure(setting: CompressSetting) -> list[Finding]:
    """Measure every codec with every shape."""
    found: list[Finding] = []
    for shape in setting.shapes:
        memory = await prepare_blocks(numbered_ids(0, shape.blocks), shape.block_bytes)
        for codec in setting.codecs:
            found += await _measure_codec(setting, shape, codec, memory)
    return found


async def _measure_codec(setting: CompressSetting, shape: Shape, codec: str, memory: U8) -> list[Finding]:
    threads = setting.threads or default_threads()
    with ThreadPoolExecutor(threads) as executor:
        alone = await asyncio.to_thread(_codec_alone, codec, memory, executor, threads)
        pages = -(-int(alone.stored_bytes) // _PAGE_BYTES)
        small = Shape(pages * _PAGE_BYTES, shape.blocks)  # what lies in the files, behind a header
        need = 3 * (setting.rounds + 2) * small.total_bytes
        async with (
            setting.folder(f"compress-{codec.partition(':')[0]}", need) as folder,
            setting.open_compressed(folder / "store", shape.block_bytes, codec) as store,
            setting.open_store(folder / "plain", small.block_bytes) as plain,
        ):
            contestants = {"codec encode": alone.encode, "codec decode": alone.decode}
            contestants |= await _stores(setting, shape, store, memory, lossless=alone.lossless)
            contestants |= await _plain(setting, small, plain)
            if setting.reader is not None and setting.creator is not None:
                contestants |= await _programs(setting, small, folder, setting.reader, setting.creator)
            measured = await alternate(contestants, setting.rounds)
    ratio = shape.block_bytes / alone.stored_bytes
    return [_finding(setting, shape, codec, verb, measured, ratio) for verb in ("dump", "load")]


def _finding(
    setting: CompressSetting, shape: Shape, codec: str, verb: str, measured: Measured, ratio: float
) -> Finding:
    coder = {"dump": "codec encode", "load": "codec decode"}[verb]
    disk = f"C program {verb}" if f"C program {verb}" in measured else f"plain {verb}"
    rates = {name: [one.blocks_per_s for one in samples] for name, samples in measured.samples.items()}
    bounds = [min(pair) for pair in zip(rates[coder], rates[disk], strict=True)]
    ratios = [rate / bound for rate, bound in zip(rates[f"store {verb}"], bounds, strict=True)]
    gb = shape.block_bytes / 1e9
    cpus = len(os.sched_getaffinity(0))
    cpu_us = measured.cpu_us(coder).median + measured.cpu_us(disk).median
    detail = {
        "ratio": round(ratio, 3),
        "codec GB/s": round(measured.gb_per_s(coder, shape.block_bytes).median, 3),
        f"{disk} GB/s": round(measured.gb_per_s(disk, shape.block_bytes).median, 3),
        "plain GB/s": round(measured.gb_per_s(f"plain {verb}", shape.block_bytes).median, 3),
        "seed's compressor GB/s": _SEED[verb],
        "cpu us a block": round(measured.cpu_us(f"store {verb}").median),
        "codec cpu us": round(measured.cpu_us(coder).median),
        f"{disk} cpu us": round(measured.cpu_us(disk).median),
        "processors allow GB/s": round(cpus * gb / (cpu_us / 1e6), 3),
    }
    value = measured.gb_per_s(f"store {verb}", shape.block_bytes)
    bound = Spread.of([one * gb for one in bounds])
    what = f"{verb} {shape}, {codec}"
    name = "min(codec, disk)"
    return Finding("overlap", what, value, "GB/s", name, bound, Spread.of(ratios), (">=", _GOAL), detail)


async def _stores(
    setting: CompressSetting, shape: Shape, store: Store, memory: U8, *, lossless: bool
) -> dict[str, Contestant]:
    starts = itertools.count(0, shape.blocks)  # new ids each time: a block that is stored is not written again
    ids = numbered_ids(next(starts), shape.blocks)
    back = await asyncio.to_thread(huge_rows, shape.blocks, shape.block_bytes)
    require_ok("dump", [await store.dump(ids, None, memory)])
    require_ok("load", [await store.load(ids, None, back)])
    if lossless and not (await asyncio.to_thread(verify, back, ids)).all():
        raise BenchError("a lossless codec changed bytes")

    async def dump(_round: int) -> Sample:
        return await dump_once(setting, store, numbered_ids(next(starts), shape.blocks), memory)

    async def load(_round: int) -> Sample:
        return await load_once(setting, store, ids, back)

    return {"store dump": dump, "store load": load}


async def _plain(setting: CompressSetting, small: Shape, plain: Store) -> dict[str, Contestant]:
    starts = itertools.count(0, small.blocks)
    ids = numbered_ids(next(starts), small.blocks)
    memory = await prepare_blocks(ids, small.block_bytes)
    require_ok("dump", [await plain.dump(ids, None, memory)])

    async def dump(_round: int) -> Sample:
        return await dump_once(setting, plain, numbered_ids(next(starts), small.blocks), memory)

    async def load(_round: int) -> Sample:
        return await load_once(setting, plain, ids, memory)

    return {"plain dump": dump, "plain load": load}


async def _programs(
    setting: CompressSetting, small: Shape, folder: Path, reader: LimitProgram, creator: LimitProgram
) -> dict[str, Contestant]:
    file_bytes = small.block_bytes + _HEADER_BYTES
    rows = await asyncio.to_thread(huge_rows, small.blocks, file_bytes)
    await asyncio.to_thread(write_files, folder / "files", rows, direct=setting.direct)

    async def dump(round_number: int) -> Sample:
        target = folder / f"files{round_number}"
        await asyncio.to_thread(target.mkdir)
        return await creator.create(target, file_bytes, small.blocks, threads=setting.create_threads)

    async def load(_round: int) -> Sample:
        return await reader.read(folder / "files", file_bytes, small.blocks, depth=setting.read_depth)

    return {"C program dump": dump, "C program load": load}


def _codec_alone(spec: str, memory: U8, executor: ThreadPoolExecutor, threads: int) -> _Alone:
    """Encode and decode all blocks once, from and to the same memory as the store, and return how to do it again."""
    codec = make_codec(spec)
    blocks, block_bytes = memory.shape
    stored, back = huge_rows(blocks, block_bytes), huge_rows(blocks, block_bytes)
    stored.fill(0)
    back.fill(0)
    contexts = [Context(block_bytes) for _ in range(threads)]
    encoding = _codings(memory, stored)
    codec.encode(encoding, contexts[0])
    raise_for_failures(encoding)
    decoding = _codings(stored, back)
    for field in ("codec", "parameters"):
        decoding[field] = encoding[field]
    decoding["source_length"] = encoding["result"]

    def contestant(codings: Codings, code: Callable[[Codings, Context], None]) -> Contestant:
        parts = [codings[start : start + _PART_BLOCKS] for start in range(0, blocks, _PART_BLOCKS)]
        shares = [parts[i::threads] for i in range(threads)]

        def run_share(share: list[Codings], context: Context) -> None:
            for part in share:
                code(part, context)

        async def run(_round: int) -> Sample:
            loop = asyncio.get_running_loop()
            with stopwatch() as watch:
                jobs = [loop.run_in_executor(executor, run_share, *one) for one in zip(shares, contexts, strict=True)]
                await asyncio.gather(*jobs)
            return Sample(len(kept[0]), watch.wall_s, watch.cpu_s)

        return run

    kept = memory, stored, back  # which the codings point to
    encode, decoder = contestant(encoding, codec.encode), contestant(decoding, decode)
    return _Alone(encode, decoder, float(encoding["result"].mean()), codec.lossless)


def _codings(source: U8, target: U8) -> Codings:
    blocks, block_bytes = source.shape
    at = np.arange(blocks, dtype=np.uint64) * np.uint64(block_bytes)
    codings = new_codings(blocks)
    codings["source"] = at + np.uint64(source.ctypes.data)
    codings["target"] = at + np.uint64(target.ctypes.data)
    codings["source_length"] = codings["target_length"] = block_bytes
    return codings
