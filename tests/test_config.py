"""`StoreConfig`: what it accepts, what it refuses and with which words, and where it may come from."""

from __future__ import annotations

import math
import os
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async import ConfigError, StoreConfig
from ucm_async._config_checks import CHECKS
from ucm_async.config import ENGINE_VARIABLE

KIB = 1024
MIB = 1024 * KIB

UCM_FILE = """
ucm_connectors:
  - ucm_connector_name: "UcmPipelineStore"
    ucm_connector_config:
      store_pipeline: "Cache|Posix"
      storage_backends: "/mnt/a:/mnt/b"
      io_direct: true
      posix_io_engine: "aio"
      timeout_ms: 30000
      cache_buffer_capacity_gb: 32
      share_buffer_enable: false
      posix_capacity_gb: 10240
      posix_gc_trigger_threshold_ratio: 0.7
      posix_lookup_concurrency: 16
      stream_number: 8
      device_id: 0
      store_health:
        enabled: true
use_layerwise: true
load_only_first_rank: false
metrics_config_path: "/path/to/metrics.yaml"
hit_ratio: 0.9
"""


@pytest.fixture(autouse=True)
def no_forced_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)


def load(**keys: Any) -> StoreConfig:
    return StoreConfig.load(None, **{"block_size": MIB, **keys})


class TestDefaults:
    def test_only_the_block_size_is_needed(self) -> None:
        config = StoreConfig(block_size=MIB)
        assert config.shard_size == MIB
        assert config.shards_per_block == 1
        assert config.tensor_sizes == (MIB,)
        assert config.store_pipeline == "Posix"
        assert config.io_engine == "auto"
        assert config.io_direct == "auto"
        assert config.storage_backends == ()
        assert config.timeout_s == 30.0
        assert config.ignored_keys == ()

    def test_a_missing_block_size_is_named(self) -> None:
        with pytest.raises(ConfigError, match="block_size: missing"):
            StoreConfig.load("Posix")

    def test_every_key_has_a_check_and_a_documented_line(self) -> None:
        assert set(load().as_dict()) == set(CHECKS)
        documented = {
            line.split(" : ")[0].strip() for line in (StoreConfig.__doc__ or "").splitlines() if " : " in line
        }
        assert set(CHECKS) <= documented

    def test_it_cannot_be_changed(self) -> None:
        with pytest.raises(FrozenInstanceError):
            load().block_size = 1  # type: ignore[misc]

    def test_it_survives_pickling_and_is_hashable(self) -> None:
        config = load(stage_options={"Mine": {"depth": 3}}, storage_backends=["a"])
        assert pickle.loads(pickle.dumps(config)) == config
        assert hash(config) == hash(load(stage_options={"Mine": {"depth": 3}}, storage_backends=["a"]))


class TestGeometry:
    def test_shards_and_tensors(self) -> None:
        config = load(shard_size=256 * KIB, tensor_size=64 * KIB)
        assert config.shards_per_block == 4
        assert config.tensor_sizes == (64 * KIB,) * 4

    def test_tensors_of_different_sizes(self) -> None:
        assert load(shard_size=64 * KIB, tensor_size_list=[16 * KIB, 48 * KIB]).tensor_sizes == (16 * KIB, 48 * KIB)

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"shard_size": 3000}, "shard_size: 3000, must be a divisor of block_size \\(1048576\\)"),
            ({"tensor_size": 3000}, "tensor_size: 3000, must be a divisor of shard_size \\(1048576\\)"),
            (
                {"tensor_size_list": [1, 2]},
                "tensor_size_list: \\[1, 2\\], must be sizes whose sum, now 3, is shard_size",
            ),
            ({"tensor_size": MIB, "tensor_size_list": [MIB]}, "only one of the two"),
            ({"tensor_size_list": []}, "tensor_size_list: \\[\\], must be a list of at least one size"),
            ({"tensor_size_list": [0, MIB]}, "tensor_size_list\\[0\\]: 0, must be an integer from 1"),
            ({"tensor_size_list": "ab"}, "tensor_size_list: 'ab'"),
        ],
    )
    def test_sizes_that_do_not_fit_each_other(self, keys: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load(**keys)

    @given(shards=st.integers(1, 64), tensors=st.integers(1, 32), tensor_size=st.integers(1, 1 << 20))
    def test_the_parts_always_sum_to_the_whole(self, shards: int, tensors: int, tensor_size: int) -> None:
        shard_size = tensors * tensor_size
        config = StoreConfig(block_size=shards * shard_size, shard_size=shard_size, tensor_size=tensor_size)
        assert sum(config.tensor_sizes) * config.shards_per_block == config.block_size

    def test_numpy_sizes_become_plain_ints(self) -> None:
        config = load(block_size=np.int64(MIB), shard_size=np.uint32(KIB))
        assert type(config.block_size) is int
        assert type(config.shard_size) is int


class TestWrongValues:
    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("block_size", "1MiB", "block_size: '1MiB', must be an integer from 1 to"),
            ("block_size", 1.5, "block_size: 1.5, must be an integer"),
            ("block_size", 0, "block_size: 0, must be an integer from 1"),
            ("block_size", -1, "block_size: -1"),
            ("block_size", True, "block_size: True, must be an integer"),
            ("shard_size", False, "shard_size: False, must be an integer"),
            ("queue_number", True, "queue_number: True, must be an integer from 1 to 64"),
            ("queue_depth", 0, "queue_depth: 0"),
            ("io_depth", 10**6, "io_depth: 1000000, must be an integer from 1 to 4096"),
            ("io_engine", "libaio", "io_engine: 'libaio', must be one of 'auto', 'psync', 'aio', 'uring'"),
            ("io_direct", 1, "io_direct: 1, must be one of True, False, 'auto'"),
            ("io_direct", "yes", "io_direct: 'yes'"),
            ("dtype", "bf16", "dtype: 'bf16', must be one of 'bfloat16'"),
            ("namespace", "", "namespace: '', must be a string of 1 to 256"),
            ("namespace", "x" * 257, "namespace: .*must be a string of 1 to 256"),
            ("namespace", 7, "namespace: 7"),
            ("timeout_ms", -1, "timeout_ms: -1, must be a number of milliseconds"),
            ("timeout_ms", float("nan"), "timeout_ms: nan"),
            ("timeout_ms", True, "timeout_ms: True"),
            ("timeout_ms", "30s", "timeout_ms: '30s'"),
            ("share_buffer_enable", 1, "share_buffer_enable: 1, must be true or false"),
            ("share_buffer_enable", "false", "share_buffer_enable: 'false'"),
            ("cache_buffer_capacity_gb", 0, "cache_buffer_capacity_gb: 0"),
            ("cache_buffer_capacity_gb", math.inf, "cache_buffer_capacity_gb: inf"),
            ("posix_capacity_gb", -0.5, "posix_capacity_gb: -0.5"),
            ("store_pipeline", "Cache||Posix", "store_pipeline: 'Cache||Posix', must be stage names joined by '|'"),
            ("store_pipeline", "", "store_pipeline: ''"),
            ("store_pipeline", ["Cache", "Posix"], "store_pipeline: \\['Cache', 'Posix'\\]"),
            ("storage_backends", 5, "storage_backends: 5, must be a path"),
            ("storage_backends", b"kv", "storage_backends: b'kv'"),
            ("storage_backends", ["a", 5], "storage_backends: \\['a', 5\\]"),
            ("storage_backends", "a::b", "storage_backends: 'a::b'"),
            ("storage_backends", ["a", "a"], "storage_backends: .*each once"),
            ("storage_backends", "a\0b", "storage_backends: 'a"),
            ("unique_id", "a/b", "unique_id: 'a/b', must be up to 64 of"),
            ("stage_options", {"Mine": 3}, "stage_options: .*must be a mapping of stage names"),
            ("stage_options", {"Mine": {3: 4}}, "stage_options"),
            ("stage_options", ["Mine"], "stage_options"),
        ],
    )
    def test_the_error_names_key_value_and_need(self, key: str, value: object, message: str) -> None:
        with pytest.raises(ConfigError, match=message.replace("||", r"\|\|").replace("'|'", r"'\|'")):
            load(**{key: value})

    def test_an_unknown_key_names_the_nearest_known_one(self) -> None:
        with pytest.raises(ConfigError, match="unknown key 'storage_backend_'; did you mean 'storage_backends'"):
            load(storage_backend_="kv")
        with pytest.raises(ConfigError, match="unknown key 'timeout'; did you mean 'timeout_ms'"):
            load(timeout=3)

    def test_an_unknown_key_that_resembles_none_lists_all(self) -> None:
        with pytest.raises(ConfigError, match="unknown key 'zzz'; known keys: block_size, "):
            load(zzz=3)

    def test_a_key_that_is_no_string(self) -> None:
        with pytest.raises(ConfigError, match="unknown key 3"):
            StoreConfig.load({3: 4, "block_size": MIB})

    def test_it_is_a_value_error_too(self) -> None:
        with pytest.raises(ValueError, match="block_size"):
            load(block_size=0)

    def test_a_source_of_another_kind(self) -> None:
        with pytest.raises(ConfigError, match="not int"):
            StoreConfig.load(5)


class TestValues:
    @pytest.mark.parametrize("none", [0, None, 0.0])
    def test_no_deadline(self, none: float | None) -> None:
        config = load(timeout_ms=none)
        assert config.timeout_ms == 0
        assert config.timeout_s == math.inf

    def test_a_deadline_in_fractions(self) -> None:
        assert load(timeout_ms=0.5).timeout_s == 0.0005

    @pytest.mark.parametrize(
        ("given", "paths"),
        [
            ("kv", ("kv",)),
            ("/a:/b", ("/a", "/b")),
            (["/a", Path("/b")], ("/a", "/b")),
            ((Path("kv"),), ("kv",)),
            (Path("/a:b"), ("/a:b",)),
            ("", ()),
            ([], ()),
        ],
    )
    def test_storage_backends(self, given: object, paths: tuple[str, ...]) -> None:
        assert load(storage_backends=given).storage_backends == paths

    def test_blanks_around_stage_names_do_not_matter(self) -> None:
        assert load(store_pipeline=" Cache | Posix").store_pipeline == "Cache|Posix"

    def test_stage_options_are_a_copy(self) -> None:
        options = {"Mine": {"depth": 3}}
        config = load(stage_options=options)
        options["Mine"]["depth"] = 4
        config.as_dict()["stage_options"]["Mine"]["depth"] = 5
        assert config.stage_options == {"Mine": {"depth": 3}}


class TestFingerprint:
    def test_it_depends_on_what_must_agree_and_on_nothing_else(self) -> None:
        base = load(shard_size=64 * KIB)
        assert len(base.namespace_fingerprint()) == 16
        same = base.replace(compress_codec="lz4", tensor_size=KIB, dtype="float16", storage_backends="x")
        assert same.namespace_fingerprint() == base.namespace_fingerprint()
        others = [base.replace(namespace="b"), base.replace(block_size=2 * MIB), base.replace(shard_size=128 * KIB)]
        assert len({one.namespace_fingerprint() for one in [base, *others]}) == 4

    def test_it_never_changes_from_version_to_version(self) -> None:
        """What is stored names it: another value would hide every block there is."""
        assert load(namespace="qwen3-8b/bf16/tp1").namespace_fingerprint().hex() == "46dcc0732669c36a8814f31a70f9f18c"

    def test_digits_of_the_namespace_are_no_sizes(self) -> None:
        one = StoreConfig(block_size=12, shard_size=12, namespace="3 x")
        other = StoreConfig(block_size=12, shard_size=12, namespace="x")
        assert one.namespace_fingerprint() != other.namespace_fingerprint()


class TestCopies:
    def test_replace_checks_like_a_new_one(self) -> None:
        config = load(shard_size=64 * KIB)
        assert config.replace(io_engine="psync").io_engine == "psync"
        with pytest.raises(ConfigError, match="shard_size"):
            config.replace(block_size=100)
        with pytest.raises(ConfigError, match="did you mean 'io_engine'"):
            config.replace(io_engin="psync")

    def test_a_shard_that_is_the_block_follows_it(self) -> None:
        assert load().replace(block_size=2 * MIB).shard_size == 2 * MIB
        assert load(shard_size=64 * KIB).replace(block_size=2 * MIB).shard_size == 64 * KIB

    def test_as_dict_and_back(self) -> None:
        config = load(shard_size=64 * KIB, tensor_size_list=[KIB, 63 * KIB], storage_backends="a:b", timeout_ms=None)
        assert StoreConfig.load(config.as_dict()) == config

    def test_load_of_a_config_with_overrides(self) -> None:
        config = load(namespace="a")
        assert StoreConfig.load(config) == config
        assert StoreConfig.load(config, namespace="b").namespace == "b"
        with pytest.raises(ConfigError, match="did you mean 'namespace'"):
            StoreConfig.load(config, namspace="b")


class TestEnvironment:
    def test_the_engine_is_forced_when_a_store_is_opened(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(ENGINE_VARIABLE, "psync")
        assert load(io_engine="uring").io_engine == "psync"
        assert StoreConfig.load(StoreConfig(block_size=MIB, io_engine="aio")).io_engine == "psync"

    def test_a_running_store_can_still_be_switched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(ENGINE_VARIABLE, "psync")
        assert load().replace(io_engine="aio").io_engine == "aio"

    def test_a_wrong_value_names_the_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(ENGINE_VARIABLE, "fast")
        with pytest.raises(ConfigError, match="environment variable UCM_ASYNC_ENGINE: io_engine: 'fast'"):
            load()

    def test_empty_is_unset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(ENGINE_VARIABLE, "")
        assert load(io_engine="aio").io_engine == "aio"


class TestSources:
    def test_a_mapping_with_overrides(self) -> None:
        config = StoreConfig.load({"block_size": MIB, "namespace": "a"}, namespace="b")
        assert (config.block_size, config.namespace) == (MIB, "b")

    def test_a_string_without_a_suffix_is_the_pipeline(self) -> None:
        assert StoreConfig.load("Cache|Posix", block_size=MIB).store_pipeline == "Cache|Posix"
        assert StoreConfig.load("my.package:Stage|Posix", block_size=MIB).store_pipeline == "my.package:Stage|Posix"

    @pytest.mark.parametrize("kind", [str, Path])
    def test_toml(self, tmp_path: Path, kind: type) -> None:
        file = tmp_path / "store.toml"
        file.write_text('block_size = 1048576\nstorage_backends = ["a", "b"]\n[stage_options.Mine]\ndepth = 3\n')
        config = StoreConfig.load(kind(file), namespace="n")
        assert config.storage_backends == ("a", "b")
        assert config.stage_options == {"Mine": {"depth": 3}}
        assert config.namespace == "n"

    @pytest.mark.parametrize("suffix", ["yaml", "yml", "YAML"])
    def test_yaml(self, tmp_path: Path, suffix: str) -> None:
        file = tmp_path / f"store.{suffix}"
        file.write_text("block_size: 1048576\nio_direct: false\nposix_capacity_gb: 0.5\n")
        config = StoreConfig.load(str(file))
        assert config.io_direct is False
        assert config.posix_capacity_gb == 0.5

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.toml", "block_size = ", "a.toml: "),
            ("a.yaml", "a: [", "a.yaml: "),
            ("a.yaml", "- 1\n- 2\n", "a.yaml: holds list, must be a mapping"),
            ("a.yaml", "", "block_size: missing"),
            ("a.yaml", b"\xff\xfe\x00", "a.yaml: "),
            ("a.ini", "", "a.ini: a configuration file ends in .toml, .yaml, .yml"),
        ],
    )
    def test_files_that_cannot_be_used(self, tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigError, match=message):
            StoreConfig.load(file)
        with pytest.raises(ConfigError, match=message):
            StoreConfig.load(str(file))

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"none\.toml: No such file or directory"):
            StoreConfig.load(tmp_path / "none.toml")

    def test_nothing_is_created(self, tmp_path: Path) -> None:
        load(storage_backends=[tmp_path / "kv"])
        assert os.listdir(tmp_path) == []


class TestUcmFiles:
    def test_its_own_shape_opens(self, tmp_path: Path) -> None:
        file = tmp_path / "ucm.yaml"
        file.write_text(UCM_FILE)
        config = StoreConfig.load(file, block_size=MIB, shard_size=64 * KIB)
        assert config.store_pipeline == "Cache|Posix"
        assert config.storage_backends == ("/mnt/a", "/mnt/b")
        assert config.io_direct is True
        assert config.io_engine == "aio"
        assert config.cache_buffer_capacity_gb == 32
        assert config.posix_capacity_gb == 10240
        assert config.share_buffer_enable is False
        assert config.ignored_keys == (
            "device_id",
            "hit_ratio",
            "load_only_first_rank",
            "metrics_config_path",
            "posix_gc_trigger_threshold_ratio",
            "posix_lookup_concurrency",
            "store_health",
            "stream_number",
            "use_layerwise",
        )
        assert config.replace(namespace="b").ignored_keys == config.ignored_keys

    def test_the_connector_alone(self) -> None:
        inner = {"storage_backends": "kv", "kv_block_size": MIB, "io_size": 64 * KIB}
        config = StoreConfig.load({"ucm_connector_name": "UcmNfsStore", "ucm_connector_config": inner})
        assert (config.store_pipeline, config.block_size, config.tensor_size) == ("Posix", MIB, 64 * KIB)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ({"ucm_connectors": []}, "ucm_connectors: \\[\\], must be a list of at least one connector"),
            ({"ucm_connectors": "Posix"}, "ucm_connectors: 'Posix'"),
            ({"ucm_connector_name": "UcmPipelineStore"}, "ucm_connector_config: None, must be a mapping"),
            (
                {"ucm_connector_name": "UcmDramStore", "ucm_connector_config": {"block_size": MIB}},
                "store_pipeline: missing for the connector 'UcmDramStore'",
            ),
            ({"ucm_connectors": [{"ucm_connector_config": {"store_pipelin": "Posix"}}]}, "store_pipeline: missing"),
        ],
    )
    def test_broken_ones(self, source: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            StoreConfig.load(source, block_size=MIB)

    def test_one_thing_under_two_names(self) -> None:
        with pytest.raises(ConfigError, match="posix_io_engine: given twice, as io_engine too"):
            StoreConfig.load({"block_size": MIB, "io_engine": "aio", "posix_io_engine": "aio"})
