"""A thousand flipped bits, each in another block at a random place: every one is found, and none is returned."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status
from ucm_async.blocks.header import used_bytes
from ucm_async.cli import main
from ucm_async.types import U8, Bools

from .support import BLOCK, FILE, block_files, content, disk_usage, keys, space_of

FLIPS = 1000
SAYS_SOMETHING = used_bytes(4)
"""From here to the data the header is padding: zeros, which a load does not read and fsck does."""


def flip(path: Path, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def test_flipped_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = ucm.block_ids(range(FLIPS))
    data = content(ids)
    asyncio.run(fill(tmp_path, ids, data))
    generator = np.random.default_rng(8)
    bits = generator.integers(0, 8 * FILE, FLIPS)
    bits[::10] = generator.integers(0, 8 * SAYS_SOMETHING, FLIPS // 10)  # the header is small, and is hit as well
    where = {path.name: path for path in block_files(tmp_path)}
    for one, bit in zip(ids, bits.tolist(), strict=True):
        flip(where[one.tobytes().hex()], bit)
    assert main(["fsck", "--json", str(tmp_path)]) == 1
    (told,) = json.loads(capsys.readouterr().out)["namespaces"]
    assert {one["block_id"] for one in told["findings"]} == where.keys()
    in_padding = (bits // 8 >= SAYS_SOMETHING) & (bits // 8 < FILE - BLOCK)
    asyncio.run(see_none_returned(tmp_path, ids, data, in_padding))


async def fill(directory: Path, ids: U8, data: U8) -> None:
    async with ucm.open_store("Posix", **keys(directory)) as store:
        for at in range(0, FLIPS, 100):
            assert (await store.dump(ids[at : at + 100], None, data[at : at + 100])).ok.all()


async def see_none_returned(directory: Path, ids: U8, data: U8, in_padding: Bools) -> None:
    async with ucm.open_store("Posix", **keys(directory)) as store:
        out = np.zeros_like(data)
        result = await store.load(ids, None, out)
        assert set(result.status[~in_padding].tolist()) == {Status.CORRUPT}
        assert set(result.status[in_padding].tolist()) == {Status.OK}
        assert (out[in_padding] == data[in_padding]).all()
        again = await store.load(ids, None, out)
        assert set(again.status[~in_padding].tolist()) == {Status.MISS}
        assert space_of(store)["used_bytes"] == disk_usage(directory) == FLIPS * FILE
