"""What lies on the disk is not what was written, or was written by an enemy who knows how to make checksums."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async import Status
from ucm_async import coding as c
from ucm_async.blocks.verify import verify_block
from ucm_async.errors import ConfigError, CorruptError, UnknownCodecError
from ucm_async.native import NATIVE
from ucm_async.stages.compress.codecs import registry
from ucm_async.store import Store

from .stores import (
    PAGE,
    SHARD,
    SHARDS,
    StoredFile,
    file_of,
    is_stored,
    load_all,
    open_compressed,
    quarantined,
    real_blocks,
)
from .tools import U8

pytestmark = pytest.mark.skipif(not NATIVE, reason="needs the extension")

FLIPS = int(os.environ.get("UCM_ASYNC_COMPRESS_FLIPS", "60"))
"""Bits that are flipped for each codec; 1000 for the long form."""

KILLS = int(os.environ.get("UCM_ASYNC_KILL_ROUNDS", "6"))
WRITER = """
import asyncio, sys
from pathlib import Path
from tests.compress.stores import open_compressed, real_blocks

async def main():
    async with open_compressed(Path(sys.argv[1]), sys.argv[2]) as store:
        for seed in range(int(sys.argv[3]), int(sys.argv[3]) + 1000):
            ids, data = real_blocks(8, seed)
            assert (await store.dump(ids, None, data)).ok.all()
            print(seed, flush=True)

asyncio.run(main())
"""


async def put(store: Store, ids: U8, data: U8) -> None:
    assert (await store.dump(ids, None, data)).ok.all()


async def expect_corrupt(store: Store, ids: U8, data: U8, row: int, reason: str = "") -> Any:
    """Load: `row` is CORRUPT and says why, the others are right. Returns the error."""
    result, back = await load_all(store, ids)
    assert [one for one, status in enumerate(result.status.tolist()) if status != Status.OK] == [row], result.failures
    assert result.status[row] == Status.CORRUPT
    assert isinstance(result.failures[row], CorruptError)
    assert reason in result.failures[row].reason
    good = np.arange(len(ids)) != row
    assert (back[good] == data[good]).all()
    return result.failures[row]


@pytest.mark.timeout(60 + FLIPS // 5)
@pytest.mark.parametrize("codec", ["huffman", "packed", "zstd", "int4+huffman"])
async def test_every_flipped_bit_is_found(tmp_path: Path, codec: str) -> None:
    """Anywhere in the header or in a shard: never returned, found once, set aside, a miss from then on."""
    ids, data = real_blocks(1)
    generator = np.random.default_rng(2)
    async with open_compressed(tmp_path, codec) as store:
        for number in range(FLIPS):
            await put(store, ids, data)
            stored = StoredFile(file_of(tmp_path, ids[0]))
            of_header = number % 4 == 0
            at = int(generator.integers(0, 80 + 24 * SHARDS) if of_header else generator.integers(PAGE, stored.end))
            stored.bytes[at] ^= 1 << int(generator.integers(8))
            stored.path.write_bytes(stored.bytes.tobytes())
            await expect_corrupt(store, ids, data, 0)
            assert quarantined(tmp_path) == [ids[0].tobytes().hex()]
            assert not (await store.lookup(ids)).any()
            result, _ = await load_all(store, ids)
            assert result.status.tolist() == [Status.MISS]


async def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    """At the end of a page, where its length does not give it away."""
    ids, data = real_blocks(3)
    async with open_compressed(tmp_path) as store:
        for pages in (0, 1, 2, 5):
            await put(store, ids, data)
            os.truncate(file_of(tmp_path, ids[1]), pages * PAGE)
            await expect_corrupt(store, ids, data, 1, "truncated")
            assert (await store.lookup(ids)).tolist() == [True, False, True]


def payload_of_ones(stored: StoredFile) -> None:
    stored.shard(2)[:] = 0xFF


def payload_of_noise(stored: StoredFile) -> None:
    stored.shard(2)[:] = np.random.default_rng(0).integers(0, 256, len(stored.shard(2)))


def nothing_stored(stored: StoredFile) -> None:
    stored.entries["stored_length"][2] = 0


def one_byte_less(stored: StoredFile) -> None:
    stored.entries["stored_length"][2] -= 1


def longer_than_raw(stored: StoredFile) -> None:
    stored.entries["stored_length"][2] = SHARD + 1


def beyond_everything(stored: StoredFile) -> None:
    stored.entries["offset"][2] = 2**64 - 8


def inside_the_header(stored: StoredFile) -> None:
    stored.entries["offset"][2] = 8


def raw_and_short(stored: StoredFile) -> None:
    stored.entries["codec"][2] = c.RAW


def a_gigabyte(stored: StoredFile) -> None:
    stored.entries["raw_length"][2] = 1 << 30


def wrong_element_type(stored: StoredFile) -> None:
    stored.head["codec_parameters"][0] = 0xFF


def flags_of_the_future(stored: StoredFile) -> None:
    stored.head["flags"] = 0x80


HOSTILE = (
    payload_of_ones, payload_of_noise, nothing_stored, one_byte_less, longer_than_raw, beyond_everything,
    inside_the_header, raw_and_short, a_gigabyte, wrong_element_type, flags_of_the_future,
)  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE)
@pytest.mark.parametrize("codec", ["huffman", "zstd"])
async def test_an_enemy_with_right_checksums(tmp_path: Path, codec: str, change: Callable[[StoredFile], None]) -> None:
    """CORRUPT, set aside, and nothing else harmed."""
    ids, data = real_blocks(3)
    async with open_compressed(tmp_path, codec) as store:
        await put(store, ids, data)
        stored = StoredFile(file_of(tmp_path, ids[1]))
        change(stored)
        sums = change not in (longer_than_raw, beyond_everything, inside_the_header, a_gigabyte)
        stored.put(sums=sums)
        await expect_corrupt(store, ids, data, 1)
        assert quarantined(tmp_path) == [ids[1].tobytes().hex()]
        await put(store, ids, data)
        result, back = await load_all(store, ids)
        assert result.ok.all()
        assert (back == data).all()


async def test_a_codec_of_another_version(tmp_path: Path) -> None:
    """CORRUPT with its number; the block is fine, and stays for who knows it."""
    ids, data = real_blocks(2)
    async with open_compressed(tmp_path) as store:
        await put(store, ids, data)
        stored = StoredFile(file_of(tmp_path, ids[0]))
        stored.head["codec"] = 9999
        stored.entries["codec"][1] = 9999
        stored.put()
        failure = await expect_corrupt(store, ids, data, 0, "codec '9999'")
        assert isinstance(failure, UnknownCodecError)
        assert is_stored(tmp_path, ids[0])
        assert quarantined(tmp_path) == []


async def test_a_codec_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error when it is set; and for its blocks CORRUPT with its name and what to install."""
    ids, data = real_blocks(2)
    async with open_compressed(tmp_path, "zstd") as store:
        await put(store, ids[:1], data[:1])
    entry = registry._entries["zstd"]
    monkeypatch.setitem(registry._entries, "zstd", registry._Entry(entry.number, "no_such_package:Codec", "zstandard"))
    with pytest.raises(ConfigError, match=r"codec 'zstd' is not installed: .*pip install zstandard"):
        await open_compressed(tmp_path, "zstd")
    async with open_compressed(tmp_path) as store:
        await put(store, ids[1:], data[1:])
        await expect_corrupt(store, ids, data, 0, "pip install zstandard")
    assert is_stored(tmp_path, ids[0])


# ---- what ends early


async def test_a_deadline_keeps_to_itself(tmp_path: Path) -> None:
    """Whenever it comes, what is in is right, nothing changes afterwards, and no slot or context is lost."""
    ids, data = real_blocks(24)
    async with open_compressed(tmp_path, "huffman") as store:
        await put(store, ids, data)
        seen = set()
        for i in range(40):
            back = np.full_like(data, 0xEE)
            result = await store.load(ids, None, back, timeout=i * 0.0002)
            frozen = back.copy()
            assert set(result.status.tolist()) <= {Status.OK, Status.TIMEOUT}
            assert (frozen[result.ok] == data[result.ok]).all()
            seen |= set(result.status.tolist())
            await asyncio.sleep(0.002)
            assert (back == frozen).all()
        assert seen == {Status.OK, Status.TIMEOUT}
        await quiet(store)


async def test_dumps_that_are_cancelled(tmp_path: Path) -> None:
    """What is stored in the end is whole, and what was given up leaves nothing behind."""
    async with open_compressed(tmp_path, "huffman") as store:
        for turns in range(12):
            ids, data = real_blocks(8, turns)
            source = data.copy()
            task = store.dump(ids, None, source)
            for _ in range(turns * 3):
                await asyncio.sleep(0)
            task.cancel()
            source[:] = 0  # ours again
            await task
            await asyncio.sleep(0.003)
            found = await store.lookup(ids)
            result, back = await load_all(store, ids)
            assert result.ok[found].all()  # what was on its way to the disk may still come
            assert (back[found] == data[found]).all()
        await quiet(store)


async def quiet(store: Store) -> None:
    """Wait until nothing is under way, and see that nothing is held."""
    for _ in range(200):
        about = store.statistics().pipeline["Compress"]["stage"]
        held = [about[lane][what]["leased"] for lane in ("load", "dump") for what in ("slots", "contexts")]
        if not any(held):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"slots and contexts that are still leased: {held}")


async def test_several_stores_at_a_time(tmp_path: Path) -> None:
    """With different codecs, writing and reading the same blocks."""
    ids, data = real_blocks(16)
    async with open_compressed(tmp_path, "huffman") as one, open_compressed(tmp_path, "lz4") as other:
        for _ in range(3):
            tasks = [store.dump(ids, None, data) for store in (one, other, one)]
            for task in tasks:
                assert (await task).ok.all()
            for store in (one, other):
                result, back = await load_all(store, ids)
                assert result.ok.all()
                assert (back == data).all()
            await one.delete(np.ascontiguousarray(ids[::2]))


@pytest.mark.timeout(60 + 4 * KILLS)
def test_kill_9_of_a_writer(tmp_path: Path) -> None:
    """What it said was stored is there, what is there is right, and the next store removes the rest."""
    root = Path(__file__).parents[2]
    generator = np.random.default_rng(9)
    for round_ in range(KILLS):
        first = round_ * 1000
        words = [sys.executable, "-c", WRITER, str(tmp_path), ("huffman", "zstd")[round_ % 2], str(first)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=root) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline()
            time.sleep(float(generator.uniform(0.0, 0.06)))
            writer.send_signal(signal.SIGKILL)
            said = [int(line) for line in writer.stdout.read().splitlines() if line]
        asyncio.run(survey(tmp_path, first, max([first, *said])))
    assert not [path for path in tmp_path.glob("*/writers/*/*/*") if path.is_file()]


async def survey(directory: Path, first: int, last: int) -> None:
    async with open_compressed(directory, "auto") as store:
        for seed in range(first, last + 2):
            ids, data = real_blocks(8, seed)
            result, back = await load_all(store, ids)
            assert set(result.status.tolist()) <= ({Status.OK} if seed <= last else {Status.OK, Status.MISS})
            assert (back[result.ok] == data[result.ok]).all()


async def test_the_tools_can_check_encoded_blocks(tmp_path: Path) -> None:
    """By what the header says, whatever the codec: whole files are fine, and a flipped bit is named."""
    ids, data = real_blocks(2)
    async with open_compressed(tmp_path, "zstd") as store:
        await put(store, ids, data)
        fingerprint = store.config.namespace_fingerprint()
    stored = StoredFile(file_of(tmp_path, ids[0]))
    assert verify_block(stored.bytes, ids[0].tobytes(), fingerprint) == ""
    stored.shard(1)[7] ^= 1
    assert "checksum of shard 1" in verify_block(stored.bytes, ids[0].tobytes(), fingerprint)
