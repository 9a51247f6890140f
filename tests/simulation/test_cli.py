"""``ucm-async simulate``, as called from a shell."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from ucm_async.blocks.writes import BlockWrites
from ucm_async.cli import main


def test_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--seeds", "5", "--first", "10", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seeds"] == 5
    assert told["failures"] == []
    assert told["seeds_a_minute"] > 0


def test_several_processes_find_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for jobs in ("1", "2"):
        assert main(["simulate", "--seeds", "60", "--jobs", jobs, "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    for one in told:
        del one["seconds"], one["seeds_a_minute"]
    assert told[0] == told[1]
    assert told[0]["seeds"] == 60


def test_one_seed_again_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    digests = []
    for _ in range(2):
        assert main(["simulate", "--seed", "3"]) == 0
        digests.append(capsys.readouterr().out.splitlines()[-1])
    assert digests[0] == digests[1]
    assert digests[0].startswith("digest ")


def test_a_failure_prints_what_repeats_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        BlockWrites, "completes", lambda _writes, entries, _wanted: np.ones(len(entries), dtype=np.bool_)
    )
    assert main(["simulate", "--seeds", "300"]) == 1
    told = capsys.readouterr().err
    line = next(line for line in told.splitlines() if line.startswith("repeat it: "))
    violation = next(line for line in told.splitlines() if line.startswith("seed "))
    assert main(shlex.split(line.removeprefix("repeat it: ucm-async "))) == 1
    assert violation in capsys.readouterr().err
