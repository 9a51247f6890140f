"""What a stage and its `SpaceManager` tell each other: places, and what only the stage knows of its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..types import I64, U8, Bools
from .hotness import F64

__all__ = ["SpacePlace", "SpaceUser"]


@dataclass(frozen=True, slots=True)
class SpacePlace:
    """One backend, as far as space is concerned. A place is told by its position in the list given to `SpaceManager`.

    Attributes
    ----------
    directory
        The backend's directory, which namespaces share: they have one ledger together, and its file system is the
        one whose free space counts.
    root
        The namespace's own directory in it, ``NAME-FINGERPRINT``: hotness is kept there.
    owner
        A name, up to 16 ASCII characters without a dot, that no other open store has: that of the writer's directory.
    fresh
        True if `root` was made by this store just now, so there is nothing to be counted.
    """

    directory: Path
    root: Path
    owner: str
    fresh: bool = False


class SpaceUser(Protocol):
    """What a stage tells about its files. Everything but `walk` is called on the loop."""

    def busy(self, ids: U8) -> Bools:
        """Tell which blocks are in transfer or under lease: bool, shape (n,). They are not removed."""

    def places(self, ids: U8) -> I64:
        """Tell in which place each block is, or would be: int64, shape (n,)."""

    async def remove(self, ids: U8) -> int:
        """Remove blocks as `Stage.delete` does; returns their bytes. Calls `SpaceManager.removed` itself."""

    async def purge(self) -> int:
        """Remove what was set aside as damaged; returns its bytes. Calls `SpaceManager.removed` itself."""

    def shortage(self) -> int:
        """Return bytes that should go for a reason of the stage's own (a slab with no free slots); usually 0."""

    async def count(self, place: int, owners: frozenset[str]) -> tuple[int, int]:
        """Count the bytes of the namespace's files there, while nobody changes anything.

        First of all it removes what dead stores left unfinished: of all owners but `owners`, the living ones.

        Returns
        -------
        stored, unfinished
            Bytes of committed blocks and of what was set aside; and of what dead stores left and could not be removed.

        Raises
        ------
        OSError
            It could not be counted; it is tried again later.
        """

    def walk(self, place: int) -> Iterator[tuple[U8, F64]]:
        """Yield what is stored there, some hundred blocks at a time: ids, uint8 (n, 16), and when each was written.

        The second is float64 (n,), seconds since the epoch. Blocks: each step is taken in a thread.
        """
