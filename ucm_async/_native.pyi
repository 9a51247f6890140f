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
CODING_BYTES: int  # sizeof(struct coding)

# BlockTable.claim: what became of each id.
CLAIM_NONE: int  # no slot is free, and the search for one to evict ended within its bound: go round the cache
CLAIM_HIT: int  # READY, leased to this process
CLAIM_MINE: int  # this process fills the slot: publish() or fail() it
CLAIM_THEIRS: int  # somebody (perhaps this process) fills it: watch() slot and generation
CLAIM_BUSY: int  # the table was locked for longer than the bound: go round the cache, or try again later
# BlockTable.watch: how a slot is now. From WATCH_FAILED on it is WATCH_FAILED + reason.
WATCH_GONE: int  # another generation, or whoever filled it died: claim again
WATCH_FILLING: int
WATCH_READY: int  # and stored below
WATCH_DIRTY: int  # READY, but not stored below yet
WATCH_FAILED: int
REASON_MAX: int  # largest `reason` of BlockTable.fail
TABLE_VERSION: int  # of the layout: what BlockTable.describe()["version"] must be
PROCESSES_MAX: int  # processes that can be in one table
TABLE_USER_OFFSET: int  # bytes of a table's memory that it leaves to its user, from here ...
TABLE_USER_BYTES: int  # ... as many; create=True does not touch them

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

    def __init__(self, length: int, fd: int = -1, huge: bool = True, populate: bool = True) -> None:
        """Map `length` bytes: anonymous (fd -1; MADV_HUGEPAGE, then populate), or shared from offset 0 of `fd` (touch each 2 MiB, then MADV_COLLAPSE).

        Without `populate` nothing is faulted in yet; see `populate`.

        Prefaults without the GIL. Raises OSError where mmap fails or the pages cannot be had (ENOSPC: the file system of `fd` is full;
        ENOMEM), ValueError where `length` is not positive or the file is shorter.
        """
    address: int
    length: int
    page_mode: str  # "huge", "partly huge" or "4k", as found after prefaulting (mincore-free: from MADV results and smaps where cheap)
    def populate(self, offset: int, length: int, /) -> None:
        """Fault in `length` bytes from `offset` on, a multiple of 2 MiB: what takes long can be done in steps. Errors as of the constructor; ValueError outside, or once closed."""
    def close(self) -> None:
        """Unmap. Raises BufferError while exported."""
    def __buffer__(self, flags: int, /) -> memoryview: ...

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

@final
class LoadChains:
    """Writes the chains that load blocks, one row of each, and looks at what became of them. A batch a call; pure arithmetic on arrays.

    A chain of a row is: a first step, 1 or 2 reads, CHECKSUM of the header, a COPY from the slot (a CHECKSUM of the pieces) for each run of
    the row, a last step. The first and the last are left to the caller, as zeros. A run is a row of an int64 array of 5 columns: offset in the row, length,
    piece, offset in the piece, 1 where it continues the shard of the run before.

    Arrays that do not fit together raise ValueError, and nothing was written.
    """

    def __init__(self, header: Buffer, header_bytes: int, shard_bytes: int, block_bytes: int, gap: int) -> None:
        """`header` is one without id and checksums; `gap` bytes between it and a row are read along rather than skipped. ValueError where the sizes are no layout."""
    def reads(self, shards: Buffer, direct: bool, /) -> int:
        """How many reads a chain needs for rows `shards` (int64, -1 for a whole block); `direct`: into the caller's memory."""
    def write(
        self,
        table: Buffer,
        wanted: Buffer,
        vectors: Buffer | None,
        shards: Buffer,
        bases: Buffer,
        addresses: Buffer,
        lengths: Buffer,
        gates: Buffer,
        runs: Buffer,
        /,
    ) -> None:
        """Fill in `table` (REQUEST, n x steps), `wanted` (int64, n x reads: bytes that each must bring) and `vectors` (iovec, n x (1 + pieces); None: reads go to the slots).

        `bases` (uint64, n): each row's slot, or room for its header. `addresses` (uint64, n x pieces), `lengths` (int64) of the pieces, `gates` (uint64, n).
        """
    def all_good(
        self, table: Buffer, wanted: Buffer, ids: Buffer, shards: Buffer, bases: Buffer, runs: Buffer, /
    ) -> bool:
        """Whether in every chain that has run the reads brought what they should, the header is the one of ids[i], and its checksums are those that were computed."""

@final
class CodecContext:
    """Memory for encoding and decoding in one thread at a time: a second thread gets RuntimeError, never a crash.

    It works through arrays of ``CODING`` (`ucm_async.coding`) without the GIL and sets each ``result``: bytes written, or a negative
    errno (-EBADMSG a payload that does not decode, -EINVAL parameters that the codec cannot use or CODING_BEHIND without a coding before it, -ENOBUFS a target shorter than the
    source or too little `lossy_bytes`, -EMSGSIZE more than 2 GiB, -ENOSYS no such codec here, -ECANCELED a closed gate). A payload may be
    anything: no byte outside of source and target is touched. An array that is no multiple of CODING_BYTES raises ValueError.
    The gate, where there is one, is held for 128 KiB at most.
    """

    def __init__(self, lossy_bytes: int = 0, wide: bool = True) -> None:
        """`lossy_bytes` is what a lossy codec with an entropy coder needs: the bytes that it stores without one. `wide` False leaves AVX2 out, for tests."""
    def encode(self, codings: Buffer, /) -> None:
        """Encode source to target; `codec` becomes RAW where a shard did not shrink, and what AUTO chose."""
    def decode(self, codings: Buffer, /) -> None:
        """Decode source to target, which is written only, and only as far as ``target_length``."""
    nbytes: int
    wide: bool  # whether it uses AVX2

@final
class BlockTable:
    """Which block is in which slot of a cache, for all processes that map the same memory.

    A slot is EMPTY, FILLING, READY or FAILED (and, between them, EVICTING; or ORPHAN: dropped, and still leased by somebody). One
    64-bit word a slot holds its state, a generation and a bit for each process that holds it, so leases, hits and publishing are lock-free. What finds or
    frees slots (claim, join, leave, reap) takes one robust mutex, a few microseconds at a time, and waits for it a bounded time. The process that dies inside it is
    followed by one that rebuilds index and lists from the slots. Ids: C-contiguous, 16 bytes each. `slots` arrays are int64, -1 where there is none; such
    elements are skipped wherever slots are an argument.

    Thread-safe. Calls with more than a few ids, and those that copy, release the GIL. In a forked child every call raises RuntimeError.
    """

    def __init__(self, memory: Buffer, slots: int, policy: str = "s3fifo", create: bool = False) -> None:
        """Use the first ``bytes_needed(slots)`` bytes of `memory` (writable, aligned to 64 bytes, shared or private), which stay exported.

        `create` formats it, whatever is there: nobody else may use it meanwhile (hold a lock), though others may try to attach. `policy`: "s3fifo", "sieve", "lru" or "fifo".

        Raises ValueError where the memory is too small or holds a table of another version, size or policy (both are named), BlockingIOError where it holds
        none yet, or one that is being formatted (or whose formatting ended early).
        """
    @staticmethod
    def bytes_needed(slots: int, /) -> int:
        """Bytes of memory for a table of `slots` slots (1 ... 2**28), a multiple of 4096."""
    @staticmethod
    def describe(memory: Buffer, /) -> dict[str, Any]:
        """What the header in the first 4096 bytes says, nothing of it checked: magic (bool), ready (bool), version, slots, policy ("" if unknown)."""
    def set_arena(self, memory: Buffer, slot_bytes: int, /) -> None:
        """Where the slots' bytes are: slot i at ``i * slot_bytes`` of `memory`, which stays exported. Once, before copy_out and gather. ValueError if it is too small."""
    def join(self, pid: int, start_time: int, /) -> int:
        """Enter the process table; returns the number there. OSError: EUSERS when all PROCESSES_MAX are taken, ETIMEDOUT (TimeoutError) when the table stays locked for a second."""
    def leave(self) -> int:
        """Give back everything this process holds (what it fills becomes EMPTY, what it owes to the stage below is dropped); returns how many others are in. TimeoutError as join; then it is still in. Idempotent."""
    def processes(self) -> list[tuple[int, int, int]]:
        """(number, pid, start_time) of each, also of those whose reaping is not finished."""
    def reap(self, number: int, /, pid: int = 0, start_time: int = 0, rest_s: int = 0) -> int:
        """Take back what a dead process holds, and its number; returns how many slots changed. -1: not finished since the table was locked, call again. That it is dead, with all of its threads (one may still be in a read that ends in a slot), is for the caller to know.

        With `pid` and `start_time`, as processes() told them, only if the number is still that process': another one may have reaped it meanwhile, and a third, alive, have the number. What it was filling is given to nobody for `rest_s` seconds (0 ... 3600), since a read that the kernel still has may end there."""
    def repair(self) -> None:
        """Rebuild index and lists from the slots, and clear what belongs to no process: for a table whose processes all crashed. TimeoutError as join."""
    def probe(self, ids: Buffer, out: Buffer, /) -> int:
        """out[i] (uint8) = 1 where ids[i] is READY, else 0. No lease, no access counted. Returns how many are."""
    def prefix(self, ids: Buffer, /) -> int:
        """Length of the longest run ids[0..k) that is READY."""
    def lease(self, ids: Buffer, slots: Buffer, /) -> int:
        """Lease what is READY: slots[i], or -1. Returns how many are. Each element is one lease, to be released once."""
    def claim(self, ids: Buffer, slots: Buffer, states: Buffer, generations: Buffer, /) -> None:
        """For each id: a lease (CLAIM_HIT), a slot to fill (CLAIM_MINE), whom to watch (CLAIM_THEIRS), or none (CLAIM_NONE, CLAIM_BUSY). Of equal ids the second may be THEIRS to the first.

        slots (int64, -1 for NONE and BUSY), states (uint8), generations (uint32) are filled in. HIT and MINE count as one lease of the slot each.
        """
    def publish(self, slots: Buffer, dirty: bool = False, keep_lease: bool = False, /) -> None:
        """FILLING (by this process) -> READY; what was written before is visible to who sees it. `dirty`: not stored below, never evicted until clean(). Dropped meanwhile: it is never visible."""
    def fail(self, slots: Buffer, reason: int, /) -> None:
        """FILLING (by this process) -> FAILED with `reason` (0 ... REASON_MAX), which watch() tells until the slot is used again."""
    def release(self, slots: Buffer, /) -> None:
        """Give leases back. ValueError where this process holds none; the elements before it are released then."""
    def watch(self, slots: Buffer, generations: Buffer, out: Buffer, /) -> None:
        """out[i] (uint8) = WATCH_* of slots[i] if it still has generations[i] (uint32)."""
    def clean(self, slots: Buffer, /) -> None:
        """Leased READY slots are stored below now."""
    def rename(self, slots: Buffer, ids: Buffer, states: Buffer, /) -> None:
        """Give slots that this process fills other ids: states[i] (uint8) = CLAIM_MINE. Where ids[i] is in another slot all stays as it was: CLAIM_HIT (READY; no lease) or CLAIM_THEIRS; CLAIM_BUSY as claim, CLAIM_NONE where the slot was dropped meanwhile. ValueError as release."""
    def drop(self, ids: Buffer, /) -> int:
        """Delete: no lookup finds them any more, and what is FILLING will not become READY. Slots still held are used again after the last release. Returns how many there were. Never fails for a locked table."""
    def copy_out(self, id: Buffer, offset: int, address: int, length: int, gate: int = 0, /) -> bool:
        """Lease, copy `length` bytes from `offset` of the slot to `address` (in pieces inside `gate`), release: True. False where it is not READY, or the gate is closed."""
    def gather(self, ids: Buffer, extents: Buffer, gate: int = 0, /) -> bool:
        """copy_out for several: extents (uint64, shape (k, 4)) are rows of (index into ids, offset in the slot, address, length). Nothing is copied unless all ids are READY."""
    def statistics(self) -> dict[str, int]:
        """slots, free, failed, used, leases (of this process), processes; and counted by all processes: hits, misses (of claim and lease), evictions, takeovers, repairs, busy."""
    def count_states(self) -> dict[str, int]:
        """Slots by state, and held, dirty: looks at every slot (about 10 ms a million)."""
    def entries(self) -> bytes:
        """A record of 32 bytes a slot: holders (uint64, a bit a process), id (16 bytes), generation (uint32), state, flags (1: dirty), frequency, list (uint8 each)."""
    slots: int
    policy: str
    number: int  # of this process in the process table, -1 outside
    published: int  # counts what watchers wait for (uint32)

@final
class Watcher:
    """A thread that waits for the next publish, fail, drop, clean or reap of any process, and tells the loop by an eventfd.

    Used like this, nothing is missed: ``arm()``, then ``table.watch(...)``; if something is still missing, wait until ``fileno()`` is readable, ``clear()``, and again.
    Thread-safe. In a forked child every call raises RuntimeError.
    """

    def __init__(self, table: BlockTable) -> None:
        """Starts the thread; `table` is joined, and stays alive as long as this. RuntimeError where it has a Watcher that is not closed."""
    def arm(self) -> None:
        """Make fileno() readable at the first change after now; once."""
    def disarm(self) -> None:
        """Do not, after all. (A change that came in between is told all the same.)"""
    def clear(self) -> None:
        """Make fileno() unreadable again."""
    def fileno(self) -> int: ...
    def close(self) -> None:
        """End the thread, close the descriptor. Idempotent; before ``table.leave()``."""

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

    Slots come in segments of `segment_slots` each (0: one of all), whose slots are all of one kind, 0 ... 31.
    """

    def __init__(self, memory: Buffer, slots: int, create: bool = False, segment_slots: int = 0) -> None:
        """A view of `memory`, aligned to 8, of which `bytes_needed(slots, segment_slots)` bytes are used; `create` formats it: all slots are ABSENT.

        Raises BlockingIOError where no table was made to the end, ValueError where it is another one (version, slots) or too small.
        Create under a lock that whoever attaches waits for, too.
        """
    @staticmethod
    def bytes_needed(slots: int, segment_slots: int = 0, /) -> int: ...
    def join(self, number: int, /) -> None:
        """Take slots under this number, 1 ... 255, which no other living user of the memory has."""
    def find(self, ids: Buffer, slots: Buffer, words: Buffer, stamp: int = 0, /) -> int:
        """slots[i] (int64) and words[i] (uint64) of ids[i], -1 and 0 where it is not STORED; returns how many are. A `stamp` (uint32) that is not 0 is noted in each."""
    def prefix(self, ids: Buffer, /) -> int:
        """Length of the longest run ids[0..k) that is STORED."""
    def words(self, slots: Buffer, words: Buffer, /) -> None:
        """words[i] = the word of slots[i] as it is now, 0 for -1."""
    def take(self, slots: Buffer, kind: int = 0, /) -> int:
        """FREE -> TAKEN, of this kind, lower ones first: fills in the first k of `slots` (int64) and returns k. RuntimeError before `join`."""
    def give(self, slots: Buffer, /) -> None:
        """TAKEN by us -> FREE. ValueError, and no change, where one was not taken by us."""
    def spoil(self, slots: Buffer, /) -> None:
        """TAKEN by us -> BAD."""
    def publish(self, slots: Buffer, ids: Buffer, out: Buffer, stamp: int = 0, /) -> None:
        """TAKEN by us -> STORED with ids[i]: out[i] (uint8) = 0. Another slot has the block: 1; the index has no room: 2; both stay TAKEN."""
    def withdraw(self, slots: Buffer, words: Buffer, out: Buffer, /) -> int:
        """STORED with this word still -> TAKEN by us: out[i] = 1, else 0; returns how many. Nobody finds them any more."""
    def add(self, first: int, count: int, kind: int = 0, /) -> None:
        """ABSENT -> FREE: whole segments, which are of this kind from then on."""
    def seize(self, first: int, count: int, /) -> int:
        """FREE, STORED or BAD -> TAKEN by us; returns how many of the range are not ours then."""
    def clear(self, first: int, count: int, /) -> None:
        """TAKEN by us -> ABSENT."""
    def repair(self, owner: int | None, /) -> int:
        """TAKEN by `owner`, who is dead -> FREE; returns how many. None: by anybody, and everything is counted anew; nobody else may use the table meanwhile."""
    def distrust(self, first: int, count: int, /) -> None:
        """What is in the slots of a range now, TAKEN or STORED, may never reach the medium."""
    def distrusted(self, slots: Buffer, out: Buffer, /) -> None:
        """out[i] (uint8) = 1 where that was said of what is in slots[i] still."""
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
