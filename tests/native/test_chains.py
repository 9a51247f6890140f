"""Chains, in every context: in order, apart from each other, and to their end."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async.engines.requests import (
    FLAG_CHAIN,
    FLAG_IF_WELL,
    FLAG_LINK,
    IOVEC,
    OP_CHECKSUM,
    OP_CLOSE,
    OP_COPY,
    OP_FALLOCATE,
    OP_FDATASYNC,
    OP_MOVE,
    OP_NOP,
    OP_OPEN,
    OP_READ,
    OP_READV,
    OP_RENAME,
    OP_STAT,
    OP_UNLINK,
    OP_WRITE,
    OP_WRITEV,
    RENAME_NOREPLACE,
    new_requests,
)

from .chains import AT_FDCWD, CLOSE, COPY, PAD, READ, STEPS, Blocks, results_of
from .tools import (
    MAKERS,
    address_of,
    aligned,
    c_path,
    join,
    native,
    noise,
    open_descriptors,
    open_direct,
    reads,
    reap,
    request,
    results,
    run,
)

CANCELED = -errno.ECANCELED


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    return Blocks(tmp_path, 20, 10_000)


@pytest.fixture
def no_descriptor_stays() -> Iterator[None]:
    """Ask for it after the context: made later, checked earlier."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def test_a_block_from_open_to_close(context: Any, blocks: Blocks, no_descriptor_stays: None) -> None:
    for _ in range(3):
        blocks.forget()
        table = blocks.chains()
        run(context, table.reshape(-1), STEPS)
        blocks.check(table)


def test_the_same_around_the_page_cache(context: Any, tmp_path: Path, no_descriptor_stays: None) -> None:
    os.close(open_direct(tmp_path / "probe"))
    blocks = Blocks(tmp_path, 30, 65536, os.O_RDONLY | os.O_DIRECT)
    table = blocks.chains()
    run(context, table.reshape(-1), STEPS)
    blocks.check(table)


def test_a_block_that_is_not_there(context: Any, blocks: Blocks, no_descriptor_stays: None) -> None:
    """Its chain runs to the end without doing anything; the others do not notice."""
    missing = [0, 7, 19]
    there = np.setdiff1d(np.arange(20), missing)
    for i in missing:
        blocks.paths[i].unlink()
    blocks.forget()
    table = blocks.chains()
    run(context, table.reshape(-1), STEPS)
    for i in missing:
        assert results(table[i]) == [-errno.ENOENT, CANCELED, CANCELED, CANCELED, 0, CANCELED]
        assert (blocks.targets[i] == 0xEE).all()
    blocks.check(table, there)


@pytest.mark.parametrize("size", [0, 1, 9_999])
def test_a_short_block_is_not_copied(context: Any, blocks: Blocks, size: int, no_descriptor_stays: None) -> None:
    os.truncate(blocks.paths[3], size)
    blocks.forget()
    table = blocks.chains()
    run(context, table.reshape(-1), STEPS)
    assert results(table[3])[READ:] == [size, CANCELED, CANCELED, 0, 0]
    assert (blocks.targets[3] == 0xEE).all()
    blocks.check(table, np.delete(np.arange(20), 3))


@pytest.mark.parametrize("missing", [0, 1, 4_000])
def test_short_vectors_are_not_copied_either(
    context: Any, tmp_path: Path, missing: int, no_descriptor_stays: None
) -> None:
    body = noise(8_000)
    (tmp_path / "file").write_bytes(body[: 8_000 - missing].tobytes())
    kept, path = c_path(str(tmp_path / "file"))
    slot, target = np.zeros(8_000, np.uint8), np.full(8_000, 0xEE, np.uint8)
    vectors = np.zeros(2, IOVEC)
    vectors["address"] = [address_of(slot), address_of(slot) + 3_000]
    vectors["length"] = [3_000, 5_000]
    chain = join(
        request(OP_OPEN, fd=AT_FDCWD, address=path),
        request(OP_READV | FLAG_LINK, address=address_of(vectors), length=2),
        request(OP_COPY | FLAG_IF_WELL, address=address_of(target), offset=address_of(slot), length=8_000),
        request(OP_CLOSE | FLAG_LINK),
    )
    got = run(context, chain, 4)
    assert got[1] == 8_000 - missing
    assert got[2:] == [CANCELED if missing else native.crc32c(body), 0]
    assert np.array_equal(target, np.full(8_000, 0xEE) if missing else body)
    assert kept


def test_a_closed_gate_stops_transfers_and_copies_only(context: Any, blocks: Blocks, no_descriptor_stays: None) -> None:
    gate = native.Gate()
    gate.close()
    blocks.forget()
    table = blocks.chains(gate.address)
    table["gate"][:10] = gate.address  # everything of the first ten, the copies of the rest
    run(context, table.reshape(-1), STEPS)
    for chain in table[:10]:
        assert results(chain)[READ:] == [CANCELED, CANCELED, CANCELED, 0, 0]
    assert (table["result"][10:, READ] == blocks.size).all()
    assert (table["result"][10:, COPY] == CANCELED).all()
    assert (table["result"][:, CLOSE] == 0).all()
    assert (blocks.targets == 0xEE).all()


def test_padding(context: Any, blocks: Blocks, no_descriptor_stays: None) -> None:
    """Anywhere, and chains of nothing else."""
    chains = blocks.chains()
    table = new_requests(22 * 13).reshape(22, 13)
    where = [1, 2, 4, 7, 9, 11]
    table[1:21, where] = chains
    run(context, table.reshape(-1), 13)
    blocks.check(table[1:21, where])
    table[1:21, where] = new_requests(1)
    assert (table["result"] == 0).all()


def test_a_dump_from_create_to_rename(context: Any, tmp_path: Path, no_descriptor_stays: None) -> None:
    count, steps = 12, 8
    folder = os.open(tmp_path, os.O_RDONLY)
    bodies = noise(count * 5_000).reshape(count, 5_000)
    vectors = np.zeros((count, 2), IOVEC)
    vectors["address"][:, 0] = address_of(bodies) + np.arange(count) * 5_000 + 1_000
    vectors["address"][:, 1] = vectors["address"][:, 0] + 3_000
    vectors["length"] = [3_000, 1_000]
    table = new_requests(count * steps).reshape(count, steps)
    opcodes = [OP_OPEN, OP_FALLOCATE, OP_WRITE, OP_WRITEV, OP_FDATASYNC, OP_CLOSE, OP_RENAME, OP_NOP]
    table["opcode"] = np.array(opcodes) | FLAG_LINK | FLAG_IF_WELL
    table["opcode"][:, [0, 6]] = [OP_OPEN, OP_RENAME | FLAG_IF_WELL]
    table["fd"] = folder
    table["offset"][:, 0] = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    table["length"][:, 0] = 0o600
    table["length"][:, 1] = 5_000
    table["address"][:, 2] = address_of(bodies) + np.arange(count) * 5_000
    table["length"][:, 2] = 1_000
    table["offset"][:, 3] = 1_000
    table["address"][:, 3] = address_of(vectors) + np.arange(count) * 2 * IOVEC.itemsize
    table["length"][:, 3] = 2
    kept = []
    for i in range(count):
        (one, old), (two, new) = c_path(f"temporary{i}"), c_path(f"final{i}")
        kept += [one, two]
        table["address"][i, 0] = table["address"][i, 6] = old
        table["offset"][i, 6] = new
        table["length"][i, 6] = RENAME_NOREPLACE
    run(context, table.reshape(-1), steps)
    os.close(folder)
    assert [chain[1:] for chain in results_of(table)] == [[0, 1_000, 4_000, 0, 0, 0, 0]] * count
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"final{i}" for i in range(count))
    for i in range(count):
        assert (tmp_path / f"final{i}").read_bytes() == bodies[i].tobytes()


def test_a_failed_write_is_not_renamed(context: Any, tmp_path: Path, no_descriptor_stays: None) -> None:
    """What is left over is unlinked in the same chain, whatever happened before."""
    (tmp_path / "temporary").write_bytes(b"old")
    (kept_old, old), (kept_new, new) = c_path(str(tmp_path / "temporary")), c_path(str(tmp_path / "final"))
    body = noise(100)
    chain = join(
        request(OP_OPEN, fd=AT_FDCWD, address=old, offset=os.O_RDONLY),
        request(OP_WRITE | FLAG_LINK, address=address_of(body), length=100),
        request(OP_CLOSE | FLAG_LINK),
        request(OP_RENAME | FLAG_IF_WELL, fd=AT_FDCWD, address=old, offset=new),
        request(OP_UNLINK, fd=AT_FDCWD, address=old),
    )
    assert run(context, chain, 5)[1:] == [-errno.EBADF, 0, CANCELED, 0]
    assert list(tmp_path.iterdir()) == []
    assert kept_old and kept_new


def test_chains_do_not_see_each_other(context: Any, path: Path, file: int) -> None:
    """A link without an open of its own, a checksum without one before it: neither takes that of the chain before."""
    kept, address = c_path(str(path))
    memory = np.zeros(10, np.uint8)
    table = join(
        request(OP_OPEN, fd=AT_FDCWD, address=address),
        request(OP_CHECKSUM, address=address_of(memory), length=10),
        request(OP_READ, fd=-1, length=1),  # fails: what follows in another chain does not care
        request(OP_CHECKSUM | FLAG_CHAIN, address=address_of(memory), length=10),
        request(OP_READ | FLAG_LINK, address=address_of(memory), length=10),
        request(OP_READ | FLAG_IF_WELL, fd=file, address=address_of(memory), length=10),
    )
    got = run(context, table, 3)
    os.close(got[0])
    assert got[1:] == [native.crc32c(bytes(10)), -errno.EBADF, -errno.EINVAL, -errno.EBADF, CANCELED]
    assert (memory == 0).all()
    assert run(context, table[5:].copy(), 3) == [10]
    assert kept


def test_several_opens_in_a_chain(context: Any, blocks: Blocks, no_descriptor_stays: None) -> None:
    table = blocks.chains()
    run(context, table.reshape(-1), 5 * STEPS)
    blocks.check(table)
    blocks.paths[7].unlink()
    blocks.forget()
    table = blocks.chains()
    table["opcode"] &= ~np.uint32(FLAG_IF_WELL)
    table["opcode"][:, COPY] |= FLAG_CHAIN  # of the head
    run(context, table.reshape(-1), 20 * STEPS)
    assert results(table[7])[: READ + 1] == [-errno.ENOENT, CANCELED]
    assert (table["result"][:, PAD] == 0).all()
    others = np.delete(np.arange(20), 7)
    assert (table["result"][others, READ] == blocks.size).all()
    assert np.array_equal(blocks.slots[others], blocks.contents[others])


def test_a_failure_stops_nothing_but_what_asks_for_it(context: Any, file: int, path: Path) -> None:
    kept, address = c_path(str(path))
    memory = np.zeros(100, np.uint8)
    chain = join(
        request(77),
        request(OP_STAT, fd=AT_FDCWD, address=address),
        request(OP_READ, fd=file, address=address_of(memory), length=100),
        request(OP_STAT | FLAG_IF_WELL, fd=AT_FDCWD, address=address),
        request(OP_READ | FLAG_IF_WELL, fd=file, address=address_of(memory), length=100),
        request(OP_NOP | FLAG_IF_WELL),
        request(OP_READ | 0x8000, fd=file, address=address_of(memory), length=100),
    )
    size = path.stat().st_size
    assert run(context, chain, 7) == [-errno.EINVAL, size, 100, CANCELED, CANCELED, CANCELED, -errno.EINVAL]
    assert kept


@pytest.mark.parametrize("kind", MAKERS)
def test_a_thousand_chains_at_depth_one(kind: str, tmp_path: Path) -> None:
    context = MAKERS[kind](1)
    blocks = Blocks(tmp_path, 50, 1_000, times=20)
    before = open_descriptors()
    table = blocks.chains()
    run(context, table.reshape(-1), STEPS)
    blocks.check(table)
    assert open_descriptors() == before
    context.close()


@pytest.mark.parametrize("chunk", [1, 2, 7, 999, 1_000, 1_001, 2**62])
def test_any_length(context: Any, file: int, data: Any, chunk: int) -> None:
    """Also where the last chain is shorter, or there is one only."""
    memory = np.zeros(100_000, np.uint8)
    requests = reads(file, memory, 100, [100 * i for i in range(1_000)])
    assert run(context, requests, chunk) == [100] * 1_000
    assert np.array_equal(memory, data[:100_000])


@pytest.mark.parametrize("wrong", [0, -1, 2**64, "x", None, 1.5])
def test_wrong_lengths(context: Any, wrong: Any) -> None:
    with pytest.raises((ValueError, OverflowError, TypeError)):
        context.submit(new_requests(4), None, wrong)
    assert run(context, new_requests(4), 4) == [0] * 4


def test_batches_of_all_lengths_at_once(context: Any, file: int, data: Any, tmp_path: Path) -> None:
    memory = np.zeros((10, 2_000), np.uint8)
    blocks = Blocks(tmp_path, 20, 10_000, times=10)
    table = blocks.chains()
    for i in range(10):
        plain = reads(file, memory[i], 100, [2_000 * i + 100 * k for k in range(20)])
        context.submit(plain, ("plain", i), 1 + i % 3)
        context.submit(table[20 * i : 20 * i + 20].reshape(-1), ("chains", i), STEPS)
    tokens = reap(context, 20)
    assert sorted(tokens) == [(kind, i) for kind in ("chains", "plain") for i in range(10)]
    assert np.array_equal(memory.reshape(-1), data[:20_000])
    blocks.check(table)


def test_close_finishes_what_was_submitted(context: Any, tmp_path: Path) -> None:
    before = open_descriptors() - 1  # the context's own eventfd goes
    blocks = Blocks(tmp_path, 20, 10_000, times=20)
    table = blocks.chains()
    for i in range(20):
        context.submit(table[20 * i : 20 * i + 20].reshape(-1), i, STEPS)
    assert sorted(context.close()) == list(range(20))
    blocks.check(table)
    assert open_descriptors() <= before


def test_two_contexts_at_once(context: Any, tmp_path: Path) -> None:
    other = MAKERS["uring driver"](4)
    blocks = [Blocks(tmp_path / name, 20, 5_000) for name in ("a", "b") if not (tmp_path / name).mkdir()]
    for _ in range(5):
        tables = [one.chains() for one in blocks]
        context.submit(tables[0].reshape(-1), "a", STEPS)
        other.submit(tables[1].reshape(-1), "b", STEPS)
        assert reap(context) == ["a"]
        assert reap(other) == ["b"]
        for one, table in zip(blocks, tables, strict=True):
            one.check(table)
    other.close()


def random_chains(rng: np.random.Generator, file: int, paths: list[int], memory: Any, gates: list[int]) -> Any:
    """Chains of any opcodes and flags that have no effect but on `memory`, each with a piece of its own."""
    chains, steps, piece = 40, 7, 256
    table = new_requests(chains * steps).reshape(chains, steps)
    codes = [OP_NOP, OP_READ, OP_READ, OP_COPY, OP_MOVE, OP_CHECKSUM, OP_CHECKSUM, OP_STAT, OP_CLOSE | FLAG_LINK, 99]
    flags = [0, 0, FLAG_LINK, FLAG_LINK, FLAG_CHAIN, FLAG_IF_WELL, FLAG_LINK | FLAG_IF_WELL, FLAG_CHAIN | FLAG_IF_WELL]
    table["opcode"] = rng.choice(codes, table.shape) | rng.choice(flags, table.shape)
    table["gate"] = rng.choice(gates, table.shape, p=[0.9, 0.05, 0.05])
    table["fd"] = file
    table["offset"] = rng.integers(0, 300_000, table.shape)  # sometimes across or behind the end
    table["length"] = rng.integers(0, piece, table.shape)
    table["address"] = address_of(memory) + (np.arange(chains) * 2 * piece)[:, None]
    of_files = table["opcode"] & 0xFF == OP_STAT
    table["address"][of_files] = rng.choice(paths, int(of_files.sum()))
    table["fd"][of_files] = AT_FDCWD
    of_copies = np.isin(table["opcode"] & 0xFF, [OP_COPY, OP_MOVE])
    table["offset"][of_copies] = (table["address"] + np.uint64(piece))[of_copies]
    table["opcode"][:, 1] &= ~np.uint32(FLAG_CHAIN)  # it would go on from the number of a descriptor
    table["opcode"][:, 0] = OP_OPEN
    table["address"][:, 0] = rng.choice(paths, chains)
    table["fd"][:, 0] = AT_FDCWD
    table["offset"][:, 0] = os.O_RDONLY
    table["opcode"][:, -1] = OP_CLOSE | FLAG_LINK
    return table


@pytest.mark.parametrize("seed", range(8))
def test_the_same_as_one_after_another(context: Any, path: Path, file: int, seed: int) -> None:
    """Whatever the chains hold, results and memory are those of running each alone in the calling thread."""
    rng = np.random.default_rng(seed)
    kept, paths = zip(*(c_path(str(one)) for one in (path, path, path.parent / "missing")), strict=True)
    open_gate, closed_gate = native.Gate(), native.Gate()
    closed_gate.close()
    memory = aligned(40 * 512)
    memory[:] = before = noise(len(memory), seed)
    table = random_chains(rng, file, list(paths), memory, [0, open_gate.address, closed_gate.address])
    expected = table.copy()
    for chain in expected:
        native.execute(chain)
    memory_expected = memory.copy()
    memory[:] = before
    descriptors = open_descriptors()
    run(context, table.reshape(-1), table.shape[1])
    assert open_descriptors() == descriptors
    assert np.array_equal(table["result"][:, 0] < 0, expected["result"][:, 0] < 0)
    assert results_of(table[:, 1:]) == results_of(expected[:, 1:])
    assert np.array_equal(memory, memory_expected)
    assert kept
