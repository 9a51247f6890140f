"""What a codec is, what it must know of a shard, and the memory it works in."""

from __future__ import annotations

import threading
from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

import numpy as np

from .... import coding as c
from ....coding import Codings
from ....errors import ConfigError
from ....native import CodecContext
from ....types import U8

__all__ = ["Codec", "Context", "Layout", "check_options", "parameters_of"]

T = TypeVar("T")

PARTS: Final = {"v": 0, "k": 1, "kv": 2}
ELEMENTS_MAX: Final = 2**32 - 1
ROWS_MAX: Final = 2**16 - 1
_NO_PARAMETERS: Final = (0,) * (c.PARAMETER_BYTES - 1)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the bytes of a shard are to be read.

    A shard is a row of parts of one size, each of keys or of values; a part is one or more tables of tokens and
    channels, C order, the channels of one token together. Lossless codecs need `dtype` only, and take any shard.

    Attributes
    ----------
    dtype : str
        As the configuration key ``dtype``.
    parts : {"kv", "k", "v"}
        Keys and values in turns, beginning with keys; or all the one or the other. Default "v".
    tokens, channels : int
        Of a table; `channels` is even. For a cache of shape (heads, tokens, head size) these are the last two, for
        (tokens, heads, head size) the tokens and the product of the others. Default 1 and 64: no layout, values in
        groups as they come.
    part_bytes : int
        Bytes of a part, a whole number of tables. Default: one table.

    Raises
    ------
    ConfigError
        A value is of the wrong kind, or they do not fit each other.
    """

    dtype: str = "bfloat16"
    parts: str = "v"
    tokens: int = 1
    channels: int = 64
    part_bytes: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in c.DTYPES:
            raise ConfigError(f"dtype: {self.dtype!r}, must be one of {', '.join(map(repr, c.DTYPES))}")
        if self.parts not in PARTS:
            raise ConfigError(f"parts: {self.parts!r}, must be one of {', '.join(map(repr, PARTS))}")
        for name in ("tokens", "channels", "part_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"{name}: {value!r}, must be a whole number")
        if not 1 <= self.tokens <= ROWS_MAX:
            raise ConfigError(f"tokens: {self.tokens}, must be 1 ... {ROWS_MAX}")
        if not 2 <= self.channels <= ROWS_MAX or self.channels % 2:
            raise ConfigError(f"channels: {self.channels}, must be an even number from 2 to {ROWS_MAX - 1}")
        table = self.tokens * self.channels * self.itemsize
        if not self.part_bytes:
            object.__setattr__(self, "part_bytes", table)
        if self.part_bytes % table or self.part_elements > ELEMENTS_MAX:
            raise ConfigError(f"part_bytes: {self.part_bytes}, must be a multiple of a table's {table} bytes")

    @property
    def dtype_number(self) -> int:
        """The element type as headers have it."""
        return c.DTYPES[self.dtype]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return c.DTYPE_BYTES[self.dtype_number]

    @property
    def part_elements(self) -> int:
        """Elements of a part."""
        return self.part_bytes // self.itemsize


class Context:
    """The memory that encoding and decoding need, for one thread at a time.

    Parameters
    ----------
    shard_bytes
        The longest raw shard that it will see.

    Attributes
    ----------
    native : CodecContext
        What the extension works in.
    scratch : numpy.ndarray
        uint8, shape (shard_bytes,): a shard on its way between two steps.

    Notes
    -----
    A second thread that uses it meanwhile gets a RuntimeError. It takes about half a megabyte, and twice `shard_bytes`,
    all touched at once: not for an event loop.
    """

    def __init__(self, shard_bytes: int) -> None:
        if not 0 <= shard_bytes <= c.SHARD_BYTES_MAX:
            raise ValueError(f"shard_bytes: {shard_bytes}, must be 0 ... {c.SHARD_BYTES_MAX}")
        self.shard_bytes = shard_bytes
        self.native = CodecContext(shard_bytes)
        self.scratch: U8 = np.ones(shard_bytes, np.uint8)  # zeros would be promised by the kernel, and not be there
        self._one = c.new_codings(1)
        self._tools: dict[Any, Any] = {}
        self._busy = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of memory, without what other packages allocate."""
        return self.native.nbytes + self.scratch.nbytes

    def tool(self, key: Any, make: Callable[[], T]) -> T:
        """Return the object of another package that belongs to this context; made when first asked for."""
        found: T | None = self._tools.get(key)
        if found is None:
            found = self._tools[key] = make()
        return found

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Keep other threads out, for codecs with steps outside of the extension."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("the context is in use by another thread")
        try:
            yield
        finally:
            self._busy.release()

    def run_one(
        self, codec: int, dtype: int, source: tuple[int, int], target: tuple[int, int], gate: int, *, encode: bool
    ) -> int:
        """Run one coding of the extension's; `source` and `target` are address and length. Returns its result."""
        one = self._one
        one[0] = (*source, *target, gate, codec, 0, (dtype, *_NO_PARAMETERS), 0, 0, 0)
        (self.native.encode if encode else self.native.decode)(one)
        return int(one["result"][0])


class Codec(ABC):
    """Makes shards smaller, and is told by its number and parameters how it did.

    Attributes
    ----------
    name
        As in the configuration key ``compress_codec``.
    number
        As in headers.
    lossless
        Whether every bit comes back.
    parameters
        16 bytes for headers: all that decoding needs to know.

    Notes
    -----
    Immutable and thread-safe. What does not shrink is stored raw, so a shard never takes more than its raw bytes.
    """

    name: ClassVar[str]
    number: ClassVar[int]
    lossless: ClassVar[bool] = True
    parameters: bytes

    def bound(self, raw_bytes: int) -> int:
        """Bytes that a shard of `raw_bytes` takes at most: as many."""
        return raw_bytes

    def encode(self, codings: Codings, context: Context) -> None:
        """Encode shards, without the GIL.

        Parameters
        ----------
        codings
            Array of ``CODING``, shape (n,), of which ``source``, ``source_length``, ``target``, ``target_length``,
            ``flags`` and ``gate`` are set; each target is at least as long as its source. The rest is filled in:
            ``codec`` and ``parameters`` are what headers must say, and ``result`` the stored length, or a negative
            errno, for which `failure_of` has words.
        context
            For the calling thread alone.
        """
        codings["codec"] = self.number
        codings["parameters"] = np.frombuffer(self.parameters, np.uint8)
        self._encode(codings, context)

    def _encode(self, codings: Codings, context: Context) -> None:
        context.native.encode(codings)

    @classmethod
    def decode(cls, codings: Codings, context: Context) -> None:
        """Decode shards of this codec, without the GIL; see `ucm_async.stages.compress.codecs.decode` for any codec.

        Never raises for a payload: what does not decode has ``result`` -EBADMSG.
        """
        context.native.decode(codings)

    def __repr__(self) -> str:
        return f"<codec {self.name!r} {self.parameters.hex()}>"


def parameters_of(layout: Layout, *rest: int) -> bytes:
    """Pack the element type and what follows it, a byte each."""
    return bytes((layout.dtype_number, *rest)).ljust(c.PARAMETER_BYTES, b"\0")


def check_options(codec: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuse options that a codec does not have."""
    for name in options:
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise ConfigError(f"codec {codec!r}: unknown option {name!r}; it {has}")
