"""Where a configuration comes from: a mapping, a TOML or YAML file, a file of the UCM project, a pipeline's name.

Everything ends as one flat dictionary of our own keys, and the names of the keys that were accepted and not used.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any, Final

from .errors import ConfigError

__all__ = ["read_source", "split_keys"]

_SUFFIXES: Final = (".toml", ".yaml", ".yml")

_ALIASES: Final[Mapping[str, str]] = {
    "posix_io_engine": "io_engine",
    "storage_backend": "storage_backends",
    "kv_block_size": "block_size",
    "io_size": "tensor_size",
}
"""Other names that the same thing has, or had, in UCM."""

# fmt: off
_IGNORED: Final = frozenset({
    "aio_timeout_ms", "buffer_number", "buffer_size", "cache_io_aggregation", "cache_load_backend_only",
    "cache_load_exclusive_buffer_number", "cache_sdma_direct", "cache_stream_number", "chunk_size",
    "commit_concurrency", "compress_ratio", "cpu_affinity_cores", "data_dir_shard_bytes", "data_trans_concurrency",
    "device", "device_id", "enable_event_sync", "enable_metrics", "enable_record_traces", "hit_ratio",
    "inference_duration_monitor_fake_hit_ratio", "layer_size", "load_exclusive_buffer_number",
    "load_only_first_rank", "load_tokens_threshold", "local_rank_size", "lookup_concurrency", "max_cache_size",
    "metrics_config_path", "open_concurrency", "persist_token_threshold", "posix_commit_concurrency",
    "posix_data_trans_concurrency", "posix_lookup_concurrency", "posix_open_concurrency", "role",
    "running_queue_depth", "store_health", "stream_number", "ucm_sparse_config", "use_direct", "use_gdr",
    "use_hybrid_connector", "use_inference_duration_monitor", "use_layerwise", "use_lite", "wa_dump_block_wise",
    "waiting_queue_depth", "worker_number",
})
# fmt: on
"""UCM's keys for what is done elsewhere, in another way, or not at all here."""
_IGNORED_PREFIXES: Final = ("posix_gc_", "cache_h2d_", "yuanrong_")

_PIPELINE_OF_CONNECTOR: Final[Mapping[str, str]] = {"UcmNfsStore": "Posix", "UcmPosixStore": "Posix"}
"""UCM's connectors that name no pipeline."""


def read_source(source: object) -> dict[str, Any]:
    """Return the keys of `source` as they stand there.

    Parameters
    ----------
    source
        A mapping; a path ending in .toml, .yaml or .yml; or a pipeline composition (a str that is no such path).

    Raises
    ------
    ConfigError
        The file cannot be read or is no mapping, or `source` is none of these.
    """
    if isinstance(source, Mapping):
        return _flatten(source, "the configuration")
    if isinstance(source, os.PathLike) or (isinstance(source, str) and _is_path(source)):
        path = os.fspath(source)
        return _flatten(_read_file(path), path)
    if isinstance(source, str):
        return {"store_pipeline": source}
    kind = type(source).__name__
    raise ConfigError(f"a configuration is a mapping, a path, a pipeline's name or a StoreConfig, not {kind}")


def split_keys(keys: Mapping[Any, Any], known: Collection[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Translate aliases and take out what has no meaning here.

    Returns
    -------
    tuple
        The keys that are in `known`, and the names of those that were ignored, sorted.

    Raises
    ------
    ConfigError
        A key is unknown, or is there under two names.
    """
    out: dict[str, Any] = {}
    ignored: list[str] = []
    for key, value in keys.items():
        name = _ALIASES.get(key, key)
        if name in known:
            if name in out:
                raise ConfigError(f"{key}: given twice, as {name} too")
            out[name] = value
        elif isinstance(key, str) and (key in _IGNORED or key.startswith(_IGNORED_PREFIXES)):
            ignored.append(key)
        else:
            raise ConfigError(_unknown(key, known))
    return out, tuple(sorted(ignored))


def _unknown(key: object, known: Collection[str]) -> str:
    import difflib  # noqa: PLC0415 - only errors need it

    near = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "known keys: " + ", ".join(sorted(known))
    return f"unknown key {key!r}; {hint}"


def _is_path(text: str) -> bool:
    if text.lower().endswith(_SUFFIXES):
        return True
    if os.sep in text:
        raise ConfigError(f"{text}: a configuration file ends in {', '.join(_SUFFIXES)}")
    return False


def _read_file(path: str) -> Mapping[str, Any]:
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _SUFFIXES:
        raise ConfigError(f"{path}: a configuration file ends in {', '.join(_SUFFIXES)}")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    content = _parse_toml(path, text) if suffix == ".toml" else _parse_yaml(path, text)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds {type(content).__name__}, must be a mapping of keys to values")
    return content


def _parse_toml(path: str, text: str) -> object:
    import tomllib  # noqa: PLC0415 - as below

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error


def _parse_yaml(path: str, text: str) -> object:
    import yaml  # noqa: PLC0415 - most configurations are no file, and importing it takes longer than all of ours

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {error}") from error
    return {} if content is None else content


def _flatten(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Bring a file of UCM's shape, whose keys are one level down in the first connector, into ours."""
    out = dict(content)
    if "ucm_connectors" in out:
        connectors = out.pop("ucm_connectors")
        if not isinstance(connectors, list) or not connectors or not isinstance(connectors[0], Mapping):
            raise ConfigError(f"ucm_connectors: {connectors!r}, must be a list of at least one connector in {where}")
        out |= connectors[0]
    if "ucm_connector_name" not in out and "ucm_connector_config" not in out:
        return out
    name = out.pop("ucm_connector_name", "UcmPipelineStore")
    inner = out.pop("ucm_connector_config", None)
    if not isinstance(inner, Mapping):
        raise ConfigError(f"ucm_connector_config: {inner!r}, must be a mapping in {where}")
    out |= inner
    if "store_pipeline" not in out:
        if name not in _PIPELINE_OF_CONNECTOR:
            raise ConfigError(f"store_pipeline: missing for the connector {name!r} in {where}")
        out["store_pipeline"] = _PIPELINE_OF_CONNECTOR[name]
    return out
