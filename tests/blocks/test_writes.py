"""The commit by count: a block is whole exactly when all of its shards are in its file, whatever went wrong before."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from ucm_async.blocks.writes import BlockWrite, BlockWrites

SHARDS = 4
FULL = (1 << SHARDS) - 1
BLOCKS = [b"a" * 16, b"b" * 16]


@dataclass
class Claim:
    """Shards that somebody is writing."""

    block_id: bytes
    wanted: int
    write: BlockWrite
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
        write = self.writes.claim(block_id, wanted)
        if write is None:
            assert file.claims, "a claim is refused only while somebody writes"
            return multiple()
        assert under_way & wanted == 0, "two writers of one shard"
        completes = self.writes.completes(write, wanted)
        assert completes == (file.shards | wanted == FULL)
        assert not completes or not file.claims, "whoever completes a block is alone"
        assert not any(one.completes for one in file.claims)
        claim = Claim(block_id, wanted, write, completes)
        file.claims.append(claim)
        return claim

    @rule(claim=consumes(claims))
    def succeed(self, claim: Claim) -> None:
        file = self.files[claim.block_id]
        file.shards |= claim.wanted
        file.claims.remove(claim)
        if claim.completes:
            assert file.shards == FULL, "a block is committed with a hole"
            self.writes.committed(claim.write)
            self.files[claim.block_id] = File()
        else:
            self.writes.shards_in(claim.write, claim.wanted)

    @rule(claim=consumes(claims), how=st.sampled_from(["nothing written", "half written", "file lost"]))
    def fail(self, claim: Claim, how: str) -> None:
        if how == "file lost" and not claim.completes:
            how = "half written"  # only a failed commit loses the file
        written = {"nothing written": 0, "half written": claim.wanted, "file lost": FULL}[how]
        file = self.files[claim.block_id]
        file.claims.remove(claim)
        file.shards &= ~written
        if self.writes.failed(claim.write, claim.wanted, written):
            assert not file.claims, "the file is removed under somebody who writes to it"
            assert not file.shards, "shards that were in are thrown away"
            assert all(self.writes.claim(claim.block_id, bits) is None for bits in range(1, FULL + 1))
            self.writes.cleared(claim.write)
        else:
            assert file.claims or file.shards, "its file is forgotten and stays"

    @rule(block_id=st.sampled_from(BLOCKS))
    def forget(self, block_id: bytes) -> None:
        """A delete, or too many incomplete blocks."""
        file = self.files[block_id]
        write = self.writes.close_idle(block_id)
        if write is None:
            assert file.claims or not file.shards
            return
        assert not file.claims
        assert self.writes.claim(block_id, FULL) is None
        self.writes.cleared(write)
        self.files[block_id] = File()

    @invariant()
    def incomplete_blocks_are_counted(self) -> None:
        assert len(self.writes) == sum(bool(file.claims or file.shards) for file in self.files.values())

    @invariant()
    def surplus_is_what_nobody_writes(self) -> None:
        for write in self.writes.surplus():
            assert not self.files[write.block_id].claims
        assert len(self.writes.surplus()) <= max(0, len(self.writes) - 1)


TestCommitByCount = CommitByCount.TestCase
TestCommitByCount.settings = settings(max_examples=150, stateful_step_count=30)


def bits_of(*shards: int) -> int:
    return sum(1 << shard for shard in shards)


def test_bit_sets() -> None:
    writes = BlockWrites(SHARDS, 10)
    assert writes.bits([-1]) == FULL
    assert writes.bits([2, 0]) == bits_of(0, 2)
    assert BlockWrites(200, 10).bits([199]) == 1 << 199


def test_the_oldest_incomplete_blocks_are_surplus() -> None:
    writes = BlockWrites(SHARDS, partial_max=2)
    names = [bytes([i]) * 16 for i in range(5)]
    for name in names:
        write = writes.claim(name, 1)
        assert write is not None
        writes.shards_in(write, 1)
    writes.claim(names[1], 2)
    assert [write.block_id for write in writes.surplus()] == [names[0], names[2]], "what is under way does not count"


@pytest.mark.parametrize("end", ["shards_in", "failed", "committed"])
async def test_whoever_waits_is_woken(end: str) -> None:
    writes = BlockWrites(SHARDS, 10)
    write = writes.claim(BLOCKS[0], FULL)
    assert write is not None
    assert writes.changed(BLOCKS[1]) is None
    first, second = writes.changed(BLOCKS[0]), writes.changed(BLOCKS[0])
    assert first is not None
    assert second is not None
    first.cancel()
    if end == "shards_in":
        writes.shards_in(write, FULL)
    elif end == "failed":
        assert writes.failed(write, FULL, FULL)
        writes.cleared(write)
    else:
        writes.committed(write)
    await asyncio.wait_for(second, 10)
    assert writes.changed(BLOCKS[0]) is None
