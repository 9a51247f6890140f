"""``ucm-async shm`` on segments of real stores: in use, left by a killed process, half-made, and none at all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async.cli import main
from ucm_async.native import NATIVE

pytestmark = pytest.mark.skipif(not NATIVE, reason="the Cache needs the extension")

BLOCK_BYTES = 16384
BLOCKS = 6
SHM = Path("/dev/shm")

CAPACITY_GB = 64 * BLOCK_BYTES / (1 << 30)

CHILD = f"""
import asyncio, sys, numpy as np, ucm_async as ucm
async def main():
    keys = dict(storage_backends=sys.argv[1], block_size={BLOCK_BYTES}, namespace="shm tests", unique_id=sys.argv[2])
    async with ucm.open_store("Cache|Posix", cache_buffer_capacity_gb={CAPACITY_GB!r}, **keys) as store:
        result = await store.dump(ucm.block_ids(range({BLOCKS})), None, np.zeros(({BLOCKS}, {BLOCK_BYTES}), np.uint8))
        result.raise_for_failures()
        print("ready", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.fixture
def unique_id() -> Iterator[str]:
    one = f"test-shm-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    yield one
    (SHM / f"ucm-async.{one}").unlink(missing_ok=True)


@pytest.fixture
def user(unique_id: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that lives in the segment, with some blocks in it."""
    command = [sys.executable, "-c", CHILD, str(tmp_path), unique_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def shm(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = main(["shm", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def listed(capsys: pytest.CaptureFixture[str], unique_id: str) -> dict[str, Any] | None:
    code, found = shm(capsys, "list")
    assert code == 0
    return next((one for one in found if one["name"] == f"ucm-async.{unique_id}"), None)


def kill(user: subprocess.Popen[str]) -> None:
    user.send_signal(signal.SIGKILL)
    user.wait()


def test_a_segment_in_use(user: subprocess.Popen[str], unique_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys, unique_id)
    assert found is not None
    assert found["state"] == "live"
    assert found["counters"]["slots"] == 64
    assert found["counters"]["used"] == BLOCKS
    assert found["nbytes"] == (SHM / found["name"]).stat().st_size
    assert [(one["pid"], one["alive"]) for one in found["processes"]] == [(user.pid, True)]

    code, shown = shm(capsys, "show", unique_id, "--blocks")
    assert code == 0
    assert shown["blocks"]["ready"] == BLOCKS
    assert shown["blocks"]["empty"] == 64 - BLOCKS
    ids = {one.tobytes().hex() for one in ucm.block_ids(range(BLOCKS))}
    assert {one["block_id"] for one in shown["slots_in_use"]} == ids
    assert {one["state"] for one in shown["slots_in_use"]} == {"ready"}


def test_it_is_removed_only_by_force(
    user: subprocess.Popen[str], unique_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shm", "remove", unique_id]) == 1
    assert str(user.pid) in capsys.readouterr().err
    assert listed(capsys, unique_id) is not None
    assert main(["shm", "remove", unique_id, "--force"]) == 0
    assert listed(capsys, unique_id) is None
    assert user.poll() is None, "who lives in it goes on"


def test_what_a_killed_process_left_is_known_and_removed(
    user: subprocess.Popen[str], unique_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kill(user)
    found = listed(capsys, unique_id)
    assert found is not None
    assert found["state"] == "dead"
    assert [one["alive"] for one in found["processes"]] == [False]
    assert main(["shm", "list"]) == 0
    assert "(dead)" in capsys.readouterr().out
    assert shm(capsys, "remove", f"/ucm-async.{unique_id}") == (
        0,
        {"name": f"/ucm-async.{unique_id}", "removed": True},
    )
    assert listed(capsys, unique_id) is None


def test_doctor_tells_what_was_left(
    user: subprocess.Popen[str], unique_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> dict[str, Any]:
        main(["doctor", "--json", str(tmp_path)])
        findings = json.loads(capsys.readouterr().out)["findings"]
        return next(one for one in findings if one["name"] == "segments of the Cache")

    assert told()["value"] >= 1
    assert unique_id not in told()["text"], "it is in use"
    kill(user)
    assert unique_id in told()["text"]
    assert told()["state"] == "slower"


def test_looking_changes_nothing(
    user: subprocess.Popen[str], unique_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kill(user)
    before = (SHM / f"ucm-async.{unique_id}").read_bytes()
    for words in (["list"], ["show", unique_id, "--blocks"]):
        shm(capsys, *words)
    assert (SHM / f"ucm-async.{unique_id}").read_bytes() == before

    async def adopt() -> np.ndarray[Any, Any]:
        keys: dict[str, Any] = {"block_size": BLOCK_BYTES, "namespace": "shm tests", "unique_id": unique_id}
        keys["cache_buffer_capacity_gb"] = CAPACITY_GB
        async with ucm.open_store("Cache|Posix", storage_backends=str(tmp_path), **keys) as store:
            return await store.lookup(ucm.block_ids(range(BLOCKS)))

    assert asyncio.run(adopt()).all()


@pytest.mark.parametrize(
    ("content", "state"), [(b"", "unfinished"), (b"x" * 100, "damaged"), (b"\0" * 8192, "damaged")]
)
def test_what_is_no_segment(content: bytes, state: str, unique_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    (SHM / f"ucm-async.{unique_id}").write_bytes(content)
    found = listed(capsys, unique_id)
    assert found is not None
    assert found["state"] == state
    assert found["why"]
    assert shm(capsys, "remove", unique_id)[0] == 0


def test_a_truncated_segment_is_told(
    user: subprocess.Popen[str], unique_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kill(user)
    os.truncate(SHM / f"ucm-async.{unique_id}", 4096)
    found = listed(capsys, unique_id)
    assert found is not None
    assert found["state"] == "damaged"
    assert main(["shm", "show", unique_id]) == 0
    assert "damaged" in capsys.readouterr().out
    assert main(["shm", "show", unique_id, "--blocks"]) == 2


def test_the_tables_say_what_matters(
    user: subprocess.Popen[str], unique_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shm", "list"]) == 0
    told = capsys.readouterr().out
    for words in (unique_id, "live", str(user.pid), "s3fifo", f"{BLOCKS} of 64"):
        assert words in told
    assert main(["shm", "show", unique_id, "--blocks"]) == 0
    told = capsys.readouterr().out
    for words in ("slots ready", "hit ratio", "pid_namespace", ucm.block_ids([0])[0].tobytes().hex()):
        assert words in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show"], "name a segment"),
        (["remove"], "name a segment"),
        (["list", "x"], "takes no name"),
        (["show", "no-such-thing"], "no such segment"),
        (["remove", "../shm/x"], "no such segment"),
    ],
)
def test_wrong_usage(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shm", *words]) == 2
    assert says in capsys.readouterr().err
