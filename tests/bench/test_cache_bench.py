from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ucm_async.bench.cache import CASES, CacheSetting, run_cases
from ucm_async.bench.loops import run_on
from ucm_async.bench.policies import POLICIES, compare_policies
from ucm_async.bench.setting import Shape
from ucm_async.bench.workloads import MultiTurn, Request, ideal_hit_ratio
from ucm_async.cli import main
from ucm_async.native import NATIVE

pytestmark = pytest.mark.skipif(not NATIVE, reason="the Cache needs the extension")

FINDINGS = {"hits": 1, "latency": 4, "index": 4, "together": 4, "cold": 4, "flood": 2, "million": 6}


def small(directory: Path) -> CacheSetting:
    return CacheSetting(
        directory,
        (Shape(1 << 20, 3), Shape(65536, 10)),
        rounds=1,
        hit_blocks=4,
        latency_loads=10,
        index_slots=2000,
        index_batches=1,
        prefix_blocks=6,
        processes=2,
        flood_loads=10,
        flood_blocks=160,
        entries=3000,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.may_block("a bare memcpy on the loop is what a hit is compared with")
def test_every_case_measures_a_real_store(case: str, tmp_path: Path) -> None:
    found = run_on("asyncio", run_cases(small(tmp_path), [case]))
    assert len(found) == FINDINGS[case]
    assert all(one.case == case for one in found)
    assert all(one.value.median > 0 for one in found if case != "latency")
    assert json.loads(json.dumps([one.as_dict() for one in found]))
    assert list(tmp_path.iterdir()) == [], "the scratch directories are gone"
    assert not list(Path("/dev/shm").glob(f"ucm-async.bench-{os.getpid()}-*")), "and the segments"
    if case == "together":
        assert found[0].reference_value is not None
        assert found[0].met is not False, "what four processes share was read once"


def test_command_prints_json_or_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "cache", "--only", "cold", "--rounds", "1", "--shape", "65536x8", "--dir", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["reference"] for one in told["findings"]] == ["Posix", "Posix"]
    assert main(words) == 0
    assert "8 x 64 KiB, cold" in capsys.readouterr().out


# --- policies ---


class Lru:
    """What the policy "lru" must come to, in a dict."""

    def __init__(self, slots: int) -> None:
        self.slots, self.order, self.hits = slots, dict[int, None](), 0

    def serve(self, request: Request) -> None:
        blocks = list(dict.fromkeys(request.block_hashes))
        self.hits += next((i for i, one in enumerate(blocks) if one not in self.order), len(blocks))
        for one in blocks:
            if one not in self.order and len(self.order) == self.slots:
                del self.order[next(iter(self.order))]
            self.order.pop(one, None)
            self.order[one] = None


def test_lru_is_that_of_a_model_and_a_large_cache_is_ideal() -> None:
    requests = list(MultiTurn(requests=300, users=20))
    asked = sum(len(one.block_hashes) for one in requests)
    report = compare_policies(requests, (500, 1_000_000))
    model = Lru(500)
    for one in requests:
        model.serve(one)
    assert report.ratios["lru"][500] == pytest.approx(model.hits / asked)
    assert report.blocks == asked
    assert report.ideal == pytest.approx(ideal_hit_ratio(requests))
    assert {ratios[1_000_000] for ratios in report.ratios.values()} == {report.ideal}
    assert set(report.ratios) == set(POLICIES)
    assert all(0 < ratios[500] < report.ideal for ratios in report.ratios.values())


def test_the_best_is_measured_against_lru() -> None:
    """One chat that goes on, and others in between that are never heard of again."""

    def requests() -> Any:
        for turn in range(60):
            yield Request(0, tuple(range(10)))
            yield Request(0, tuple(range(1000 + 45 * turn, 1045 + 45 * turn)))

    report = compare_policies(requests(), (50,))
    assert report.ratios["s3fifo"][50] > 1.5 * report.ratios["lru"][50] > 0
    assert report.best() == "s3fifo"


def test_policies_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"hash_ids": [0, 1, 10 + i]}) + "\n" for i in range(8)))
    words = ["bench", "policies", "--trace", str(trace), "--slots", "8,100"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["requests"] == 8
    assert told["policies"]["lru"]["100"] == pytest.approx(14 / 24, abs=1e-6)
    assert main(words) == 0
    assert "infinite cache" in capsys.readouterr().out
    assert main(["bench", "policies", "--requests", "40", "--slots", "100"]) == 0
    with pytest.raises(SystemExit):
        main(["bench", "policies", "--slots", "0"])
