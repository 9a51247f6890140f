from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import ucm_async.store
from ucm_async.bench.workloads import MultiTurn, ideal_hit_ratio
from ucm_async.cli import main
from ucm_async.native import NATIVE

from .doubles import FailingStore, FlippingStore, MemoryStore

SMALL = ["--requests", "12", "--block-bytes", "16384"]


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def replay_json(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code = main(["replay", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
@pytest.mark.parametrize("engine", ["psync", "aio", "uring", "auto"])
def test_replays_on_a_real_store_with_every_engine(
    engine: str, loop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = replay_json(capsys, *SMALL, "--engine", engine, "--loop", loop, "--timeout-ms", "0")
    assert code == 0
    assert told["requests"] == 12
    assert told["wrong_bytes"] == 0
    assert (
        told["hit_ratio"] == told["ideal_hit_ratio"] == pytest.approx(ideal_hit_ratio(MultiTurn(requests=12)), abs=1e-6)
    )
    assert told["load"]["blocks"] == told["prefix_hits"] > 0
    assert told["problems"] == []
    assert list(tmp_path.iterdir()) == [], "the temporary directory is gone"


@pytest.mark.skipif(not NATIVE, reason="the Cache needs the extension")
def test_a_cache_tells_its_hits(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--pipeline", "Cache|Posix", "--cache-gb", "0.05", "--timeout-ms", "0"]
    code, told = replay_json(capsys, *SMALL, *words)
    assert (code, told["wrong_bytes"], told["hit_ratio"]) == (0, 0, told["ideal_hit_ratio"])
    assert told["cache"]["hits"] >= told["prefix_hits"], "nothing was evicted"
    assert told["cache"]["asked"] >= told["blocks_asked"]
    assert told["cache"]["policy"] == "s3fifo"
    assert main(["replay", *SMALL, *words]) == 0
    assert "cache hit ratio" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--registered"], ["--durability", "synced"], ["--concurrency", "1"]])
def test_ways_of_asking(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, told = replay_json(capsys, *SMALL, *words, "--timeout-ms", "0")
    assert (code, told["wrong_bytes"], told["hit_ratio"]) == (0, 0, told["ideal_hit_ratio"])


def test_a_directory_is_kept_and_warm_the_next_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kv"
    assert replay_json(capsys, *SMALL, "--dir", str(kept), "--timeout-ms", "0")[0] == 0
    code, told = replay_json(capsys, *SMALL, "--dir", str(kept), "--timeout-ms", "0")
    assert code == 0
    assert (told["hit_ratio"], told["dump"]["blocks"], told["wrong_bytes"]) == (1.0, 0, 0)


def test_a_trace_is_replayed_up_to_the_number_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"timestamp": i, "hash_ids": [0, 1, 10 + i]}) + "\n" for i in range(8)))
    code, told = replay_json(capsys, "--trace", str(trace), "--requests", "5", "--timeout-ms", "0")
    assert code == 0
    assert (told["requests"], told["prefix_hits"], told["block_bytes"]) == (5, 8, 65536)


def test_a_bad_line_of_a_trace_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"hash_ids": [1]}\nno json\n')
    assert main(["replay", "--trace", str(trace)]) == 2
    assert "trace.jsonl:2: not JSON" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [trace]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--trace", "missing.jsonl"], "missing.jsonl"),
        (["--pipeline", "Fake|Posix"], "Fake"),
        (["--dir", "/proc/nothing"], "/proc/nothing"),
    ],
)
def test_bad_arguments_are_errors(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--block-bytes", "33"], ["--timeout-ms", "-5"], ["--timeout-ms", "nan"], ["--requests", "0"], ["--loop", "trio"]],
)
def test_wrong_usage_is_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["replay", *words])
    assert raised.value.code == 2
    assert f"argument {words[0]}: " in capsys.readouterr().err


def test_the_table_says_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", *SMALL, "--timeout-ms", "0"]) == 0
    told = capsys.readouterr().out
    for words in ("hit ratio", "infinite cache", "wrong bytes", "p99 ms", "load", "dump", "failures"):
        assert words in told


# --- stores that are not right ---


def use(monkeypatch: pytest.MonkeyPatch, store_type: type[MemoryStore]) -> None:
    @contextlib.asynccontextmanager
    async def open_store(*_composition: object, **_keys: object) -> AsyncIterator[MemoryStore]:
        store = store_type()
        store.statistics = lambda: SimpleNamespace(pipeline={})  # type: ignore[attr-defined]
        yield store

    monkeypatch.setattr(ucm_async.store, "open_store", open_store)


def test_wrong_bytes_end_with_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use(monkeypatch, FlippingStore)
    assert main(["replay", *SMALL]) == 1
    assert "FAILED" in capsys.readouterr().out
    code, told = replay_json(capsys, *SMALL)
    assert code == 1
    assert told["wrong_bytes"] == told["wrong_blocks"] > 0
    assert any("wrong bytes" in problem for problem in told["problems"])


def test_failures_end_with_exit_code_1_and_their_reasons(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, FailingStore)
    code, told = replay_json(capsys, *SMALL, "--concurrency", "1")
    assert code == 1
    assert set(told["load"]["failures"]) == {"CORRUPT", "IO_ERROR", "TIMEOUT"}
    assert told["wrong_bytes"] == 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_replay_tells_what_it_did_and_cleans_up(sent: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ucm_async.cli", "replay", "--requests", "1000000", "--block-bytes", "4096"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True) as process:
        give_up = time.monotonic() + 60
        while not any(tmp_path.glob("ucm-replay-*/**/??/*")) and time.monotonic() < give_up:
            time.sleep(0.05)  # until blocks are stored
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "hit ratio" in out
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
