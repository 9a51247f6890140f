"""The tools' view of slots: see `ucm_async.space.survey`.

Where stores are open, or were when all of them were killed, the table in shared memory says what is stored; elsewhere
the headers do.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from ...blocks.directory import QUARANTINE, read_note
from ...blocks.header import HEADER, MAGIC
from ...blocks.verify import verify_block
from ...engines.system import current_system
from ...errors import UcmError
from ...space.ledger import Ledger
from ...space.survey import DAMAGED, LEFTOVER, STRANGE, Finding, StoredBlock, accounting, changing
from ...types import U8
from .backend import HOME
from .checkpoint import CHECKPOINT_NAME
from .layout import GONE, PAGE_BYTES, SegmentPage, SlabGeometry, check_segment, segment_name, segment_number
from .memory import SlabMemory
from .segments import NEW_NAME
from .slab import LOCK_NAME, STORED

__all__ = ["SlabSurvey"]

_NAME: Final = re.compile(r"[0-9a-f]{32}")
_KNOWN: Final = (LOCK_NAME, CHECKPOINT_NAME, NEW_NAME)


class SlabSurvey:
    """One namespace of the Slab stage on one backend; see `ucm_async.space.survey.Survey`, which this is.

    A block's place is told as ``slab/SEGMENT.slab:SLOT``, the slot counted over all segments.

    Parameters
    ----------
    root
        Its directory, ``NAME-FINGERPRINT``.
    """

    def __init__(self, root: Path) -> None:
        self._system = current_system()
        self.root = root
        self.namespace = str(read_note(self._system, root).get("namespace", root.name.rpartition("-")[0]))
        self.fingerprint = bytes.fromhex(root.name.rpartition("-")[2])
        self._pages: dict[int, SegmentPage] = {}
        self._segment_slots = 0

    # ---- segments

    def _segments(self) -> list[int]:
        return sorted(number for name in self._system.names(self.root / HOME) if (number := segment_number(name)) >= 0)

    def _path(self, segment: int) -> Path:
        return self.root / HOME / segment_name(segment)

    def _page(self, segment: int) -> SegmentPage | None:
        """How a segment is cut: as its first page tells it, or its length and the others; None if neither can.

        Raises
        ------
        UcmError
            Another version of the format has written it.
        """
        if segment not in self._pages:
            page = self._read_page(segment)
            if page.version:
                raise UcmError(f"{str(self._path(segment))!r}: {page.why}; use the version that wrote it")
            self._pages[segment] = page
        page = self._pages[segment]
        return page if page.slots else self._guess(segment)

    def _read_page(self, segment: int) -> SegmentPage:
        try:
            with self._path(segment).open("rb") as file:
                return check_segment(file.read(PAGE_BYTES), None, self.fingerprint, segment)
        except OSError as error:
            return SegmentPage(0, 0, why=f"it cannot be read: {error.strerror}")

    def _guess(self, segment: int) -> SegmentPage | None:
        about, slots = self._system.size_and_time(self._path(segment)), self._slots()
        slot_bytes, rest = divmod(about[0] - PAGE_BYTES, slots) if about and slots else (0, 1)
        return SegmentPage(slots, slot_bytes) if not rest and slot_bytes > 0 else None

    def _slots(self) -> int:
        """Slots of a segment, as the first page that can be trusted tells; 0 if there is none."""
        for segment in () if self._segment_slots else self._segments():
            self._segment_slots = self._read_page(segment).slots
            if self._segment_slots:
                break
        return self._segment_slots

    # ---- what is there

    def count(self) -> int:
        """See `Survey.count`."""
        return sum(len(some) for some in self.blocks())

    def blocks(self) -> Iterator[list[StoredBlock]]:
        """See `Survey.blocks`."""
        segments = self._segments()
        stored = self._stored() if segments else None
        for segment in segments:
            about, page = self._system.size_and_time(self._path(segment)), self._page(segment)
            if about is None or page is None:
                continue
            found = []
            for slot, head in self._heads(segment, page):
                if head["magic"] == MAGIC and (stored is None or slot in stored):
                    where = f"{HOME}/{segment_name(segment)}:{slot}"
                    found.append(StoredBlock(head["block_id"].tobytes(), where, page.slot_bytes, about[1]))
            if found:
                yield found

    def _heads(self, segment: int, page: SegmentPage) -> Iterator[tuple[int, np.void]]:
        first = segment * page.slots
        with contextlib.suppress(FileNotFoundError), self._path(segment).open("rb", buffering=0) as file:
            for slot in range(first, first + page.slots):
                content = os.pread(file.fileno(), HEADER.itemsize, _offset(page, slot))
                if len(content) == HEADER.itemsize:
                    yield slot, np.frombuffer(content, dtype=HEADER)[0]

    def _stored(self) -> frozenset[int] | None:
        """Return the slots that hold a block, as the table says; None if there is no table."""
        with self._table() as memory:
            if memory is None:
                return None
            count = memory.table.slots
            states, stamps = np.zeros(count, dtype=np.uint8), np.zeros(count, dtype=np.uint32)
            memory.table.scan(0, states, np.zeros((count, 16), dtype=np.uint8), stamps)
            return frozenset(np.flatnonzero(states == STORED).tolist())

    @contextlib.contextmanager
    def _table(self) -> Iterator[SlabMemory | None]:
        """Hold the directory's lock; yields the shared memory, None if there is none: then nobody has a store open."""
        geometry = SlabGeometry((PAGE_BYTES,), self._slots() or 1)  # no class is looked up here
        memory = SlabMemory(self._system, self.root / HOME / LOCK_NAME)
        try:
            with memory.held():
                new = memory.attach(geometry, max(self._segments(), default=0) + 1)
                try:
                    yield None if new else memory
                finally:
                    if new:
                        memory.remove()
        finally:
            memory.close()

    def check(self, blocks: Sequence[StoredBlock]) -> list[Finding]:
        """See `Survey.check`."""
        found = []
        for block in blocks:
            content = self._content(block)
            why = verify_block(content, block.block_id, self.fingerprint) if content is not None else ""
            if why and self._is_there_still(block):
                found.append(Finding(DAMAGED, block.where, block.nbytes, why, block))
        return found

    def _content(self, block: StoredBlock) -> U8 | None:
        place, _, slot = block.where.partition(":")
        try:
            with (self.root / place).open("rb", buffering=0) as file:
                offset = _offset(self._known_page(int(slot)), int(slot)) if slot else 0
                return np.frombuffer(os.pread(file.fileno(), block.nbytes, offset), dtype=np.uint8)
        except FileNotFoundError:
            return None

    def _known_page(self, slot: int) -> SegmentPage:
        page = self._page(slot // self._slots())
        assert page is not None, "a block was found in this segment"
        return page

    def _is_there_still(self, block: StoredBlock) -> bool:
        """Tell whether a slot that looks bad was not just given to another block."""
        slot = block.where.partition(":")[2]
        if not slot:
            return True
        with self._table() as memory:
            return memory is None or _slot_of(memory, block)[0] == int(slot)

    def loose(self) -> list[Finding]:
        """See `Survey.loose`."""
        found = []
        for name in self._system.names(self.root / HOME):
            if segment_number(name) < 0 and name not in _KNOWN:
                found.append(self._loose(STRANGE, f"{HOME}/{name}", "no segment has such a name"))
        for name in self._system.names(self.root / QUARANTINE):
            if not _NAME.fullmatch(name):
                found.append(self._loose(STRANGE, f"{QUARANTINE}/{name}", "no block has such a name"))
        if self._system.exists(self.root / HOME / NEW_NAME):
            with self._table():  # whoever makes a segment holds the lock
                if self._system.exists(self.root / HOME / NEW_NAME):
                    found.append(self._loose(LEFTOVER, f"{HOME}/{NEW_NAME}", "who made this segment has died"))
        return found

    def _loose(self, kind: str, where: str, why: str) -> Finding:
        about = self._system.size_and_time(self.root / where)
        return Finding(kind, where, about[0] if about else 0, why)

    def quarantine(self) -> list[StoredBlock]:
        """See `Survey.quarantine`."""
        names = filter(_NAME.fullmatch, self._system.names(self.root / QUARANTINE))
        about = ((name, self._system.size_and_time(self.root / QUARANTINE / name)) for name in names)
        return [
            StoredBlock(bytes.fromhex(name), f"{QUARANTINE}/{name}", *one) for name, one in about if one is not None
        ]

    def living(self) -> frozenset[str]:
        """See `Survey.living`: stores are told by their numbers."""
        with self._table() as memory:
            if memory is None:
                return frozenset()
            dead = memory.find_dead()  # the locks go when it is closed
            return frozenset(f"store {number}" for number in memory.owners if number not in dead)

    # ---- what is done with it

    def remove(self, blocks: Sequence[StoredBlock]) -> int:
        """See `Survey.remove`. What goes from a slot leaves its bytes to other blocks."""
        files = [block for block in blocks if ":" not in block.where]
        total = self._unlink(files)
        slots = [block for block in blocks if ":" in block.where]
        return total + sum(block.nbytes for block in self._empty(slots)) if slots else total

    def _unlink(self, blocks: Sequence[StoredBlock]) -> int:
        total = 0
        if blocks:
            with accounting(self._system, self.root, self.fingerprint) as ledger, changing(ledger):
                for block in blocks:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.root / block.where)
                        ledger.removed(block.nbytes)
                        total += block.nbytes
        return total

    def _empty(self, blocks: Sequence[StoredBlock]) -> list[StoredBlock]:
        """Take blocks out of their slots; returns those that were in them still."""
        with self._table() as memory:
            if memory is not None:
                memory.join()
            try:
                return [block for block in blocks if self._empty_one(memory, block)]
            finally:
                if memory is None:
                    self._system.unlink(self.root / HOME / CHECKPOINT_NAME)  # it says that they are there
                else:
                    memory.leave()

    def _empty_one(self, memory: SlabMemory | None, block: StoredBlock) -> bool:
        place, _, text = block.where.partition(":")
        slot = int(text)
        if memory is not None:
            at, word = _slot_of(memory, block)
            taken = np.zeros(1, dtype=np.uint8)
            if at != slot or not memory.table.withdraw(np.array([slot]), np.array([word], dtype=np.uint64), taken):
                return False
        with (self.root / place).open("r+b", buffering=0) as file:
            offset = _offset(self._known_page(slot), slot)
            if os.pread(file.fileno(), 16, offset + 16) != block.block_id:
                return False
            os.pwrite(file.fileno(), GONE.ljust(PAGE_BYTES, b"\0"), offset)
        return True

    def set_aside(self, blocks: Sequence[StoredBlock]) -> int:
        """See `Survey.set_aside`: the slot is copied; one copy of a block is enough to look at."""
        if not blocks:
            return 0
        with accounting(self._system, self.root, self.fingerprint) as ledger, changing(ledger):
            for block in blocks:
                self._copy(block, ledger)
        return len(self._empty(blocks))

    def _copy(self, block: StoredBlock, ledger: Ledger) -> None:
        content = self._content(block)
        with contextlib.suppress(FileExistsError):
            if content is not None:
                ledger.charge(block.nbytes)
                try:
                    with (self.root / QUARANTINE / block.block_id.hex()).open("xb") as file:
                        file.write(content.tobytes())
                except BaseException:
                    ledger.release(block.nbytes)
                    raise
                ledger.commit(block.nbytes)

    def sweep(self) -> int:
        """See `Survey.sweep`: a segment that was not finished; what is in slots of the dead comes back by itself."""
        found = [one for one in self.loose() if one.kind == LEFTOVER]
        with self._table():
            for one in found:
                self._system.unlink(self.root / one.where)
        return sum(one.nbytes for one in found)

    def restore(self, blocks: Sequence[StoredBlock]) -> int:
        """See `Survey.restore`: refused; a block that was set aside gets a slot only by a dump.

        Raises
        ------
        UcmError
            There is something to restore.
        """
        if blocks:
            raise UcmError(
                f"{str(self.root)!r}: {len(blocks)} blocks pass every check now, but cannot be given slots again by a "
                "tool: dump them, or read them where they are; nothing was changed"
            )
        return 0


def _offset(page: SegmentPage, slot: int) -> int:
    return PAGE_BYTES + slot % page.slots * page.slot_bytes


def _slot_of(memory: SlabMemory, block: StoredBlock) -> tuple[int, int]:
    """Return the slot and the word of a block as the table has it, -1 and 0 if it is not stored."""
    slots, words = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.uint64)
    memory.table.find(np.frombuffer(block.block_id, dtype=np.uint8).reshape(1, 16), slots, words)
    return int(slots[0]), int(words[0])
