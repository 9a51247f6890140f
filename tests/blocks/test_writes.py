"""The commit by count: a block is whole exactly when all of its shards are in its file, whatever went wrong before."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from ucm_async.blocks.writes import BlockWrites
from ucm_async.coding import EncodedRows
from ucm_async.types import I64, U8, Bools

SHARDS = 4
FULL = (1 << SHARDS) - 1
BLOCKS = [b"a" * 16, b"b" * 15 + b"\0"]


def ids_of(*names: bytes) -> U8:
    return np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, 16)


def shards_of(*bits: int, shards: int = SHARDS) -> Bools:
    """One row for each bit set."""
    return np.array([[one >> shard & 1 for shard in range(shards)] for one in bits], dtype=np.bool_)


def claim_one(writes: BlockWrites, name: bytes, bits: int) -> I64 | None:
    entries = writes.claim(ids_of(name), shards_of(bits))
    return None if entries[0] < 0 else entries


@dataclass
class Claim:
    """Shards that somebody is writing."""

    block_id: bytes
    wanted: int
    entries: I64
    completes: bool


@dataclass
class File:
    """What really lies in the writer's file of a block."""

    shards: int = 0
    claims: list[Claim] = field(default_factory=list)
    closed: bool = False


class CommitByCount(RuleBasedStateMachine):
    """Writers that come, succeed and fail in any order, against a model of the file."""

    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.writes = BlockWrites(SHARDS, partial_max=1)
        self.files = {block_id: File() for block_id in BLOCKS}

    @rule(target=claims, block_id=st.sampled_from(BLOCKS), wanted=st.integers(1, FULL))
    def claim(self, block_id: bytes, wanted: int):  # type: ignore[no-untyped-def]
        file = self.files[block_id]
        under_way = sum(claim.wanted for claim in file.claims)
        entries = claim_one(self.writes, block_id, wanted)
        if entries is None:
            assert file.claims, "a claim is refused only while somebody writes"
            return multiple()
        assert under_way & wanted == 0, "two writers of one shard"
        completes = bool(self.writes.completes(entries, shards_of(wanted))[0])
        assert completes == (file.shards | wanted == FULL)
        assert not completes or not file.claims, "whoever completes a block is alone"
        assert not any(one.completes for one in file.claims)
        claim = Claim(block_id, wanted, entries, completes)
        file.claims.append(claim)
        return claim

    @rule(claim=consumes(claims))
    def succeed(self, claim: Claim) -> None:
        file = self.files[claim.block_id]
        file.shards |= claim.wanted
        file.claims.remove(claim)
        if claim.completes:
            assert file.shards == FULL, "a block is committed with a hole"
            self.writes.committed(claim.entries)
            self.files[claim.block_id] = File()
        else:
            self.writes.shards_in(claim.entries, shards_of(claim.wanted))

    @rule(claim=consumes(claims), how=st.sampled_from(["nothing written", "half written", "file lost"]))
    def fail(self, claim: Claim, how: str) -> None:
        if how == "file lost" and not claim.completes:
            how = "half written"  # only a failed commit loses the file
        written = {"nothing written": 0, "half written": claim.wanted, "file lost": FULL}[how]
        file = self.files[claim.block_id]
        file.claims.remove(claim)
        file.shards &= ~written
        if self.writes.failed(claim.entries, shards_of(claim.wanted), shards_of(written))[0]:
            assert not file.claims, "the file is removed under somebody who writes to it"
            assert not file.shards, "shards that were in are thrown away"
            assert all(claim_one(self.writes, claim.block_id, bits) is None for bits in range(1, FULL + 1))
            self.writes.cleared(claim.entries)
        else:
            assert file.claims or file.shards, "its file is forgotten and stays"

    @rule(block_id=st.sampled_from(BLOCKS))
    def forget(self, block_id: bytes) -> None:
        """A delete, or too many incomplete blocks."""
        file = self.files[block_id]
        entries = self.writes.close_idle(ids_of(block_id, block_id))
        if not len(entries):
            assert file.claims or not file.shards
            return
        assert not file.claims
        assert claim_one(self.writes, block_id, FULL) is None
        assert self.writes.ids(entries).tobytes() == block_id
        self.writes.cleared(entries)
        self.files[block_id] = File()

    @invariant()
    def incomplete_blocks_are_counted(self) -> None:
        assert len(self.writes) == sum(bool(file.claims or file.shards) for file in self.files.values())

    @invariant()
    def surplus_is_what_nobody_writes(self) -> None:
        for block_id in self.writes.surplus():
            assert not self.files[block_id.tobytes()].claims
        assert len(self.writes.surplus()) <= max(0, len(self.writes) - 1)


TestCommitByCount = CommitByCount.TestCase
TestCommitByCount.settings = settings(max_examples=150, stateful_step_count=30)


def test_many_blocks_are_claimed_at_once() -> None:
    writes = BlockWrites(SHARDS, 10)
    names = [bytes([i]) * 16 for i in range(200)]  # more than the columns have room for at first
    half = writes.claim(ids_of(*names[:100]), shards_of(*[0b0011] * 100))
    writes.checksums[half] = np.arange(100)[:, None]
    writes.slot[half] = np.arange(100)
    entries = writes.claim(ids_of(*names), shards_of(*[0b0110] * 50, *[0b1000] * 50, *[FULL] * 100))
    assert (entries < 0).tolist() == [True] * 50 + [False] * 150, "who asks for a shard that is on its way waits"
    assert (entries[50:100] == half[50:]).all(), "a block keeps its entry"
    assert len(set(entries[50:].tolist()) | set(half.tolist())) == 200
    assert (
        writes.completes(entries[50:], shards_of(*[0b1000] * 50, *[FULL] * 100)).tolist() == [False] * 50 + [True] * 100
    )
    assert (writes.checksums[half] == np.arange(100)[:, None]).all(), "columns that grow keep what is in them"
    assert (writes.slot[half] == np.arange(100)).all()
    writes.committed(entries[100:])
    assert len(writes) == 100
    again = writes.claim(ids_of(*names[100:]), shards_of(*[1] * 100))
    assert not writes.checksums[again].any()
    assert (writes.slot[again] == -1).all(), "an entry that is used again is as new"


def test_what_is_known_of_encoded_shards_goes_with_the_block() -> None:
    writes = BlockWrites(SHARDS, 10)
    entries = claim_one(writes, BLOCKS[0], FULL)
    assert entries is not None
    writes.encoded[int(entries[0])] = EncodedRows.zeros(1, SHARDS)
    writes.committed(entries)
    assert not writes.encoded


def test_the_oldest_incomplete_blocks_are_surplus() -> None:
    writes = BlockWrites(SHARDS, partial_max=2)
    names = [bytes([i]) * 16 for i in range(5)]
    for name in names:
        entries = claim_one(writes, name, 1)
        assert entries is not None
        writes.shards_in(entries, shards_of(1))
    claim_one(writes, names[1], 2)
    assert [one.tobytes() for one in writes.surplus()] == [names[0], names[2]], "what is under way does not count"


@pytest.mark.parametrize("end", ["shards_in", "failed", "committed"])
async def test_whoever_waits_is_woken(end: str) -> None:
    writes = BlockWrites(SHARDS, 10)
    entries = claim_one(writes, BLOCKS[0], FULL)
    assert entries is not None
    assert writes.changed(BLOCKS[1]) is None
    first, second = writes.changed(BLOCKS[0]), writes.changed(BLOCKS[0])
    assert first is not None
    assert second is not None
    first.cancel()
    if end == "shards_in":
        writes.shards_in(entries, shards_of(FULL))
    elif end == "failed":
        assert writes.failed(entries, shards_of(FULL), shards_of(FULL))[0]
        writes.cleared(entries)
    else:
        writes.committed(entries)
    await asyncio.wait_for(second, 10)
    assert writes.changed(BLOCKS[0]) is None


def test_a_block_that_is_named_twice_is_claimed_once() -> None:
    writes = BlockWrites(SHARDS, 8)
    one, other = BLOCKS
    entries = writes.claim(ids_of(one, other, one, one), shards_of(FULL, FULL, FULL, 1))
    assert (entries >= 0).tolist() == [True, True, False, False]
    assert len(writes) == 2
    assert writes.claim(ids_of(other, one, other), shards_of(1, 2, 4)).tolist() == [-1] * 3
    writes.committed(entries[:2])
    assert len(writes) == 0
