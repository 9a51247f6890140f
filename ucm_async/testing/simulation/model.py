"""What a store has promised: for each block a few facts, and for each answer whether they allow it.

The model knows nothing of stages or files. It is told what is asked and what was answered, and what the machine has
done. Where calls overlap, it holds the store only to what is sure whichever came first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ...errors import BusyError, StoreError
from ...types import Durability, Status
from .disk import SimulatedDisk
from .faults import HONEST

__all__ = ["Asked", "Model", "Violation"]

NONE, CACHED, STORED, SYNCED = range(4)
_LEVELS: Final[dict[Durability, int]] = {"cached": CACHED, "stored": STORED, "synced": SYNCED}
_SYNCS: Final = ("sync_error",)
_NO_SPACE: Final = ("short_write", "no_space")
_READS: Final = ("read_error",)
_LATE: Final = ("slow", "hang")
_NO_SEGMENT: Final = (*_NO_SPACE, *_LATE, "file_error", "write_error", "sync_error")
"""Why no segment may be made, or not while a dump waits for it."""


class Violation(AssertionError):
    """The store has broken a promise."""


@dataclass(slots=True)
class _Block:
    """What is known of a block.

    Attributes
    ----------
    promise
        What survives: NONE, CACHED (no death of a process), STORED (a kill), SYNCED (a power cut as well).
    cached_by, cached_errors
        Which processes have promised that it is CACHED, and what had failed before the first of them did.
    possible
        It may be stored: at some time all of its shards were given to one process, and nothing has surely removed it.
    possible_s
        When it was last possible.
    epoch
        Changes whenever something happens after which an answer that is under way proves nothing.
    torn, torn_s
        A power cut may have left some of its bytes, and when it last may have.
    dumps, deletes
        How many are under way.
    overtaken
        A dump began while a delete was under way, which need not have seen it.
    syncing
        Synced dumps that may still be at it, by process: a sync that fails may cost them the copy that was there.
    believers
        Processes that may take it for stored though it is gone.
    """

    promise: int = NONE
    possible: bool = False
    possible_s: float = -1.0
    ever: bool = False
    epoch: int = 0
    torn: bool = False
    torn_s: float = -1.0
    dumps: int = 0
    deletes: int = 0
    overtaken: bool = False
    syncing: list[Asked] = field(default_factory=list)
    believers: set[int] = field(default_factory=set)
    cached_by: set[int] = field(default_factory=set)
    cached_errors: int = 0


@dataclass(slots=True)
class _Process:
    """What a process was given of blocks that are not whole.

    Attributes
    ----------
    given, done
        Bit sets of shards by block: dumps that were begun, and dumps that ended well.
    level
        By block, the least durability of those that ended well.
    muddy
        Blocks of which a dump ended otherwise: its write may still be under way, and may spoil others.
    """

    given: dict[int, int] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)
    level: dict[int, int] = field(default_factory=dict)
    muddy: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Asked:
    """A call under way, and what was known when it began."""

    process: int
    blocks: Sequence[int]
    shards: Sequence[int] | None
    level: int
    began_s: float
    until_s: float
    epochs: list[int]
    promises: list[int]
    errors: int
    failed_syncs: int
    refusals: int
    life: int
    write_failures: int
    cancelled: bool = False


@dataclass(slots=True)
class Flushing:
    """A flush under way, and the blocks that it is about, with their epochs."""

    process: int
    life: int
    blocks: dict[int, int]
    alone: bool


class Model:
    """The dictionary that a store is held against.

    Parameters
    ----------
    blocks, shards
        How many there are.
    disk
        Asked what has gone wrong.
    now_s
        The clock.
    keeps_shards
        Whether blocks that are not whole are kept, however many there are.
    bounded
        Whether the store has a bound on its space, and so may refuse what there is room for on the disk.
    grows
        Whether room for blocks comes in segments: where one cannot be made, or not in time, others make room.
    caches
        Whether "cached" means that, and whether a call may learn of what went wrong with another one's read.
    """

    def __init__(
        self,
        blocks: int,
        shards: int,
        disk: SimulatedDisk,
        now_s: Callable[[], float],
        *,
        keeps_shards: bool = True,
        bounded: bool = False,
        grows: bool = False,
        caches: bool = False,
    ) -> None:
        self._full = (1 << shards) - 1
        self._blocks = [_Block() for _ in range(blocks)]
        self._processes: dict[int, _Process] = {}
        self._lives: dict[int, int] = {}
        self._disk = disk
        self._now_s = now_s
        self._keeps_shards = keeps_shards
        self._bounded = bounded
        self._grows = grows
        self._caches = caches
        self._errors_at_rest = self._refusals_at_rest = 0
        self._flushing: list[Flushing] = []
        self._excused = 0
        self._reads_failed = 0

    # ---- processes and the machine

    def started(self, process: int) -> None:
        """A process has opened its store.

        The first one reads the headers of slots, and what cannot be read is no block.
        """
        if self._grows and not self._processes and self._disk.faults.count(_READS) > self._reads_failed:
            for block in self._blocks:
                block.promise = NONE
                block.epoch += 1
        self._processes[process] = _Process()
        self._lives[process] = self._lives.get(process, 0) + 1
        for block in self._blocks:
            block.believers.discard(process)

    def rests(self) -> None:
        """Nothing is under way: what has gone wrong until now can be no reason for what comes."""
        self._errors_at_rest = self._disk.faults.count(HONEST)
        self._refusals_at_rest = self._disk.faults.count(_NO_SPACE)

    def died(self, process: int) -> None:
        """A process has died: what is only cached may have been its own."""
        self.ended(process)
        for block in self._blocks:
            if block.promise == CACHED:
                self._forget_cached(block)

    def _forget_cached(self, block: _Block) -> None:
        block.promise = NONE
        block.epoch += 1

    def ended(self, process: int) -> None:
        """A process has closed its store, or died: shards of blocks that were not whole are gone."""
        self._reads_failed = self._disk.faults.count(_READS)
        self._processes.pop(process, None)
        for block in self._blocks:
            if self._may_have_lost_it(block):
                block.promise = NONE
            block.syncing = [one for one in block.syncing if one.process != process]

    def power_was_cut(self) -> None:
        """Only what was synced is sure; the rest may be there, in part, and what was deleted may be back."""
        for block in self._blocks:
            block.epoch += 1
            if block.promise != SYNCED:
                block.promise = NONE
                block.torn |= block.ever
            if block.ever:
                self._may_be_there(block)

    def collects(self, blocks: Sequence[int]) -> None:
        """A process begins to remove blocks to make room: nothing is promised of them any more."""
        if not (self._bounded or self._disk.faults.count(_NO_SEGMENT if self._grows else _NO_SPACE)):
            raise Violation(f"blocks {list(blocks)} are collected, and there is room enough")
        self._withdraw(blocks)

    def collected(self, blocks: Sequence[int]) -> None:
        """It has ended. They may still be there: a process may die at it."""
        for number in blocks:
            block = self._blocks[number]
            block.epoch += 1
            block.deletes -= 1

    # ---- calls

    def asks(
        self,
        process: int,
        blocks: Sequence[int],
        shards: Sequence[int] | None = None,
        *,
        durability: Durability = "stored",
        timeout_s: float = float("inf"),
    ) -> Asked:
        """A call begins."""
        faults = self._disk.faults
        return Asked(
            process,
            blocks,
            shards,
            _LEVELS[durability] if self._caches or durability != "cached" else NONE,
            self._now_s(),
            self._now_s() + timeout_s,
            [self._blocks[block].epoch for block in blocks],
            [self._blocks[block].promise for block in blocks],
            self._errors_at_rest if self._caches else faults.count(HONEST),
            faults.count(_SYNCS),
            self._refusals_at_rest if self._caches else faults.count(_NO_SPACE),
            self._lives[process],
            self._write_failures(),
        )

    def dumps(self, asked: Asked) -> None:
        """A dump begins: from now on its blocks may be stored, if all of their shards were given."""
        given = self._processes[asked.process].given
        for row, number in enumerate(asked.blocks):
            block = self._blocks[number]
            block.dumps += 1
            block.overtaken |= block.deletes > 0
            if asked.level == SYNCED:
                block.syncing.append(asked)
            bits = self._full if asked.shards is None else 1 << asked.shards[row]
            given[number] = given.get(number, 0) | bits
            if given[number] == self._full:
                block.ever = True
                self._may_be_there(block)

    def dumped(self, asked: Asked, statuses: Sequence[Status] | None) -> None:
        """A dump has ended; `statuses` is None if its process died before."""
        for number in asked.blocks:
            block = self._blocks[number]
            block.dumps -= 1
            if block.possible:
                block.possible_s = self._now_s()
        if statuses is None or not self._lives_on(asked):
            return
        for row, (number, status) in enumerate(zip(asked.blocks, statuses, strict=True)):
            if status == Status.OK:
                self._row_dumped(asked, row, number)
            else:
                self._check_failure(asked, row, status, "dump")
                self._processes[asked.process].muddy.add(number)
            if asked.level == SYNCED:
                self._sync_ended(asked, number, status)

    def _sync_ended(self, asked: Asked, number: int, status: Status) -> None:
        block = self._blocks[number]
        if status == Status.OK:
            block.syncing = [one for one in block.syncing if one is not asked]
        else:
            block.promise = NONE
        if self._disk.faults.count(_SYNCS) > asked.failed_syncs:
            block.epoch += 1  # it may have been gone for a while

    def _row_dumped(self, asked: Asked, row: int, number: int) -> None:
        block, process = self._blocks[number], self._processes[asked.process]
        if asked.epochs[row] != block.epoch or block.deletes:
            return
        if asked.shards is None:
            process.muddy.discard(number)
            self._promise(number, asked.level, asked)
            return
        process.done[number] = process.done.get(number, 0) | 1 << asked.shards[row]
        process.level[number] = min(process.level.get(number, SYNCED), asked.level)
        if process.done[number] == self._full and number not in process.muddy and self._keeps_shards:
            self._promise(number, process.level[number], asked)

    def _promise(self, number: int, level: int, asked: Asked) -> None:
        block = self._blocks[number]
        if level == CACHED and block.promise <= CACHED:
            if block.promise == NONE:
                block.cached_by.clear()
                block.cached_errors = asked.write_failures
            block.cached_by.add(asked.process)
        if level >= STORED:  # also where a power cut had left a torn copy of it, which the dump has found
            self._is_sound(block)
        if not block.torn:
            block.promise = max(block.promise, level)
        self._forget_shards(number)

    def _forget_shards(self, number: int) -> None:
        """What single shards were dumped counts no more: the block is whole now, or something has happened to it."""
        for process in self._processes.values():
            process.done.pop(number, None)
            process.level.pop(number, None)

    def loaded(self, asked: Asked, statuses: Sequence[Status], right: Sequence[bool]) -> None:
        """A load has ended; `right` tells for each row whether the bytes are those of the block."""
        for row, (number, status) in enumerate(zip(asked.blocks, statuses, strict=True)):
            block = self._blocks[number]
            if status == Status.OK:
                if not right[row]:
                    raise Violation(f"load: row {row}, block {number}: wrong bytes are returned as good")
                if not self._was_possible(block, asked):
                    raise Violation(f"load: row {row}, block {number}: OK, and it was never whole, or is deleted")
                if asked.shards is None and asked.epochs[row] == block.epoch and not self._caches:
                    self._is_sound(block)
            elif status == Status.MISS:
                self._check_absent(asked, row, "load: MISS")
            elif status == Status.CORRUPT:
                self._check_corrupt(asked, row)
            else:
                self._check_failure(asked, row, status, "load")

    def leased(self, asked: Asked, lent: Sequence[bool]) -> None:
        """Blocks are lent in time, or not."""
        for row, (number, there) in enumerate(zip(asked.blocks, lent, strict=True)):
            if there and not self._was_possible(self._blocks[number], asked):
                raise Violation(f"lease: block {number} is lent, and it was never whole, or is deleted")
            if not there and self._disk.faults.count(HONEST) == asked.errors:
                self._check_absent(asked, row, "lease: not lent")

    def flushes(self, process: int) -> Flushing:
        """A flush begins, or the end of a store, which writes what is owed."""
        alone = all(one.process != process for one in self._flushing)
        blocks = {
            number: block.epoch
            for number, block in enumerate(self._blocks)
            if block.promise == CACHED and block.cached_by == {process}
        }
        flushing = Flushing(process, self._lives[process], blocks, alone)
        for one in self._flushing:
            one.alone &= one.process != process
        self._flushing.append(flushing)
        return flushing

    def flushed(self, flushing: Flushing, failed: Mapping[int, StoreError]) -> None:
        """It has ended: what it does not name is stored now. Two at a time share what failed between them."""
        self._flushing.remove(flushing)
        if flushing.process not in self._processes or self._lives[flushing.process] != flushing.life:
            return
        for number, error in failed.items():
            if not (self._bounded or self._write_failures() or isinstance(error, BusyError)):
                raise Violation(f"flush: block {number} failed for no reason: {error}")
            if self._blocks[number].promise == CACHED:
                self._forget_cached(self._blocks[number])
        if flushing.alone:
            self._are_stored(flushing)

    def closed(self, flushing: Flushing) -> None:
        """A store is closed: what it owed is stored, or lost with nobody but the log to tell."""
        self._flushing.remove(flushing)
        for number in flushing.blocks:
            block = self._blocks[number]
            if block.promise == CACHED and self._may_be_given_up(block):
                self._forget_cached(block)
        self._are_stored(flushing)

    def _are_stored(self, flushing: Flushing) -> None:
        for number, epoch in flushing.blocks.items():
            block = self._blocks[number]
            if block.promise == CACHED and block.epoch == epoch:
                block.promise = STORED

    def _may_be_given_up(self, block: _Block) -> bool:
        """Tell whether a block that is only cached may have been refused by the stage below."""
        return self._bounded or self._write_failures() > block.cached_errors

    def _write_failures(self) -> int:
        return self._disk.faults.count((*HONEST, *(_NO_SEGMENT if self._grows else _NO_SPACE)))

    def looked_up(self, asked: Asked, found: Sequence[bool], what: str) -> None:
        """A lookup has ended, or the part of a prefix lookup that it tells about."""
        for row, (number, hit) in enumerate(zip(asked.blocks, found, strict=False)):
            block = self._blocks[number]
            if not hit:
                if self._disk.faults.count(HONEST) == asked.errors:  # whoever cannot look says no
                    self._check_absent(asked, row, f"{what}: not found")
            elif not self._was_possible(block, asked) and asked.process not in block.believers:
                raise Violation(f"{what}: block {number} is found, and it was never whole, or is deleted")

    def deletes(self, asked: Asked) -> None:
        """A delete begins: nothing is promised of its blocks any more."""
        self._withdraw(asked.blocks)

    def _withdraw(self, blocks: Sequence[int]) -> None:
        for number in blocks:
            block = self._blocks[number]
            block.promise = NONE
            block.epoch += 1
            block.overtaken &= block.deletes > 0
            block.deletes += 1
            self._forget_shards(number)

    def deleted(self, asked: Asked, *, idle: bool) -> None:
        """A delete has ended; `idle` tells that no process has any write under way, late ones included."""
        failed = self._disk.faults.count(HONEST) > asked.errors
        for number in asked.blocks:
            block = self._blocks[number]
            block.epoch += 1
            block.deletes -= 1
            if not self._lives_on(asked):
                continue
            mine = self._processes[asked.process]
            if idle and not failed and not block.dumps and not block.deletes and not block.overtaken:
                for process in self._processes.values():
                    if process is mine or (
                        process.given.get(number) == self._full and number not in process.muddy
                    ):  # the others keep what is not whole
                        process.given.pop(number, None)
                self._is_sound(block)
                block.possible = False
                block.possible_s = self._now_s()
                block.believers |= self._processes.keys() - {asked.process}
            else:
                mine.muddy.add(number)

    # ---- what is allowed

    def _may_be_there(self, block: _Block) -> None:
        block.possible = True
        block.possible_s = self._now_s()

    def _was_possible(self, block: _Block, asked: Asked) -> bool:
        return block.possible or block.possible_s > asked.began_s

    def _may_have_lost_it(self, block: _Block) -> bool:
        """Tell whether a sync of the block may have failed, and cost it the copy that was there."""
        failed = self._disk.faults.count(_SYNCS)
        return any(failed > one.failed_syncs for one in block.syncing)

    def _is_sound(self, block: _Block) -> None:
        if block.torn:
            block.torn = False
            block.torn_s = self._now_s()

    def _check_absent(self, asked: Asked, row: int, what: str) -> None:
        number = asked.blocks[row]
        block = self._blocks[number]
        if asked.promises[row] == NONE or asked.epochs[row] != block.epoch:
            return
        if self._may_have_lost_it(block):
            return
        if block.promise == CACHED and self._may_be_given_up(block):
            self._forget_cached(block)
            return
        self._lost(number, what)

    def _check_corrupt(self, asked: Asked, row: int) -> None:
        number = asked.blocks[row]
        block = self._blocks[number]
        if block.torn or asked.began_s <= block.torn_s:
            self._forget_shards(number)  # it is set aside
            return
        self._lost(number, "load: CORRUPT")

    def _lost(self, number: int, what: str) -> None:
        """A block that should be there is not: somebody must have lied, and each lie excuses one block."""
        block = self._blocks[number]
        if self._excused >= self._disk.lies:
            level = ("written", "cached", "stored", "synced")[block.promise]
            raise Violation(f"{what}: block {number}, which was {level}")
        self._excused += 1
        block.promise = NONE
        block.torn = True
        block.epoch += 1
        self._forget_shards(number)

    def _check_failure(self, asked: Asked, row: int, status: Status, verb: str) -> None:
        """A row that is neither OK nor absent must have a reason."""
        faults = self._disk.faults
        allowed = {
            Status.TIMEOUT: self._now_s() >= asked.until_s - 1e-9,
            Status.CANCELLED: asked.cancelled,
            Status.IO_ERROR: faults.count(HONEST) > asked.errors,
            Status.BUSY: verb == "dump" and self._grows and faults.count(_LATE) > 0,
            Status.NO_SPACE: verb == "dump" and (self._bounded or faults.count(_NO_SPACE) > asked.refusals),
        }
        if not allowed.get(status, False):
            raise Violation(f"{verb}: row {row}, block {asked.blocks[row]}: {status.name} for no reason")

    def _lives_on(self, asked: Asked) -> bool:
        return asked.process in self._processes and self._lives[asked.process] == asked.life
