"""What the tools (`ucm-async fsck`, `gc`, `stat`, `delete`, `quarantine`) ask of a layout, whatever it is.

A `Survey` stands for one namespace on one backend. It is opened beside stores that run, and takes part in their
account of space while it removes anything. Everything blocks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from ..engines.system import System
from ..errors import UcmError
from .ledger import Ledger

__all__ = ["DAMAGED", "LEFTOVER", "STRANGE", "Finding", "StoredBlock", "Survey", "accounting", "changing", "collecting"]

DAMAGED: Final = "damaged"
"""A block that is not what it should be; `Survey.set_aside` takes it."""

LEFTOVER: Final = "leftover"
"""What a writer that died has left; `Survey.sweep` removes it."""

STRANGE: Final = "strange"
"""Something that no store has put there; it stays, for people to look at."""

PATIENCE_S: Final = 10.0
"""How long a change waits for somebody who counts the files."""


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A block as it lies in a backend.

    Attributes
    ----------
    block_id
        16 bytes.
    where
        The file, or the slot, relative to the namespace's directory.
    nbytes
        What it occupies.
    written_s
        When it was written, in seconds since the epoch.
    """

    block_id: bytes
    where: str
    nbytes: int
    written_s: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes
    ----------
    kind
        `DAMAGED`, `LEFTOVER` or `STRANGE`.
    where
        As of `StoredBlock`.
    nbytes
        What it occupies.
    why
        For people.
    block
        The damaged block.
    """

    kind: str
    where: str
    nbytes: int
    why: str
    block: StoredBlock | None = None


class Survey(Protocol):
    """One namespace on one backend.

    Attributes
    ----------
    root
        Its directory.
    namespace
        Its name, as far as it is known.
    fingerprint
        16 bytes.
    """

    root: Path
    namespace: str
    fingerprint: bytes

    def count(self) -> int:
        """Count the stored blocks, for a progress bar: roughly, if others write."""

    def blocks(self) -> Iterator[list[StoredBlock]]:
        """Yield what is stored, some hundred blocks at a time."""

    def check(self, blocks: Sequence[StoredBlock]) -> list[Finding]:
        """Read blocks and verify them. Those that have been removed meanwhile are left out. Any thread."""

    def loose(self) -> list[Finding]:
        """Return what is there beside the blocks and does not belong there."""

    def quarantine(self) -> list[StoredBlock]:
        """Return what was set aside; `check` says what is wrong with it."""

    def living(self) -> frozenset[str]:
        """Names of the stores that are open now."""

    def remove(self, blocks: Sequence[StoredBlock]) -> int:
        """Remove blocks, stored or set aside; returns their bytes."""

    def set_aside(self, blocks: Sequence[StoredBlock]) -> int:
        """Bring damaged blocks to the quarantine; returns how many."""

    def sweep(self) -> int:
        """Remove what dead writers left; returns the bytes."""

    def restore(self, blocks: Sequence[StoredBlock]) -> int:
        """Give what was set aside its place again; returns how many got it."""


@contextlib.contextmanager
def accounting(system: System, root: Path, fingerprint: bytes) -> Iterator[Ledger]:
    """Take part in the account of a backend, as one store more; see `Ledger`.

    Parameters
    ----------
    system
        Who has the files.
    root, fingerprint
        Of the namespace.

    Raises
    ------
    UcmError
        A store elsewhere has it open, whose account cannot be seen from here.
    """
    owner = f"tool-{system.token(5)}"
    try:
        ledger = Ledger(system, root.parent)
        ledger.join(fingerprint, owner, root)
    except OSError as error:
        raise UcmError(f"{str(root.parent)!r}: its account of space cannot be had: {error.strerror}") from error
    try:
        yield ledger
    finally:
        ledger.leave()


@contextlib.contextmanager
def changing(ledger: Ledger) -> Iterator[None]:
    """Hold it open while blocks come or go, as stores do.

    Raises
    ------
    UcmError
        Somebody has been counting the files for too long.
    """
    until_s = time.monotonic() + PATIENCE_S
    while not ledger.begin_change():
        ledger.forget_dead()  # perhaps the one who counts
        if time.monotonic() > until_s:
            raise UcmError(
                f"a store has been counting its files for {PATIENCE_S:g} s, and nothing may change meanwhile"
            )
        time.sleep(0.005)
    try:
        yield
    finally:
        ledger.end_change()


@contextlib.contextmanager
def collecting(system: System, fingerprint: bytes, roots: Sequence[Path]) -> Iterator[None]:
    """Have the right to collect for a namespace meanwhile, which one process of a host has at a time.

    Parameters
    ----------
    system
        Who has the files.
    fingerprint, roots
        Of the namespace: its directory on each backend.

    Raises
    ------
    UcmError
        Somebody else has been collecting for too long.
    """
    home = min(roots, key=lambda root: root.parent.absolute())  # where stores agree on it, too
    until_s = time.monotonic() + PATIENCE_S
    with accounting(system, home, fingerprint) as ledger:
        while not ledger.take_lease():
            if time.monotonic() > until_s:
                raise UcmError(f"{str(home)!r}: another process has been collecting there for {PATIENCE_S:g} s")
            time.sleep(0.01)
        try:
            yield
        finally:
            ledger.give_lease()
