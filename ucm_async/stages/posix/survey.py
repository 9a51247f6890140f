"""The tools' view of files of blocks: see `ucm_async.space.survey`."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from ...blocks.directory import QUARANTINE, read_note
from ...blocks.verify import verify_block
from ...engines.system import current_system
from ...space.ledger import Ledger
from ...space.survey import DAMAGED, LEFTOVER, STRANGE, Finding, StoredBlock, accounting, changing
from ...types import BLOCK_ID_BYTES, U8
from .backend import WRITERS, reclaim_writers, survey_writers
from .layout import subdirectories
from .space import HOMES

__all__ = ["PosixSurvey"]

_NAME: Final = re.compile(r"[0-9a-f]{32}")
_BLOCKS_A_CHANGE: Final = 64
"""Files that come or go at a time; in between others may count."""


class PosixSurvey:
    """One namespace of the Posix stage on one backend; see `ucm_async.space.survey.Survey`, which this is.

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

    # ---- what is there

    def count(self) -> int:
        """See `Survey.count`."""
        return sum(len(self._system.names(self.root / home)) for home in HOMES)

    def blocks(self) -> Iterator[list[StoredBlock]]:
        """See `Survey.blocks`."""
        for home in HOMES:
            found = self._list(home)
            if found:
                yield found

    def _list(self, directory: str) -> list[StoredBlock]:
        names = filter(_NAME.fullmatch, self._system.names(self.root / directory))
        about = ((name, self._system.size_and_time(self.root / directory / name)) for name in names)
        return [StoredBlock(bytes.fromhex(name), f"{directory}/{name}", *one) for name, one in about if one is not None]

    def check(self, blocks: Sequence[StoredBlock]) -> list[Finding]:
        """See `Survey.check`."""
        found = []
        for block in blocks:
            why = self._why(block)
            if why:
                found.append(Finding(DAMAGED, block.where, block.nbytes, why, block))
        return found

    def _why(self, block: StoredBlock) -> str:
        """Say what is wrong with a block; nothing, if it is gone."""
        try:
            stored: U8 = np.fromfile(self.root / block.where, dtype=np.uint8)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        home = block.where.partition("/")[0]
        ids = np.frombuffer(block.block_id, dtype=np.uint8).reshape(1, BLOCK_ID_BYTES)
        if home != QUARANTINE and HOMES[subdirectories(ids)[0]] != home:
            return f"its place is {HOMES[subdirectories(ids)[0]]}"
        return verify_block(stored, block.block_id, self.fingerprint)

    def loose(self) -> list[Finding]:
        """See `Survey.loose`."""
        system = self._system
        found = []
        for directory in (*HOMES, QUARANTINE):
            for name in system.names(self.root / directory):
                if not _NAME.fullmatch(name):
                    found.append(self._loose(STRANGE, f"{directory}/{name}", "no block has such a name"))
        for name, lives in survey_writers(system, self.root).items():
            if not lives:
                found.append(self._loose(LEFTOVER, f"{WRITERS}/{name}", "its writer has died"))
        return found

    def _loose(self, kind: str, where: str, why: str) -> Finding:
        about = self._system.size_and_time(self.root / where)
        return Finding(kind, where, about[0] if about else self._system.tree_bytes(self.root / where), why)

    def quarantine(self) -> list[StoredBlock]:
        """See `Survey.quarantine`."""
        return self._list(QUARANTINE)

    def living(self) -> frozenset[str]:
        """See `Survey.living`."""
        return frozenset(name for name, lives in survey_writers(self._system, self.root).items() if lives)

    # ---- what is done with it

    def remove(self, blocks: Sequence[StoredBlock]) -> int:
        """See `Survey.remove`."""
        return self._each(blocks, self._unlink)

    def set_aside(self, blocks: Sequence[StoredBlock]) -> int:
        """See `Survey.set_aside`: one copy of a block is enough to look at, so a second one is removed."""

        def move(block: StoredBlock, ledger: Ledger) -> int:
            try:
                os.link(self.root / block.where, self.root / QUARANTINE / block.block_id.hex())
            except FileExistsError:
                return int(self._unlink(block, ledger) > 0)
            except FileNotFoundError:
                return 0
            self._system.unlink(self.root / block.where)
            return 1

        return self._each(blocks, move)

    def restore(self, blocks: Sequence[StoredBlock]) -> int:
        """See `Survey.restore`: not where the block has been written again meanwhile, whose copy is as good."""

        def move(block: StoredBlock, ledger: Ledger) -> int:
            ids = np.frombuffer(block.block_id, dtype=np.uint8).reshape(1, BLOCK_ID_BYTES)
            home = self.root / HOMES[subdirectories(ids)[0]]
            with contextlib.suppress(FileExistsError):
                self._system.mkdir(home)
            try:
                os.link(self.root / block.where, home / block.block_id.hex())
            except (FileExistsError, FileNotFoundError):
                return 0
            self._system.unlink(self.root / block.where)
            return 1

        return self._each(blocks, move)

    def sweep(self) -> int:
        """See `Survey.sweep`."""
        before = sum(one.nbytes for one in self.loose() if one.kind == LEFTOVER)
        reclaim_writers(self._system, self.root)
        return before - sum(one.nbytes for one in self.loose() if one.kind == LEFTOVER)

    def _each(self, blocks: Sequence[StoredBlock], act: Callable[[StoredBlock, Ledger], int]) -> int:
        """Do something with each block, and account for it; returns the sum of what that returns."""
        total = 0
        if not blocks:
            return total
        with accounting(self._system, self.root, self.fingerprint) as ledger:
            for start in range(0, len(blocks), _BLOCKS_A_CHANGE):
                with changing(ledger):
                    total += sum(act(block, ledger) for block in blocks[start : start + _BLOCKS_A_CHANGE])
        return total

    def _unlink(self, block: StoredBlock, ledger: Ledger) -> int:
        try:
            os.unlink(self.root / block.where)
        except FileNotFoundError:
            return 0
        ledger.removed(block.nbytes)
        return block.nbytes
