from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ucm_async.bench.loops import run_on
from ucm_async.bench.setting import BenchError
from ucm_async.bench.space import SpaceSetting, measure_space
from ucm_async.bench.usage import block_bytes, watch_peak
from ucm_async.cli import main

BLOCK = 16 << 10


def small(directory: Path) -> SpaceSetting:
    return SpaceSetting(
        directory, (), block_bytes=BLOCK, capacity_bytes=200 * BLOCK, write_bytes=150 * BLOCK, seconds=0.5
    )


def test_it_measures_a_real_store(tmp_path: Path) -> None:
    found = run_on("asyncio", measure_space(small(tmp_path)))
    cap = found[-1]
    assert cap.case == "cap"
    assert cap.met
    assert cap.ratio is not None
    assert cap.ratio.median > 0.5, "the store was filled, and that was seen"
    assert cap.detail is not None
    assert cap.detail["written_blocks"] >= 150
    assert cap.detail["collected"]["blocks"] > 0
    assert all(one.value.median > 0 for one in found)
    assert list(tmp_path.iterdir()) == [], "the scratch directory is gone"


def test_a_cap_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="capacity"):
        run_on("asyncio", measure_space(SpaceSetting(tmp_path, (), block_bytes=BLOCK, capacity_bytes=10 * BLOCK)))


def test_only_blocks_count(tmp_path: Path) -> None:
    (tmp_path / ("a" * 32)).write_bytes(bytes(10_000))
    (tmp_path / "a note").write_bytes(bytes(10_000))
    assert block_bytes(str(tmp_path)) == 10_000
    with watch_peak(tmp_path) as peak:
        time.sleep(0.5)
    assert peak.looks == 0 or peak.nbytes == 10_000


def test_command_prints_json_or_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "space", "--block-bytes", str(BLOCK), "--capacity-gb", "0.004", "--write-gb", "0.002"]
    words += ["--seconds", "1", "--dir", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {one["case"] for one in told["findings"]} == {"latency", "cap"}
    assert main(words) == 0
    assert "peak disk use" in capsys.readouterr().out
