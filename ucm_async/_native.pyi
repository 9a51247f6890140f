"""The C extension: raw system calls, copies and checksums. It knows nothing of stages, tasks or event loops.

Every call that submits, copies or waits releases the GIL. Arrays of requests are `ucm_async.engines.requests.REQUEST`.
The contexts (`ThreadPool`, `AioContext`, `UringContext`, `Driver`) share one contract, so that one adapter serves all:

- ``submit(requests, token, chunk=1)`` takes a batch of chains: `chunk` consecutive requests run one after another, and share what links,
  checksums and FLAG_IF_WELL refer to; different chains run side by side. A chain always runs to its end, whatever fails in it. It sets every ``result`` to PENDING_RESULT, keeps a buffer export of `requests` and a
  reference to `token` until the batch is done, and returns without waiting for completions. An empty array is done at once
  (its token comes with the next ``reap``, and the descriptor becomes readable).
- ``fileno()`` is an eventfd (non-blocking, close-on-exec), readable when at least one batch may be done.
- ``reap()`` clears the eventfd, drains completions (also when the eventfd read says EAGAIN), submits what waited for room, and
  returns the tokens of finished batches, each once, in order of completion.
- ``close()`` waits (without the GIL) until everything submitted has completed, then frees; tokens not yet reaped are
  returned by it as a list. Idempotent (then an empty list). A submit after it raises ValueError. Deallocation without close() does the same.
- A context is used from one thread at a time (a second thread gets RuntimeError, never a crash). The thread may change, and end.
- After ``close()``: ``reap()`` returns an empty list, ``fileno()`` raises ValueError. In a forked child every call raises RuntimeError;
  deallocation there frees what is the child's and leaves the parent's threads and rings alone.
- Arguments out of range raise ValueError (an array that is no multiple of REQUEST_BYTES or not aligned to 8 bytes, ``threads``, ``depth``,
  ``chunk``), a read-only or non-contiguous array BufferError or ValueError, what is no buffer TypeError. Nothing is submitted then.
- A data request whose gate is closed when its turn comes ends with -ECANCELED; one that has started is not stopped.
"""

from collections.abc import Sequence
from typing import Any, final

import numpy.typing as npt
from typing_extensions import Buffer as _PlainBuffer

Buffer = _PlainBuffer | npt.NDArray[Any]  # numpy declares its buffer protocol for 3.12 and later only

HAVE_CRC32C: bool  # the processor has the crc32 instruction
REQUEST_BYTES: int  # sizeof(struct request)

def crc32c(data: Buffer, value: int = 0, /) -> int: ...
def fence() -> None:
    """A full memory barrier: what this thread stored before is visible everywhere before it reads anything after.

    For memory that processes share without a lock: two that each store a word, call this, and read the other's word
    cannot both miss the other's.
    """

def execute(requests: Buffer, /) -> None:
    """Run a batch in the calling thread, in order, without the GIL. Every opcode."""

@final
class Gate:
    """Lets copies touch a caller's memory while it is open.

    A copying thread enters before each piece of at most 64 KiB and leaves after it. ``close()`` refuses further entries (those
    requests end with -ECANCELED) and returns when nobody is inside: microseconds. Idempotent, thread-safe.
    """

    address: int
    closed: bool
    def close(self) -> None: ...

@final
class Exports:
    """Buffer exports of a caller's memory, held until ``release()`` or deallocation."""

    def release(self) -> None: ...
    released: bool

def export_buffers(rows: Sequence[Any], writable: bool, addresses: Buffer, sizes: Buffer, /) -> Exports:
    """Take a C-contiguous buffer export of every object of `rows`, a flat sequence of n objects.

    `addresses` (uint64, n, writable) and `sizes` (uint64, n, writable) are filled in. On failure nothing stays exported, and the error's
    ``args`` are ``(index, why)``: TypeError (no buffer protocol), BufferError (read-only where writable is needed, not C-contiguous).
    """

@final
class ThreadPool:
    """Threads that run requests of every opcode without ever needing the GIL."""

    def __init__(self, threads: int, name: str = "ucm") -> None: ...
    def submit(self, requests: Buffer, token: object, chunk: int = 1, /) -> None:
        """Queue a batch; a free thread takes the next chain."""
    def reap(self) -> list[Any]: ...
    def fileno(self) -> int: ...
    def close(self) -> list[Any]: ...
    threads: int
    pending: int  # requests submitted and not finished
    bytes: int  # transferred and copied by the batches that were reaped
    errors: int  # their failed requests

@final
class AioContext:
    """Linux native AIO (io_submit with IOCB_FLAG_RESFD), driven by whoever calls ``submit`` and ``reap``.

    The kernel does transfers (OP_READ, OP_WRITE, OP_READV, OP_WRITEV). What else a chain holds is run by the caller, inside
    ``submit`` and ``reap``: no thread is waited for, so this is the quickest way for one or two small chains on an idle loop,
    and for those only. Give it nothing that may take its time: large copies, opens without FLAG_CACHED, fdatasync.
    With `chunk` 1 it takes transfers without flags, and others end with -EINVAL.
    """

    def __init__(self, depth: int, max_bytes: int = 0) -> None:
        """At most `depth` transfers (1 ... 32768), which is also how many chains are under way, and `max_bytes` bytes (0: no bound; one transfer always fits) are with the kernel; the rest waits here.

        Raises OSError: EAGAIN where the system's aio-max-nr is used up, ENOSYS or EPERM where native AIO is not to be had.
        """
    def submit(self, requests: Buffer, token: object, chunk: int = 1, /) -> None: ...
    def reap(self) -> list[Any]: ...
    def fileno(self) -> int: ...
    def close(self) -> list[Any]: ...
    depth: int
    bytes: int  # as of `ThreadPool`
    errors: int
    in_flight: int  # transfers with the kernel
    waiting: int  # requests of unfinished chains that are not with the kernel

@final
class UringContext:
    """io_uring over raw system calls. Everything else as AioContext."""

    def __init__(self, depth: int, max_bytes: int = 0, force_async: bool = False) -> None:
        """Bounds as AioContext. `force_async` sets IOSQE_ASYNC (buffered files).

        Raises OSError: ENOSYS, EPERM (seccomp, kernel.io_uring_disabled), or as io_uring_setup(2).
        """
    def register_memory(self, address: int, length: int, /) -> bool:
        """Make one range a registered buffer (READ/WRITE inside it become *_FIXED); False if the kernel refuses (RLIMIT_MEMLOCK ...). Once, before the first submit."""
    def submit(self, requests: Buffer, token: object, chunk: int = 1, /) -> None: ...
    def reap(self) -> list[Any]: ...
    def fileno(self) -> int: ...
    def close(self) -> list[Any]: ...
    depth: int
    bytes: int  # as of `ThreadPool`
    errors: int
    in_flight: int
    waiting: int

@final
class Driver:
    """Runs chains over a ring of its own, with no call from outside between their steps.

    One thread submits transfers and takes completions, so a kernel that blocks in submission (io_submit of writes that extend a file)
    delays the other transfers, and nobody else. `threads` helpers run what is no transfer. While one of them is held up (an open
    that waits), the others go on. What takes less time than waking a helper, that one thread does itself: opens of O_DIRECT files that
    need no disk, closes, copies and checksums of up to 128 KiB. Up to ``2 * (depth + threads)`` chains are under way, and so may have a file open.
    ``fileno()`` becomes readable once a batch is finished, not once a transfer is.
    """

    def __init__(
        self,
        ring: str,
        depth: int,
        max_bytes: int = 0,
        threads: int = 2,
        force_async: bool = False,
        name: str = "ucm",
    ) -> None:
        """`ring` is "aio" or "uring"; `depth`, `max_bytes`, `force_async` (not for aio) and errors as of those contexts. `name` is that of the threads."""
    def register_memory(self, address: int, length: int, /) -> bool:
        """As `UringContext.register_memory`; False for aio."""
    def submit(self, requests: Buffer, token: object, chunk: int = 1, /) -> None: ...
    def reap(self) -> list[Any]: ...
    def fileno(self) -> int: ...
    def close(self) -> list[Any]: ...
    depth: int
    bytes: int  # as of `ThreadPool`
    errors: int
    in_flight: int  # transfers with the kernel
    waiting: int  # requests of unfinished chains that are not with the kernel
    threads: int  # helpers

@final
class Mapping:
    """Memory for an arena: 2 MiB aligned, prefaulted, huge pages where the kernel gives them. Supports the buffer protocol (writable)."""

    def __init__(self, length: int, fd: int = -1, huge: bool = True) -> None:
        """Map `length` bytes: anonymous (fd -1; MADV_HUGEPAGE, then populate), or shared from offset 0 of `fd` (touch each 2 MiB, then MADV_COLLAPSE).

        Prefaults without the GIL. Raises OSError where mmap fails or the pages cannot be had (ENOSPC: the file system of `fd` is full;
        ENOMEM), ValueError where `length` is not positive or the file is shorter.
        """
    address: int
    length: int
    page_mode: str  # "huge", "partly huge" or "4k", as found after prefaulting (mincore-free: from MADV results and smaps where cheap)
    def close(self) -> None:
        """Unmap. Raises BufferError while exported."""

@final
class IdTable:
    """A bounded set-associative map from 16-byte ids to a non-zero uint64; forgets old entries when a set is full. Batch calls, no Python object an entry.

    Thread-safe: the GIL is the lock, and a large batch gives it up every 2048 ids, so it never holds it longer than tens of microseconds.
    What was looked up since its set was last full stays longer. About 32 bytes an entry of `capacity`, taken at once.
    """

    def __init__(self, capacity: int) -> None:
        """Room for `capacity` ids, of which one in twenty may be forgotten early; ``capacity`` tells the exact bound, a quarter larger."""
    def get(self, ids: Buffer, out: Buffer, /) -> int:
        """out[i] (uint64) = value of ids[i], 0 if absent. Returns how many were found."""
    def put(self, ids: Buffer, values: Buffer, /) -> None: ...
    def discard(self, ids: Buffer, /) -> int: ...
    def prefix(self, ids: Buffer, /) -> int:
        """Length of the longest run ids[0..k) that is present."""
    def clear(self) -> None: ...
    capacity: int
    def __len__(self) -> int: ...

def block_paths(ids: Buffer, out: Buffer, /) -> None:
    """out[i] (36 bytes) = ``xx/<32 hex digits>`` and a NUL: where the file of ids[i] lies (docs/design/format.md). ValueError where the lengths do not fit."""

def mix_ids(ids: Buffer, out: Buffer, /) -> None:
    """out[i] (uint64) = 64 well-mixed bits of ids[i]: ids may be consecutive numbers, or share most of their bytes. Errors as `block_paths`."""

@final
class SlotTable:
    """Which block is in which slot of a file, for all processes that map the same memory. Batch calls, no locks, no Python object an entry.

    A slot is ABSENT, FREE, TAKEN (somebody writes to its bytes), STORED or BAD. Its *word* changes whenever it comes to be or ceases to be STORED: who
    finds the same word after reading a slot's bytes has read what belongs to the id. A process may die between any two instructions; what it
    had taken comes back by `repair`. 32 bytes a slot and 16 for the index.
    """

    def __init__(self, memory: Buffer, slots: int, create: bool = False) -> None:
        """A view of `memory`, aligned to 8, of which `bytes_needed(slots)` bytes are used; `create` formats it: all slots are ABSENT.

        Raises BlockingIOError where no table was made to the end, ValueError where it is another one (version, slots) or too small.
        Create under a lock that whoever attaches waits for, too.
        """
    @staticmethod
    def bytes_needed(slots: int, /) -> int: ...
    def join(self, number: int, /) -> None:
        """Take slots under this number, 1 ... 255, which no other living user of the memory has."""
    def find(self, ids: Buffer, slots: Buffer, words: Buffer, stamp: int = 0, /) -> int:
        """slots[i] (int64) and words[i] (uint64) of ids[i], -1 and 0 where it is not STORED; returns how many are. A `stamp` (uint32) that is not 0 is noted in each."""
    def prefix(self, ids: Buffer, /) -> int:
        """Length of the longest run ids[0..k) that is STORED."""
    def words(self, slots: Buffer, words: Buffer, /) -> None:
        """words[i] = the word of slots[i] as it is now, 0 for -1."""
    def take(self, slots: Buffer, /) -> int:
        """FREE -> TAKEN, lower ones first: fills in the first k of `slots` (int64) and returns k. RuntimeError before `join`."""
    def give(self, slots: Buffer, /) -> None:
        """TAKEN by us -> FREE. ValueError, and no change, where one was not taken by us."""
    def spoil(self, slots: Buffer, /) -> None:
        """TAKEN by us -> BAD."""
    def publish(self, slots: Buffer, ids: Buffer, out: Buffer, stamp: int = 0, /) -> None:
        """TAKEN by us -> STORED with ids[i]: out[i] (uint8) = 0. Another slot has the block: 1; the index has no room: 2; both stay TAKEN."""
    def withdraw(self, slots: Buffer, words: Buffer, out: Buffer, /) -> int:
        """STORED with this word still -> TAKEN by us: out[i] = 1, else 0; returns how many. Nobody finds them any more."""
    def add(self, first: int, count: int, /) -> None:
        """ABSENT -> FREE."""
    def seize(self, first: int, count: int, /) -> int:
        """FREE, STORED or BAD -> TAKEN by us; returns how many of the range are not ours then."""
    def clear(self, first: int, count: int, /) -> None:
        """TAKEN by us -> ABSENT."""
    def repair(self, owner: int | None, /) -> int:
        """TAKEN by `owner`, who is dead -> FREE; returns how many. None: by anybody, and everything is counted anew; nobody else may use the table meanwhile."""
    def scan(self, first: int, states: Buffer, ids: Buffer, stamps: Buffer, /) -> None:
        """states[i] (uint8: 0 ABSENT, 1 FREE, 2 TAKEN, 3 STORED, 4 BAD), ids[i] and stamps[i] (uint32) of slot `first` + i. Without the GIL."""
    def next_sequence(self, count: int, /) -> int:
        """The first of `count` numbers in a row that nobody else gets."""
    def counts(self) -> dict[str, int]:
        """Slots by state; may be off by one for each process that died, until everything is repaired."""
    slots: int
    number: int

def io_setup_limit() -> tuple[int, int]:
    """(aio-nr, aio-max-nr) of the system; (-1, -1) where unknown."""
