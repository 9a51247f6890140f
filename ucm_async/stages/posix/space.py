"""What the Posix stage tells about its files: which blocks may go, what they occupy, and what is on the disk."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from ...abc import OnProgress
from ...blocks.header import HEADER_ALIGN
from ...blocks.layout import BlockLayout
from ...blocks.transfer import Transfer
from ...config import StoreConfig
from ...space import F64, SpaceLimits, SpaceManager, SpacePlace
from ...tasks import ids_among
from ...types import BLOCK_ID_BYTES, I64, U8, U64, Bools
from .backend import QUARANTINE, Backend
from .files import BlockFiles
from .known import KnownBlocks
from .layout import choose_backend, subdirectories

__all__ = ["BlockSpace"]

_log = logging.getLogger("ucm_async.posix")

REMOVALS_S_MAX: Final = 10.0
"""So long closing waits for deletes whose callers have gone: others may be counting, and may be stopped."""

DIRECTORIES_AT_ONCE: Final = 32
HOMES: Final = tuple(f"{number:02x}" for number in range(256))
_BLOCK_NAME: Final = re.compile(r"[0-9a-f]{32}")


class BlockSpace:
    """The space of one store's files: see `ucm_async.space.SpaceUser`, which this is.

    Backends that could not be opened have no place: what is to be written there fails anyway.

    Parameters
    ----------
    encoded
        Whether the store's blocks may be encoded, and so their files of any length up to that of a plain one.
    on_progress
        Told while the files are counted.

    Attributes
    ----------
    in_transfer
        Returns the ids of blocks that are being read, arrays of shape (n, 16).
    transfer
        Means of the dump lane, of which the threads for file operations are used.
    manager
        Of the space.
    files
        The paths of the store's blocks.
    setting_aside
        Held while blocks are moved to quarantine by their names, which may be good ones' soon after.
    damaged
        Files that were no blocks when they were counted last.
    """

    def __init__(
        self,
        config: StoreConfig,
        layout: BlockLayout,
        backends: list[Backend],
        seeds: U64,
        known: KnownBlocks,
        *,
        encoded: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._layout = layout
        self._encoded = encoded
        self._on_progress = on_progress
        self._backends = [backend for backend in backends if not backend.error]
        self._seeds = seeds
        self._known = known
        self._positions = [position for position, backend in enumerate(backends) if not backend.error]
        self._place = np.full(len(backends), -1)
        self._place[self._positions] = np.arange(len(self._positions))
        self.in_transfer: Callable[[], list[U8]] = list
        self.transfer: Transfer
        self.damaged = 0
        self.setting_aside = asyncio.Lock()
        self._removals: set[asyncio.Future[int]] = set()
        places = [SpacePlace(one.root.parent, one.root, one.owner, one.fresh) for one in self._backends]
        fingerprint = config.namespace_fingerprint()
        self.manager = SpaceManager(SpaceLimits.of(config), places, fingerprint, self, config.hot_blocks_max)
        self.files = BlockFiles(backends, self._removed, fingerprint, layout.file_bytes)

    # ---- room for blocks, whose files take `nbytes`, int64, shape (n,)

    async def reserve(self, backend: I64, nbytes: I64, patience_s: float) -> Bools:
        """Reserve room for blocks on their backends: bool, shape (n,): which of them got it."""
        granted = np.ones(len(backend), dtype=np.bool_)
        places = self._place[backend]
        for place, size in dict.fromkeys(zip(places.tolist(), nbytes.tolist(), strict=True)):
            if place >= 0:
                rows = np.flatnonzero((places == place) & (nbytes == size))
                got = await self.manager.reserve_soon(place, size, len(rows), patience_s)
                granted[rows[got:]] = False
        return granted

    def commit(self, backend: I64, nbytes: I64) -> None:
        """Say that reserved blocks have got their names."""
        self._each(backend, nbytes, self.manager.commit)

    def release(self, backend: I64, nbytes: I64) -> None:
        """Give back the room of blocks whose files are gone, or never were."""
        self._each(backend, nbytes, self.manager.release)

    def no_space(self, backend: I64) -> None:
        """Say that the disks of these blocks are full."""
        for place in np.unique(self._place[backend]).tolist():
            if place >= 0:
                self.manager.no_space(place)

    def _each(self, backend: I64, nbytes: I64, account: Callable[[int, int], None]) -> None:
        places = self._place[backend]
        for place in np.unique(places).tolist():
            if place >= 0:
                account(place, int(nbytes[places == place].sum()))

    def is_block(self, size: I64) -> Bools:
        """Tell of files by their sizes whether they can be blocks, which encoded ones of many sizes can."""
        layout = self._layout
        if not self._encoded:
            return np.asarray(size == layout.file_bytes)
        pages = size % HEADER_ALIGN == 0
        return np.asarray(pages & (size > layout.header_bytes) & (size <= layout.file_bytes))

    def _removed(self, position: int, nbytes: int) -> None:
        place = int(self._place[position])
        if place >= 0:
            self.manager.removed(place, nbytes)

    # ---- ucm_async.space.SpaceUser

    def busy(self, ids: U8) -> Bools:
        """See `SpaceUser.busy`: blocks that are being read, and those that cannot be reached."""
        busy = self.places(ids) < 0
        return np.asarray(busy | ids_among(ids, self.in_transfer()))

    def places(self, ids: U8) -> I64:
        """See `SpaceUser.places`."""
        return np.asarray(self._place[choose_backend(ids, self._seeds)])

    def shortage(self) -> int:
        """See `SpaceUser.shortage`: a file a block has no reason of its own."""
        return 0

    async def remove(self, ids: U8) -> int:
        """See `SpaceUser.remove`. What was begun goes on and is accounted for, though the call be cancelled."""
        removal = asyncio.ensure_future(self._remove(ids.copy()))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        return await asyncio.shield(removal)

    async def removals_done(self) -> None:
        """Wait for what cancelled calls have left under way; what does not come to its turn by then is given up."""
        if self._removals:
            _, late = await asyncio.wait(self._removals, timeout=REMOVALS_S_MAX)
            for removal in late:
                removal.cancel()

    async def _remove(self, ids: U8) -> int:
        self._known.removed(ids)
        async with self.manager.changing():
            freed = await self.files.unlink(ids, choose_backend(ids, self._seeds), self.transfer.pool)
        self._known.removed(ids)
        return int(freed[freed > 0].sum())

    async def purge(self) -> int:
        """See `SpaceUser.purge`: what is in quarantine."""
        freed = 0
        for position, backend in zip(self._positions, self._backends, strict=True):
            names = await asyncio.to_thread(backend.system.names, backend.root / QUARANTINE)
            ids = _ids_of([name for name in names if _BLOCK_NAME.fullmatch(name)])
            if len(ids):
                async with self.manager.changing():
                    sizes = await self.files.purge(ids, np.full(len(ids), position), self.transfer.pool)
                freed += int(sizes[sizes > 0].sum())
        return freed

    async def count(self, place: int, owners: frozenset[str]) -> tuple[int, int]:
        """See `SpaceUser.count`."""
        backend = self._backends[place]
        unfinished = await asyncio.to_thread(backend.reclaim, owners)
        stored = self.damaged = 0
        directories = (*HOMES, QUARANTINE)
        for start in range(0, len(directories), DIRECTORIES_AT_ONCE):
            names = await asyncio.to_thread(_list, backend, directories[start : start + DIRECTORIES_AT_ONCE])
            if names:
                sizes = await self._sizes(place, names)
                unseen = sizes[(sizes < 0) & (sizes != -errno.ENOENT)]
                if len(unseen):
                    raise OSError(-int(unseen[0]), os.strerror(-int(unseen[0])), str(backend.root))
                stored += int(sizes[sizes > 0].sum())
                damaged = [n for n, size in zip(names, sizes.tolist(), strict=True) if not self._is_block(n, size)]
                self.damaged += len(damaged)
                for name in damaged[:10]:
                    _log.warning("%s: %s is no block", backend.root, name)
            if self._on_progress is not None:
                done = min(start + DIRECTORIES_AT_ONCE, len(directories))
                self._on_progress("directories counted", done, len(directories))
        return stored, unfinished

    def _is_block(self, name: str, size: int) -> bool:
        home, _, rest = name.partition("/")
        return home == QUARANTINE or (bool(self.is_block(np.array(size))) and _BLOCK_NAME.fullmatch(rest) is not None)

    async def _sizes(self, place: int, names: list[str]) -> I64:
        longest = max(map(len, names))
        paths = np.zeros((len(names), longest + 1), dtype=np.uint8)
        paths[:, :longest] = np.array([name.encode() for name in names]).view(np.uint8).reshape(len(names), -1)
        backend = np.full(len(names), self._positions[place])
        return await self.files.stat_paths(paths, backend, self.transfer.pool)

    def walk(self, place: int) -> Iterator[tuple[U8, F64]]:
        """See `SpaceUser.walk`."""
        backend = self._backends[place]
        for number, home in enumerate(HOMES):
            names = [name for name in backend.system.names(backend.root / home) if _BLOCK_NAME.fullmatch(name)]
            about = [backend.system.size_and_time(backend.root / home / name) for name in names]
            ids = _ids_of(names)
            times = np.array([one[1] if one is not None else -1.0 for one in about])
            there = (times >= 0) & (subdirectories(ids) == number) if len(ids) else np.zeros(0, dtype=np.bool_)
            yield np.ascontiguousarray(ids[there]), times[there]


def _list(backend: Backend, directories: tuple[str, ...]) -> list[str]:
    return [f"{one}/{name}" for one in directories for name in backend.system.names(backend.root / one)]


def _ids_of(names: list[str]) -> U8:
    return np.frombuffer(bytes.fromhex("".join(names)), dtype=np.uint8).reshape(-1, BLOCK_ID_BYTES)
