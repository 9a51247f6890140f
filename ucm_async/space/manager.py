"""What a stage holds: room for what it writes, the order in which blocks go, and collection beside the traffic."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..abc import AsyncResource
from ..types import I64, U8, Bools
from .hotness import Hotness
from .limits import SpaceLimits

__all__ = ["SpaceManager", "SpacePlace", "SpaceUser"]


@dataclass(frozen=True, slots=True)
class SpacePlace:
    """One backend, as far as space is concerned. A place is told by its position in the list given to `SpaceManager`.

    Attributes
    ----------
    directory
        The backend's directory, which namespaces share: the ledger is a file in it, and its file system is the one
        whose free space counts.
    root
        The namespace's own directory: hotness is kept in it.
    owner
        A name, up to 16 ASCII characters, that no other open store has: that of the writer's directory.
    """

    directory: Path
    root: Path
    owner: str


class SpaceUser(Protocol):
    """What a stage tells about its files. Everything but `reclaim` is called on the loop."""

    def busy(self, ids: U8) -> Bools:
        """Tell which blocks are in transfer or under lease: bool, shape (n,). They are not removed."""

    def places(self, ids: U8) -> I64:
        """Tell in which place each block is, or would be: int64, shape (n,)."""

    async def remove(self, ids: U8) -> int:
        """Remove blocks as `Stage.delete` does; returns the bytes they occupied. Calls `SpaceManager.removed` itself."""

    def shortage(self) -> int:
        """Return bytes that should go for a reason of the stage's own (a slab with no free slots); usually 0."""

    async def count(self, place: int) -> int:
        """Count the bytes of all data files of the namespace there, those of open stores' unfinished blocks left out.

        Nobody changes anything meanwhile: it is called when every store that uses the namespace has paused.
        """

    def walk(self, place: int) -> Iterator[tuple[U8, Any]]:
        """Yield what is stored there, some hundred blocks at a time: ids, uint8 (n, 16), and when each was written.

        The second is float64 (n,), seconds since the epoch. Blocks: each step is taken in a thread.
        """

    def reclaim(self, place: int, owner: str) -> bool:
        """Remove the unfinished files of a store that has died; True if none are left. Blocks: called in a thread."""


class SpaceManager(AsyncResource):
    """The space of one open store, on its loop.

    The bytes of every write are reserved before it is begun, and the sum over all processes that use the directories
    never exceeds the cap, not even for an instant. `reserve`, `commit`, `release` and `removed` are additions in shared
    memory, without a system call; call them once a batch.

    Parameters
    ----------
    limits
        What may be used.
    places
        One for each backend.
    namespace
        Fingerprint, 16 bytes.
    user
        The stage.
    hot_blocks_max
        How many blocks `hotness` remembers.

    Attributes
    ----------
    hotness
        The order of the blocks.
    """

    hotness: Hotness

    def __init__(
        self, limits: SpaceLimits, places: Sequence[SpacePlace], namespace: bytes, user: SpaceUser, hot_blocks_max: int
    ) -> None:
        raise NotImplementedError

    async def open(self) -> None:
        """Join the ledgers, read the persisted hotness, and start to look after things.

        What was left inexact by a crash is counted again in the background: `changing` waits for that, loads and
        lookups do not.

        Raises
        ------
        ConfigError
            A ledger cannot be made or is full.
        """
        raise NotImplementedError

    async def counted(self) -> None:
        """Wait until usage is exact."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Persist the hotness and leave the ledgers. What is still reserved is released: its files must be gone."""
        raise NotImplementedError

    # ---- room

    def reserve(self, place: int, nbytes: int, count: int = 1) -> int:
        """Reserve room for up to `count` items of `nbytes` each; returns how many got it. Starts collection if few."""
        raise NotImplementedError

    async def reserve_soon(self, place: int, nbytes: int, count: int = 1, patience_s: float = 0.0) -> int:
        """As `reserve`; waits up to `patience_s` for collection to make room for the rest."""
        raise NotImplementedError

    def release(self, place: int, nbytes: int) -> None:
        """Give back what was reserved, once nothing of it is on the disk."""
        raise NotImplementedError

    def commit(self, place: int, nbytes: int) -> None:
        """Count reserved bytes as used: what was written has its name."""
        raise NotImplementedError

    def removed(self, place: int, nbytes: int) -> None:
        """Count used bytes as free, once they are."""
        raise NotImplementedError

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Hold it open while blocks are committed or removed, from before the first effect until all are accounted for.

        Whoever dies inside leaves an account that must be counted again. While somebody counts, entering waits.
        """
        raise NotImplementedError
        yield

    def no_space(self, place: int) -> None:
        """Say that the file system is full, or a quota of its: collection starts. The next write is tried as usual."""
        raise NotImplementedError

    # ---- hotness

    def touch(self, ids: U8, weight: float) -> None:
        """Note an access to each of `ids`, uint8 (n, 16), C-contiguous; counted a little later. About 1 µs a call."""
        raise NotImplementedError

    def forget(self, ids: U8) -> None:
        """Forget blocks that are gone."""
        raise NotImplementedError

    # ---- what happened

    def used(self) -> int:
        """Return the bytes that the committed blocks of this namespace occupy, in all places and by all processes."""
        raise NotImplementedError

    def statistics(self) -> Mapping[str, Any]:
        """Return plain, JSON-ready numbers: bounds, usage, and what was collected."""
        raise NotImplementedError
