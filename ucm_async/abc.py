"""The contracts between the rooms: what an engine and a stage must do, and what a batch offers to a stage.

`ucm_async.testing` has a conformance suite for each of them.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy.typing as npt

from .types import I64, U8, U64, Bools, Durability, Reasons, Status

if TYPE_CHECKING:
    from .coding import EncodedRows
    from .config import StoreConfig
    from .errors import StoreError

__all__ = ["AsyncResource", "Batch", "Engine", "Lent", "Lower", "OnProgress", "SmallLoad", "Stage"]

OnProgress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and of how much. Any thread may call it; what it raises ends the work."""


class AsyncResource(ABC):
    """Something that must be closed, by ``await aclose()`` or by leaving its ``async with`` block."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was accepted, then free everything. Idempotent."""

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class Engine(AsyncResource):
    """Runs batches of packed requests (`ucm_async.engines.requests`) for one event loop.

    Attributes
    ----------
    name
        As in the configuration key ``io_engine``.
    """

    name: ClassVar[str]

    @abstractmethod
    def submit(self, requests: npt.NDArray[Any], chunk: int = 1) -> asyncio.Future[None]:
        """Start a batch of chains; the one future is done when every request of it has its ``result``.

        Parameters
        ----------
        requests
            C-contiguous array of ``REQUEST``, shape (n,). It belongs to the engine until the future is done;
            ``result`` may be read at any time and is ``PENDING_RESULT`` until that request is in.
        chunk
            Length of a chain: so many consecutive requests run one after another, and the links, checksums and
            conditions in them refer to their own chain. Different chains of a batch run side by side. A chain runs to
            its end whatever fails in it. Shorter chains are padded with ``OP_NOP``; the last one may be shorter.

        Returns
        -------
        asyncio.Future
            Done with None; never with an exception for a failed request (that is a ``result``). Cancelling the future
            does not cancel the batch: whoever owns the memory must still wait for its completion.

        Raises
        ------
        StoreClosedError
            The engine was closed.

        Notes
        -----
        Call it on the engine's loop only. It never waits: what exceeds the engine's bounds is kept in order inside
        and submitted later.
        """

    def submit_small(self, requests: npt.NDArray[Any], chunk: int, on_done: Callable[[], None]) -> bool:
        """Start reads that are over soon, with a call instead of a future: the short way for one small block.

        Parameters
        ----------
        requests, chunk
            As for `submit`. What is not I/O may run on the loop itself, so it must be little: some 128 KiB of copies,
            and opens with ``FLAG_CACHED`` only.
        on_done
            Called on the loop when the batch is done. It must not raise.

        Returns
        -------
        bool
            False if the engine has no short way now; then nothing was started.
        """
        return False

    @abstractmethod
    def statistics(self) -> Mapping[str, Any]:
        """Return plain counters: at least ``requests``, ``batches``, ``bytes``, ``in_flight``."""


class Batch(Protocol):
    """Slices that a lane hands to its stage as one piece of work. A row is a shard, or a whole block.

    Attributes
    ----------
    ids
        uint8, shape (n, 16).
    shards
        int64, shape (n,): index of the shard, or -1 for a whole block.
    addresses
        uint64, shape (n, k): where the k pieces of each row lie in memory.
    piece_sizes
        int64, shape (k,): bytes of each piece; their sum is the row's size.
    gates
        uint64, shape (n,): for ``REQUEST.gate``; the gate of the task that each row belongs to.
    direct
        True if the kernel may read and write `addresses` itself (registered memory, or a stage's own slots).
    durability
        Of a dump.
    encoded
        None for a caller's bytes. Else the stage above has encoded what it dumps, or will decode what it loads, and
        only a stage with `Stage.takes_encoded` sees such a batch; see `Lower.dump_encoded` and `Lower.load_encoded`.
    """

    ids: U8
    shards: I64
    addresses: U64
    piece_sizes: I64
    gates: U64
    direct: bool
    durability: Durability
    encoded: EncodedRows | None

    def __len__(self) -> int: ...

    def live(self) -> Bools:
        """Bool, shape (n,): rows whose task still waits for them. The others may be skipped."""

    def patience_s(self) -> float:
        """Seconds until the nearest deadline of the batch; may be negative or infinite."""

    def when_hurried(self, call: Callable[[], None]) -> None:
        """Call `call` whenever a deadline of the batch moves closer, or a task of it settles with rows missing."""

    def report(self, rows: npt.NDArray[Any], status: Status | U8, error: StoreError | Reasons | None = None) -> None:
        """Settle `rows` (int indexes or bool mask) with one `status`, or one each. The first report of a row counts.

        `error` tells the reason of their failure; or of some of them, each by its position among these rows.
        """


class SmallLoad(Protocol):
    """A slice on the short way: what `Stage.begin_load` needs of it."""

    @property
    def ids(self) -> U8:
        """As in `Batch`."""

    @property
    def shards(self) -> I64:
        """As in `Batch`."""

    @property
    def addresses(self) -> U64:
        """As in `Batch`."""

    @property
    def piece_sizes(self) -> tuple[int, ...]:
        """Bytes of each piece of a row."""

    @property
    def gate(self) -> int:
        """For ``REQUEST.gate``."""

    def succeed(self) -> None:
        """Report every row as OK."""


class Lent(Protocol):
    """Blocks that a stage lends in its own memory.

    Attributes
    ----------
    views
        For each id a read-only view of its block, None where it cannot be had.
    """

    views: list[memoryview | None]

    def release(self) -> None:
        """Take the blocks back, and release the views. Called once.

        Raises
        ------
        BufferError
            Somebody still has an export of a view. The blocks are taken back all the same.
        """


class Lower(Protocol):
    """What a stage sees of the stage below it: the same verbs, behind bounded inboxes.

    A cancelled `load` or `dump` ends only when nothing below touches the memory any more.
    """

    async def load(self, ids: U8, shards: I64, addresses: U64, piece_sizes: I64) -> tuple[U8, Reasons]:
        """Load into memory that the library owns; returns a status each row, and reasons, when all have settled."""

    async def dump(
        self, ids: U8, shards: I64, addresses: U64, piece_sizes: I64, durability: Durability
    ) -> tuple[U8, Reasons]:
        """Dump from memory that the library owns; returns a status each row, and reasons, when all have settled."""

    async def load_encoded(self, ids: U8, addresses: U64, row_bytes: int) -> tuple[U8, EncodedRows, Reasons]:
        """Load whole blocks as they are stored, into memory that the library owns.

        Parameters
        ----------
        ids
            uint8, shape (n, 16), each once.
        addresses
            uint64, shape (n, 1), page-aligned: memory of `row_bytes` for each block, as long as one that did not
            shrink, rounded up to whole pages.

        Returns
        -------
        status
            uint8, shape (n,).
        encoded
            How to decode the rows that are OK, (n, shards). Their checksums are not compared yet: who decodes does
            that in the same pass, and calls `set_aside` for what is bad.
        reasons
            Why rows failed, where there is more to say than the status.
        """

    async def dump_encoded(
        self, ids: U8, shards: I64, addresses: U64, row_bytes: int, encoded: EncodedRows, durability: Durability
    ) -> tuple[U8, Reasons]:
        """Dump encoded rows from memory that the library owns.

        Parameters
        ----------
        ids, shards
            As of `Batch`, each once: whole blocks, or single shards.
        addresses
            uint64, shape (n, 1), page-aligned: `row_bytes` for each row, of which no more is written than `encoded`
            says, up to the end of a page.
        encoded
            Shape (n, shards) for whole blocks, (n, 1) for shards.

        Returns
        -------
        status, reasons
            When all have settled, as of `load_encoded`. A shard whose codec and parameters do not fit under one header
            with those of its block that are in is an IO_ERROR with errno `ucm_async.coding.MIXED`; stored as it is,
            without a codec, it fits.
        """

    async def set_aside(self, ids: U8) -> None:
        """See `Stage.set_aside`."""

    async def lookup(self, ids: U8) -> Bools:
        """See `Stage.lookup`."""

    async def holds(self, ids: U8) -> Bools:
        """See `Stage.holds`."""

    async def lookup_on_prefix(self, ids: U8) -> int:
        """See `Stage.lookup_on_prefix`."""

    async def prefetch(self, ids: U8) -> None:
        """See `Stage.prefetch`."""

    async def delete(self, ids: U8) -> None:
        """See `Stage.delete`."""

    async def flush(self) -> Mapping[bytes, StoreError]:
        """See `Stage.flush`."""


class Stage(AsyncResource):
    """One layer of the pipeline: what it does with a batch, told as coroutines.

    A stage is made with its configuration and the stage below (None at the bottom), opened once, and then driven by
    an operator, several batches at a time. It must settle every row of a batch before `load` or `dump` returns; rows
    left over are settled as IO_ERROR.

    Attributes
    ----------
    name
        As in ``store_pipeline``.
    needs_lower
        True if the stage cannot be the last one; False if it must be; None if it can be both.
    encodes
        True if the stage hands encoded rows to the one below.
    takes_encoded
        True if the stage stores encoded rows as they are, whose batches have an `encoded` part.
    above_encodes
        Set before `open`: whether the stage above hands down encoded rows.
    on_progress
        Set before `open`, which tells it how far work is that takes long; None if nobody wants to know.
    short_way_bytes_max
        Larger slices are not offered to `begin_load`. The default is what can be checked and copied on the loop.
    """

    name: ClassVar[str]
    needs_lower: ClassVar[bool | None] = False
    encodes: ClassVar[bool] = False
    takes_encoded: ClassVar[bool] = False
    above_encodes: bool = False
    on_progress: OnProgress | None = None
    short_way_bytes_max: int = 128 << 10

    def __init__(self, config: StoreConfig, lower: Lower | None) -> None:
        self.config = config
        self.lower = lower

    @abstractmethod
    async def open(self) -> None:
        """Get ready, on the running loop. A failure raises; nothing stays behind then."""

    @abstractmethod
    async def load(self, batch: Batch) -> None:
        """Bring the rows of `batch` and report each. Failures are reports, not exceptions."""

    def begin_load(self, one: SmallLoad, otherwise: Callable[[], None]) -> bool:
        """Start a small load at once, without a worker and without waiting: the short way of an idle lane.

        Parameters
        ----------
        one
            A slice of few rows, all of its task.
        otherwise
            Called, in place of a report, if the load must go the ordinary way after all; that way also finds out why.

        Returns
        -------
        bool
            False if the stage does not take it; then nothing was started.
        """
        return False

    @abstractmethod
    async def dump(self, batch: Batch) -> None:
        """Take the rows of `batch` and report each, when it has the batch's durability."""

    @abstractmethod
    async def lookup(self, ids: U8) -> Bools:
        """Tell for each id, shape (n, 16), whether its whole block is stored here or below."""

    async def holds(self, ids: U8) -> Bools:
        """Tell which blocks, uint8 (n, 16), need not be dumped again: as `lookup`, but worth a promise.

        Whoever leaves out a dump because a block is there asks this. It looks twice where a crash of the machine may
        have left a name without its bytes.
        """
        return await self.lookup(ids)

    async def lookup_on_prefix(self, ids: U8) -> int:
        """Index of the last block of the longest stored prefix of `ids`, -1 if none."""
        found = await self.lookup(ids)
        return int(found.argmin()) - 1 if not found.all() else len(found) - 1

    async def prefetch(self, ids: U8) -> None:
        """Bring blocks into the fastest stage. A hint: never an error."""
        return None

    async def lease(self, ids: U8, deadline: float) -> Lent | None:
        """Lend whole blocks where they lie in the stage's memory, after loading those that are not there.

        Parameters
        ----------
        ids
            uint8, shape (n, 16); may repeat.
        deadline
            Time of the running loop, in seconds, until which it may wait; may be infinite.

        Returns
        -------
        Lent or None
            None if the stage has no memory to lend: then the store loads a copy.
        """
        return None

    @abstractmethod
    async def delete(self, ids: U8) -> None:
        """Forget blocks, here and below. Unknown ids are fine."""

    async def set_aside(self, ids: U8) -> None:
        """Put blocks out of sight that the stage above found to be corrupt; by default, delete them."""
        await self.delete(ids)

    async def flush(self) -> Mapping[bytes, StoreError]:
        """Wait until what was accepted before has its durability; block id -> why not, for those that failed."""
        return {}

    async def setup(self, config: StoreConfig) -> None:
        """Take over what may change in a running store (``io_engine``)."""
        self.config = config

    @abstractmethod
    def statistics(self) -> Mapping[str, Any]:
        """Return plain, JSON-ready counters."""
