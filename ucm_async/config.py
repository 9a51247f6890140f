"""The configuration of a store: every key, its default, and where it may come from."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from ._config_checks import CHECKS, wrong
from ._config_sources import read_source, split_keys
from .errors import ConfigError

__all__ = ["ENGINE_VARIABLE", "StoreConfig"]

ENGINE_VARIABLE: Final = "UCM_ASYNC_ENGINE"
"""Environment variable that forces ``io_engine``."""

FINGERPRINT_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Settings of one store; checked when made, unchangeable afterwards, picklable.

    `StoreConfig.load` makes one from a file or a mapping, and tells the nearest known key when one is unknown. Keys
    that mean the same as in the UCM project have the same name. Sizes named ``_gb`` are in GiB (2**30 bytes) and may be
    fractions.

    Attributes
    ----------
    block_size : int
        Bytes of a block. Required; it depends on the model (layers x KV heads x head size x 2 x tokens a block x bytes
        an element).
    shard_size : int
        Bytes of a shard, what one row of a ``load`` or ``dump`` moves; must divide `block_size`. Default: `block_size`,
        one shard a block.
    tensor_size : int or None
        Bytes of one tensor of a shard where all are alike; must divide `shard_size`. Rows may then be given as lists of
        buffers.
    tensor_size_list : tuple of int or None
        Bytes of each tensor of a shard where they differ; the sum must be `shard_size`. Not together with
        `tensor_size`.
    dtype : str
        Element type of the KV cache, for codecs: "bfloat16" (default), "float16", "float32", "float8_e4m3",
        "float8_e5m2", "int8", "uint8".
    namespace : str
        Who shares blocks with whom: same namespace, `block_size` and `shard_size`, same blocks. 1 to 256 characters;
        put the model, its precision and its parallelism in ("qwen3-8b/bf16/tp1"). Default "default".
    store_pipeline : str
        Stages from the fastest to the last, joined by "|". Default "Posix".
    storage_backends : tuple of str
        Directories of the last stage; blocks are spread over them by id. A string is one path or several joined by ":";
        a relative path is relative to the working directory. Default: none, which stages that store files refuse.
    timeout_ms : float
        Deadline in milliseconds of a ``load`` or ``dump`` that names none; 0 or None: no deadline. Default 30000.
    io_engine : str
        Who moves bytes between files and memory: "psync", "aio", "uring", or "auto" (default), which probes what works
        here. The environment variable ``UCM_ASYNC_ENGINE`` overrides it when a store is opened.
    io_direct : bool or "auto"
        O_DIRECT: "auto" (default) takes it where the file system does, True warns where it does not, False uses the
        page cache.
    io_depth : int
        Requests with the kernel at a time, for each direction (aio, uring), and 16 MiB at most. Default 128, below the
        depth of usual device queues: a submit into a full device queue blocks.
    io_threads : int
        Threads of the psync engine. Default 8.
    queue_number : int
        Inboxes of each lane; slices are spread over them round-robin. Default 4.
    queue_depth : int
        Slices an inbox holds; a full one slows its caller down. Default 64.
    slice_bytes : int
        Bytes above which a task is cut into further slices. Default 128 MiB.
    task_max : int
        Tasks under way at a time; the rows of one above that settle as BUSY. Default 4096.
    staging_buffer_gb : float
        Blocks that each lane holds at a time between disk and callers. Default 0.125 (128 MiB).
    unique_id : str
        Names the shared memory of a host: stores with the same one share a Cache stage, and must agree in `namespace`,
        `block_size`, `shard_size` and the Cache's keys. Default "": from the namespace.
    share_buffer_enable : bool
        Whether the Cache stage's memory is shared between the processes of the host. Default True.
    cache_buffer_capacity_gb : float
        Memory of the Cache stage. Default 1.0.
    cache_policy : str
        Whom the Cache stage evicts: "s3fifo" (default) and "sieve" resist scans; "lru" and "fifo" are for comparison.
    dump_behind_bytes : int
        Bytes of ``"cached"`` dumps that may wait for the stage below; a dump above that waits. 0 (default): a quarter
        of the Cache's memory.
    cache_shared_queue : bool
        Whether loads and dumps share one queue in the Cache stage, so that loads wait behind dumps. For comparison
        only. Default False.
    posix_capacity_gb : float
        Bytes the last stage, Posix or Slab, may occupy on disk, over all backends; 0 (default): no cap.
    namespace_quota_gb : float
        Bytes of these that this namespace may occupy; 0 (default): as many as it gets.
    space_watermark_gb : float
        Bytes that stay free on the file system of each backend: below, cold blocks are removed and dumps refused. 0
        (default): none.
    space_high : float
        Share of the capacity and of the quota above which cold blocks are removed, in small steps. Default 0.95.
    space_low : float
        Share at which that ends. Default 0.9.
    hot_blocks_max : int
        Blocks whose accesses are remembered, so that the coldest go first. Default 1048576; some 64 bytes each, in use.
    recover : str
        What becomes of files that are no block, found when they are counted after a crash: "quiet" (default) leaves
        them to the collector, "strict" refuses to open the store.
    compress_codec : str
        Codec of the Compress stage, with its options: "huffman", "int4:group_tokens=32". Default "auto": for each shard
        the lossless one that suits it. Any block can be read whatever is set.
    compress_threads : int
        Threads that encode, and as many that decode. Default 0: as many as there are processors for this process, at
        most 16.
    compress_parts : str
        What a shard is made of, for lossy codecs: "kv", parts of keys and of values in turns; "k" or "v", of these
        alone. Default "v".
    compress_tokens : int
        Tokens of a table: a part is one or more tables, C order. Default 1.
    compress_channels : int
        Channels of a table. Default 64; with one token: values in groups as they come.
    compress_part_bytes : int
        Bytes of a part. Default 0: one table.
    refuse_lossy : bool
        Whether blocks that were stored with loss, under another setting, are CORRUPT instead of loaded. Default False.
    partial_blocks_max : int
        Blocks of which some shards are dumped and others are not yet, at a time. Default 16384.
    known_blocks_max : int
        Block ids that this process remembers as stored, so that a lookup needs no disk. Default 262144.
    plugin_dirs : tuple of str
        Directories with stages of your own. Default: none.
    stage_options : mapping of str to mapping
        Options of stages that are not ours, by stage name. Default: none.
    ignored_keys : tuple of str
        Not a key: names of UCM's keys that were accepted and have no meaning here.

    Raises
    ------
    ConfigError
        A value has the wrong type, is out of range, or does not fit another one.
    """

    block_size: int
    shard_size: int = 0
    tensor_size: int | None = None
    tensor_size_list: tuple[int, ...] | None = None
    dtype: str = "bfloat16"
    namespace: str = "default"
    store_pipeline: str = "Posix"
    storage_backends: tuple[str, ...] = ()
    timeout_ms: float = 30000
    io_engine: str = "auto"
    io_direct: bool | Literal["auto"] = "auto"
    io_depth: int = 128
    io_threads: int = 8
    queue_number: int = 4
    queue_depth: int = 64
    slice_bytes: int = 128 << 20
    task_max: int = 4096
    staging_buffer_gb: float = 0.125
    unique_id: str = ""
    share_buffer_enable: bool = True
    cache_buffer_capacity_gb: float = 1.0
    cache_policy: str = "s3fifo"
    dump_behind_bytes: int = 0
    cache_shared_queue: bool = False
    posix_capacity_gb: float = 0
    namespace_quota_gb: float = 0
    space_watermark_gb: float = 0
    space_high: float = 0.95
    space_low: float = 0.90
    hot_blocks_max: int = 1 << 20
    recover: str = "quiet"
    compress_codec: str = "auto"
    compress_threads: int = 0
    compress_parts: str = "v"
    compress_tokens: int = 1
    compress_channels: int = 64
    compress_part_bytes: int = 0
    refuse_lossy: bool = False
    partial_blocks_max: int = 16384
    known_blocks_max: int = 1 << 18
    plugin_dirs: tuple[str, ...] = ()
    stage_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    ignored_keys: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        self._fill_in("shard_size", self.block_size)
        self._fill_in("timeout_ms", 0)
        for key, check in CHECKS.items():
            object.__setattr__(self, key, check(key, getattr(self, key)))
        self._check_geometry()
        self._check_marks()

    def _fill_in(self, key: str, value: Any) -> None:
        """Replace None, or a 0 that stands for "not given", of `key`."""
        given = getattr(self, key)
        if given is None or (given == 0 and not isinstance(given, bool)):
            object.__setattr__(self, key, value)

    def _check_marks(self) -> None:
        if self.space_low > self.space_high:
            raise wrong("space_low", self.space_low, f"at most space_high ({self.space_high})")

    def _check_geometry(self) -> None:
        if self.block_size % self.shard_size:
            raise wrong("shard_size", self.shard_size, f"a divisor of block_size ({self.block_size})")
        if self.tensor_size is not None and self.tensor_size_list is not None:
            raise ConfigError("tensor_size, tensor_size_list: only one of the two may be given")
        if self.tensor_size is not None and self.shard_size % self.tensor_size:
            raise wrong("tensor_size", self.tensor_size, f"a divisor of shard_size ({self.shard_size})")
        if self.tensor_size_list is not None and sum(self.tensor_size_list) != self.shard_size:
            what = f"sizes whose sum, now {sum(self.tensor_size_list)}, is shard_size ({self.shard_size})"
            raise wrong("tensor_size_list", list(self.tensor_size_list), what)

    @classmethod
    def load(cls, source: object = None, /, **overrides: Any) -> StoreConfig:
        """Make a configuration from whatever describes one.

        Parameters
        ----------
        source
            A mapping of keys; the path of a TOML or YAML file (str or path object ending in .toml, .yaml, .yml), UCM's
            own files included; any other str: a composition for `store_pipeline`; a `StoreConfig`; or None: the
            overrides are everything.
        **overrides
            Keys that replace those of `source`. The environment variable ``UCM_ASYNC_ENGINE``, where set, replaces
            ``io_engine``.

        Returns
        -------
        StoreConfig
            Its `ignored_keys` names what was accepted and not used.

        Raises
        ------
        ConfigError
            A file cannot be read, a key is unknown (the nearest known one is named) or missing, or a value cannot be
            used.

        Notes
        -----
        Reads the file, and touches the file system in no other way. Blocks for as long as the file takes.
        """
        given = dict(overrides)
        forced = os.environ.get(ENGINE_VARIABLE)
        if isinstance(source, cls):
            changes, ignored = split_keys(given, CHECKS)
            config = source._changed(changes, ignored)
        else:
            keys, ignored = split_keys({} if source is None else read_source(source), CHECKS)
            more, also_ignored = split_keys(given, CHECKS)
            keys |= more
            if "block_size" not in keys:
                raise ConfigError("block_size: missing, must be the bytes of a block")
            config = cls(**keys, ignored_keys=tuple(sorted({*ignored, *also_ignored})))
        return config if not forced else config._forced(forced)

    def _forced(self, engine: str) -> StoreConfig:
        try:
            return self.replace(io_engine=engine)
        except ConfigError as error:
            raise ConfigError(f"environment variable {ENGINE_VARIABLE}: {error}") from None

    def replace(self, **changes: Any) -> StoreConfig:
        """Return a copy with some keys changed, checked like a new one. The environment has no say here.

        Raises
        ------
        ConfigError
            A key is unknown, or a value cannot be used.

        Notes
        -----
        A `shard_size` that equals `block_size` follows it.
        """
        return self._changed(*split_keys(changes, CHECKS))

    def _changed(self, changes: dict[str, Any], ignored: tuple[str, ...]) -> StoreConfig:
        keys = self.as_dict()
        if self.shard_size == self.block_size:
            del keys["shard_size"]
        return type(self)(**(keys | changes), ignored_keys=tuple(sorted({*self.ignored_keys, *ignored})))

    def as_dict(self) -> dict[str, Any]:
        """Return every key and its value; ``StoreConfig.load`` of it gives an equal configuration."""
        keys = {one.name: getattr(self, one.name) for one in fields(self) if one.name in CHECKS}
        keys["stage_options"] = {name: dict(options) for name, options in self.stage_options.items()}
        return keys

    @property
    def shards_per_block(self) -> int:
        """How many shards a block has."""
        return self.block_size // self.shard_size

    @property
    def tensor_sizes(self) -> tuple[int, ...]:
        """Bytes of each tensor of a shard; the sum is `shard_size`. One tensor where no split was given."""
        if self.tensor_size_list is not None:
            return self.tensor_size_list
        tensor_size = self.tensor_size or self.shard_size
        return (tensor_size,) * (self.shard_size // tensor_size)

    @property
    def timeout_s(self) -> float:
        """`timeout_ms` in seconds; infinity where there is none."""
        return self.timeout_ms / 1000 if self.timeout_ms else math.inf

    def namespace_fingerprint(self) -> bytes:
        """Return 16 bytes that stand for what stores must agree on to share blocks.

        BLAKE2b (RFC 7693) over `namespace`, `block_size` and `shard_size`. The codec does not enter (each block names
        its own), nor do `dtype` and the split of a shard into tensors, which change no byte.
        """
        text = f"{self.block_size} {self.shard_size} {self.namespace}"
        return hashlib.blake2b(text.encode(), digest_size=FINGERPRINT_BYTES).digest()
