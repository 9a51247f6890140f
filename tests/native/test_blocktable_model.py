"""BlockTable against a dict: three processes over one memory, which may die at any step."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .tables import (
    DIRTY,
    FAILED,
    FILLING,
    GONE,
    HIT,
    MINE,
    READY,
    THEIRS,
    Claim,
    Table,
    check,
    names,
    new_memory,
)

SLOTS = 2000  # more than are ever taken, so nothing is evicted and no failure is forgotten
PROCESSES = 3

ids = st.sampled_from(names(range(12)))
some_ids = st.lists(ids, max_size=6)
processes = st.integers(0, PROCESSES - 1)


@dataclass(eq=False)
class Block:
    """What the model knows of one filling of a slot, and of what came of it."""

    slot: int
    state: str = "filling"
    dirty: bool = False
    debtor: int = -1
    reason: int = 0
    leases: dict[int, int] = field(default_factory=dict)  # by process

    @property
    def visible(self) -> bool:
        return self.state in ("filling", "ready")

    def seen(self) -> int:
        """What watch() says."""
        if self.state == "ready":
            return DIRTY if self.dirty else READY
        return {"filling": FILLING, "failed": FAILED + self.reason}.get(self.state, GONE)


class Model(RuleBasedStateMachine):
    """Which block is behind each id, who holds what, and what watchers should see."""

    policy = "s3fifo"

    def __init__(self) -> None:
        super().__init__()
        self.memory = new_memory(SLOTS)
        self.blocks: dict[bytes, Block] = {}
        self.all: list[Block] = []
        self.watched: list[tuple[Claim, Block]] = []
        self.starts = 0

    @initialize()
    def start(self) -> None:
        self.tables = [self.new_process(create=i == 0) for i in range(PROCESSES)]

    def new_process(self, create: bool = False) -> Table:
        self.starts += 1
        return Table(self.memory, SLOTS, self.policy, create=create, process=self.starts)

    # ---- what changes ----

    @rule(p=processes, wanted=some_ids)
    def claim(self, p: int, wanted: list[bytes]) -> None:
        for one, claim in zip(wanted, self.tables[p].claim(wanted), strict=True):
            block = self.blocks.get(one)
            if block is None or not block.visible:
                assert claim.state == MINE
                block = self.blocks[one] = Block(claim.slot)
                self.all.append(block)
            else:
                assert claim.state == (HIT if block.state == "ready" else THEIRS)
            assert claim.slot == block.slot
            if claim.state != THEIRS:
                block.leases[p] = block.leases.get(p, 0) + 1
            self.watched.append((claim, block))

    @rule(p=processes, wanted=some_ids)
    def lease(self, p: int, wanted: list[bytes]) -> None:
        for one, slot in zip(wanted, self.tables[p].lease(wanted), strict=True):
            block = self.blocks.get(one)
            ready = block is not None and block.state == "ready"
            assert slot == (block.slot if block and ready else -1)
            if block and ready:
                block.leases[p] = block.leases.get(p, 0) + 1

    def filled_by(self, p: int) -> list[Block]:
        """What it fills, or filled until it was dropped."""
        return [block for block in self.all if block.leases.get(p) and block.state in ("filling", "doomed")]

    @rule(p=processes, data=st.data(), dirty=st.booleans(), keep=st.booleans())
    def publish(self, p: int, data: st.DataObject, dirty: bool, keep: bool) -> None:
        done = [block for block in self.filled_by(p) if data.draw(st.booleans())]
        self.tables[p].publish([block.slot for block in done], dirty, keep)
        for block in done:
            if block.state == "filling":
                block.state, block.dirty, block.debtor = "ready", dirty, p
            else:
                block.state = "orphan"
            if not keep:
                self.give_back(p, block)

    @rule(p=processes, data=st.data(), reason=st.integers(0, 127))
    def fail(self, p: int, data: st.DataObject, reason: int) -> None:
        failed = [block for block in self.filled_by(p) if data.draw(st.booleans())]
        self.tables[p].fail([block.slot for block in failed], reason)
        for block in failed:
            block.state, block.reason = ("failed", reason) if block.state == "filling" else ("orphan", 0)
            self.give_back(p, block)

    @rule(p=processes, data=st.data())
    def release(self, p: int, data: st.DataObject) -> None:
        held = [block for block in self.all if block.leases.get(p) and block.state in ("ready", "orphan")]
        given = [block for block in held if data.draw(st.booleans())]
        self.tables[p].release([block.slot for block in given])
        for block in given:
            self.give_back(p, block)

    @staticmethod
    def give_back(p: int, block: Block) -> None:
        block.leases[p] -= 1
        if not block.leases[p]:
            del block.leases[p]

    @rule(p=processes, data=st.data())
    def clean(self, p: int, data: st.DataObject) -> None:
        held = [
            block for block in self.all if block.leases.get(p) and block.state == "ready" and data.draw(st.booleans())
        ]
        self.tables[p].clean([block.slot for block in held])
        for block in held:
            block.dirty = False

    @rule(p=processes, wanted=some_ids)
    def drop(self, p: int, wanted: list[bytes]) -> None:
        there = {one for one in wanted if one in self.blocks and self.blocks[one].visible}
        assert self.tables[p].drop(wanted) == len(there)
        for one in there:
            block = self.blocks.pop(one)
            block.state = "doomed" if block.state == "filling" else "orphan"

    @rule(p=processes, orderly=st.booleans())
    def end(self, p: int, orderly: bool) -> None:
        """Leave, or die and be reaped by another."""
        if orderly:
            assert self.tables[p].raw.leave() == PROCESSES - 1
        else:
            reaper = self.tables[(p + 1) % PROCESSES].raw
            assert reaper.reap(self.tables[p].number) >= 0
            # The view of the dead must not leave a second time: it forgets its number as its process would have.
            self.tables[p].raw.leave()
        for block in self.all:
            held = block.leases.pop(p, 0)
            if block.state in ("filling", "doomed") and held:
                block.state = "gone"
            elif block.state == "ready" and block.dirty and block.debtor == p:
                block.state = "orphan"
        self.tables[p] = self.new_process()

    @rule(p=processes)
    def repair(self, p: int) -> None:
        self.tables[p].raw.repair()

    # ---- what does not ----

    @rule(p=processes, wanted=some_ids)
    def look(self, p: int, wanted: list[bytes]) -> None:
        ready = [one in self.blocks and self.blocks[one].state == "ready" for one in wanted]
        assert self.tables[p].probe(wanted) == ready
        assert self.tables[p].prefix(wanted) == (ready.index(False) if False in ready else len(ready))

    @precondition(lambda self: self.watched)
    @rule(p=processes)
    def watch(self, p: int) -> None:
        seen = self.tables[p].watch([claim for claim, _ in self.watched])
        assert seen == [block.seen() for _, block in self.watched]

    @invariant()
    def same_leases(self) -> None:
        if self.starts:
            for p, table in enumerate(self.tables):
                wanted = sum(block.leases.get(p, 0) for block in self.all)
                assert table.raw.statistics()["leases"] == wanted

    @invariant()
    def whole(self) -> None:
        if self.starts:
            check(self.tables[0], quiet=False)
            counts = self.tables[0].counts()
            for state in ("filling", "ready", "failed"):
                assert counts.get(state, 0) == sum(block.state == state for block in self.all)
            assert counts.get("held", 0) == sum(bool(block.leases) for block in self.all)


@pytest.mark.parametrize("policy", ["s3fifo", "lru"])  # nothing is evicted; with LRU hits move slots
def test_against_the_model(policy: str) -> None:
    case = type("Case", (Model,), {"policy": policy}).TestCase
    case.settings = settings(max_examples=25, stateful_step_count=30)
    case("runTest").runTest()
