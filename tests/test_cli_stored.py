"""``ucm-async fsck``, ``gc``, ``stat``, ``delete`` and ``quarantine`` on the files of real stores, open and closed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ucm_async as ucm
from ucm_async import Status
from ucm_async.cli import main
from ucm_async.engines.system import current_system
from ucm_async.space.survey import collecting

from .space.support import BLOCK, FILE, GIB, block_files, content, disk_usage, keys, space_of, stage_of

Found = dict[str, Any]


@pytest.fixture
def kv(tmp_path: Path) -> Path:
    place = tmp_path / "kv"
    place.mkdir()
    return place


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def fill(place: Path, first: int, count: int, **changes: Any) -> None:
    ids = ucm.block_ids(range(first, first + count))
    async with ucm.open_store("Posix", **keys(place, **changes)) as store:
        assert (await store.dump(ids, None, content(ids))).ok.all()


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Found]:
    capsys.readouterr()
    code = main([str(words[0]), "--json", *map(str, words[1:])])
    return code, json.loads(capsys.readouterr().out)


def path_of(place: Path, number: int) -> Path:
    (path,) = place.glob(f"*/??/{ucm.block_ids([number])[0].tobytes().hex()}")
    return path


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def kill_a_writer(place: Path) -> None:
    """Leave what a process leaves that dies at a dump."""
    code = (
        "import asyncio, os, sys\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "import numpy as np, ucm_async as ucm\n"
        "from tests.space.support import keys, BLOCK\n"
        "async def main():\n"
        "    store = await ucm.open_store('Posix', **keys(sys.argv[1]))\n"
        "    await store.dump(ucm.block_ids([99]), [0], np.zeros((1, BLOCK // 4), np.uint8))\n"
        "    os._exit(9)\n"
        "asyncio.run(main())\n"
    )
    root = str(Path(__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code, str(place), root]).returncode == 9


# ---- fsck


def test_a_clean_store(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(fill(kv, 0, 20))
    run(fill(kv, 0, 5, namespace="other"))
    code, told = call(capsys, "fsck", kv)
    assert code == 0
    assert told["clean"]
    assert sorted((one["namespace"], one["blocks"], one["bytes"]) for one in told["namespaces"]) == [
        ("other", 5, 5 * FILE),
        ("space", 20, 20 * FILE),
    ]
    assert main(["fsck", str(kv)]) == 0
    assert "20 blocks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("at", "why"),
    [(0, "no block header"), (20, "the header's checksum is wrong"), (4000, "padding"), (4096 + BLOCK // 4, "shard 1")],
)
def test_a_flipped_bit(kv: Path, at: int, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(fill(kv, 0, 10))
    flip(path_of(kv, 3), at)
    code, told = call(capsys, "fsck", kv)
    (finding,) = told["namespaces"][0]["findings"]
    assert code == 1
    assert finding["kind"] == "damaged"
    assert why in finding["why"]
    assert finding["block_id"] == ucm.block_ids([3])[0].tobytes().hex()
    assert call(capsys, "fsck", kv, "--repair")[0] == 0
    assert call(capsys, "fsck", kv)[0] == 0
    assert len(list(kv.glob("*/quarantine/*"))) == 1


def damage(kv: Path) -> int:
    """Everything that can be wrong; returns how many findings that makes."""
    os.truncate(path_of(kv, 0), 4096 + 100)
    path_of(kv, 1).write_bytes(b"")
    os.replace(path_of(kv, 2), path_of(kv, 3))  # another block's content
    home = path_of(kv, 4).parent.parent
    wrong = home / ("00" if path_of(kv, 4).parent.name != "00" else "01")
    wrong.mkdir(exist_ok=True)
    shutil.move(path_of(kv, 4), wrong)
    (path_of(kv, 5).parent / "a note").write_text("of somebody")
    kill_a_writer(kv)
    return 6


def test_everything_that_can_be_wrong(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(fill(kv, 0, 20))
    count = damage(kv)
    code, told = call(capsys, "fsck", kv)
    findings = told["namespaces"][0]["findings"]
    assert code == 1
    assert sorted(one["kind"] for one in findings) == ["damaged"] * 4 + ["leftover", "strange"]
    assert len(findings) == count
    code, told = call(capsys, "fsck", kv, "--repair")
    assert code == 1, "what is strange stays"
    assert told["namespaces"][0]["set_aside"] == 4
    assert told["namespaces"][0]["swept_bytes"] >= FILE
    (left,) = call(capsys, "fsck", kv)[1]["namespaces"][0]["findings"]
    assert left["kind"] == "strange"
    assert main(["fsck", str(kv)]) == 1
    assert "no block has such a name" in capsys.readouterr().out

    (path_of(kv, 5).parent / "a note").unlink()

    async def after() -> None:
        async with ucm.open_store("Posix", **keys(kv)) as store:
            ids = ucm.block_ids(range(20))
            expected = [n >= 5 for n in range(20)]
            assert (await store.lookup(ids)).tolist() == expected
            await stage_of(store)._space.manager.counted()  # a writer died
            assert space_of(store)["used_bytes"] == sum(path.stat().st_size for path in block_files(kv))
            assert (await store.dump(ids, None, content(ids))).ok.all()

    run(after())


async def test_beside_a_store_that_runs(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes part in the account: what the open store says it uses stays right."""
    async with ucm.open_store("Posix", **keys(kv, capacity=100)) as store:
        ids = ucm.block_ids(range(30))
        await store.dump(ids, None, content(ids))
        flip(path_of(kv, 7), 5000)
        assert await asyncio.to_thread(main, ["fsck", "--json", str(kv)]) == 1
        assert await asyncio.to_thread(main, ["fsck", "--json", "--repair", str(kv)]) == 0
        out = np.zeros((1, BLOCK), np.uint8)
        assert (await store.load(ids[7:8], None, out)).status.tolist() == [Status.MISS]
        assert space_of(store)["used_bytes"] == disk_usage(kv) == 30 * FILE
        words = ["delete", "--json", str(kv), "--namespace", "space"]
        one = ids[3].tobytes().hex()
        assert await asyncio.to_thread(main, [*words, "--id", one]) == 0
        assert space_of(store)["used_bytes"] == disk_usage(kv) == 29 * FILE
        assert await asyncio.to_thread(main, [*words, "--id", one]) == 1
        assert await asyncio.to_thread(main, ["quarantine", "purge", "--json", str(kv)]) == 0
        assert space_of(store)["used_bytes"] == disk_usage(kv) == 28 * FILE
        assert await asyncio.to_thread(main, [*words, "--all"]) == 0
        assert space_of(store)["used_bytes"] == disk_usage(kv) == 0
        assert space_of(store)["exact"]
        assert (await store.dump(ids, None, content(ids))).ok.all()
        capsys.readouterr()
        assert await asyncio.to_thread(main, ["stat", "--json", str(kv)]) == 0
        assert json.loads(capsys.readouterr().out)["namespaces"][0]["open_stores"] == 1


def test_a_block_on_the_wrong_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = tmp_path / "a", tmp_path / "b"
    run(fill(tmp_path, 0, 30, storage_backends=[str(one), str(other)]))
    assert call(capsys, "fsck", one, other)[0] == 0
    moved = block_files(one)[0]
    home = other / moved.relative_to(one).parent
    home.mkdir(parents=True, exist_ok=True)
    shutil.move(moved, home)
    code, told = call(capsys, "fsck", one, other)
    (finding,) = [found for place in told["namespaces"] for found in place["findings"]]
    assert code == 1
    assert finding["kind"] == "strange"
    assert finding["where"].endswith(moved.name)
    assert finding["why"].endswith(str(one))
    assert call(capsys, "fsck", one, other, "--repair")[0] == 1, "it may be another configuration's: it stays"
    assert (home / moved.name).exists()
    assert call(capsys, "fsck", other)[0] == 0, "alone it says nothing about others"


# ---- quarantine


def test_quarantine(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(fill(kv, 0, 10))
    for number in (1, 2):
        flip(path_of(kv, number), 6000)
    call(capsys, "fsck", kv, "--repair")
    code, told = call(capsys, "quarantine", "list", kv)
    assert code == 0
    assert sorted(one["block_id"] for one in told["blocks"]) == sorted(
        one.tobytes().hex() for one in ucm.block_ids([1, 2])
    )
    assert all("shard 0" in one["why"] for one in told["blocks"])
    aside = next(kv.glob(f"*/quarantine/{ucm.block_ids([1])[0].tobytes().hex()}"))
    flip(aside, 6000)  # the disk has recovered
    assert main(["quarantine", "list", str(kv)]) == 0
    assert "it can be restored" in capsys.readouterr().out
    code, told = call(capsys, "quarantine", "restore", kv)
    assert code == 1
    assert told["restored"] == 1
    assert path_of(kv, 1).exists()
    code, told = call(capsys, "quarantine", "purge", kv)
    assert (code, told["purged_bytes"]) == (0, FILE)
    assert call(capsys, "quarantine", "list", kv)[1]["blocks"] == []


# ---- gc, stat, delete


def test_gc_takes_the_coldest(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def use() -> None:
        ids = ucm.block_ids(range(16))  # few enough to be dumped, and counted, as one
        async with ucm.open_store("Posix", **keys(kv)) as store:
            await store.dump(ids, None, content(ids))
            await store.load(ids[:5], None, np.zeros((5, BLOCK), np.uint8))

    run(use())
    flip(path_of(kv, 0), 5000)
    call(capsys, "fsck", kv, "--repair")
    bound = ("--capacity-gb", 6.5 * FILE / GIB, "--low", 1)
    code, told = call(capsys, "gc", "--dry-run", kv, *bound)
    (one,) = told["namespaces"]
    assert code == 0
    assert not told["removed"]
    assert len(block_files(kv)) == 16
    assert one["set_aside"] == 1
    # Of those that were dumped together the last go first, and those that were loaded stay.
    assert [block["block_id"] for block in one["blocks"]] == [
        ucm.block_ids([n])[0].tobytes().hex() for n in range(15, 6, -1)
    ]
    assert one["bytes"] == 10 * FILE
    assert main(["gc", "--dry-run", str(kv), *map(str, bound)]) == 0
    assert "would go: 9 blocks" in capsys.readouterr().out
    assert call(capsys, "gc", kv, *bound)[1]["removed"]
    assert disk_usage(kv) == 6 * FILE
    assert call(capsys, "gc", kv, *bound)[1]["namespaces"][0]["blocks"] == []


def test_gc_by_quota_and_over_backends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [tmp_path / "a", tmp_path / "b"]
    run(fill(tmp_path, 0, 30, storage_backends=[str(one) for one in both]))
    run(fill(tmp_path, 0, 30, storage_backends=[str(one) for one in both], namespace="other"))
    code, told = call(capsys, "gc", *both, "--quota-gb", 20 * FILE / GIB, "--low", 1, "--namespace", "other")
    assert code == 0
    assert [one["namespace"] for one in told["namespaces"]] == ["other"]
    assert disk_usage(both[0]) + disk_usage(both[1]) == 50 * FILE


def test_gc_takes_turns_with_stores(
    kv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(fill(kv, 0, 10))
    root = path_of(kv, 0).parents[1]
    fingerprint = bytes.fromhex(root.name.rpartition("-")[2])
    bound = ("--quota-gb", 5 * FILE / GIB, "--low", 1)
    with collecting(current_system(), fingerprint, [root]):
        assert call(capsys, "gc", kv, "--dry-run", *bound)[0] == 0, "it only looks"
        monkeypatch.setattr("ucm_async.space.survey.PATIENCE_S", 0.05)
        assert main(["gc", str(kv), *map(str, bound)]) == 2
        assert "another process has been collecting" in capsys.readouterr().err
        assert disk_usage(kv) == 10 * FILE
    assert call(capsys, "gc", kv, *bound)[0] == 0
    assert disk_usage(kv) == 5 * FILE


def test_stat(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(fill(kv, 0, 8))
    old = time.time() - 3 * 86400
    for number in range(3):
        os.utime(path_of(kv, number), (old, old))
    code, told = call(capsys, "stat", kv)
    (one,) = told["namespaces"]
    assert code == 0
    assert one["bytes_by_age"] == {"hour": 5 * FILE, "day": 0, "week": 3 * FILE, "older": 0}
    assert (one["blocks"], one["bytes"], one["open_stores"]) == (8, 8 * FILE, 0)
    assert told["total"]["bytes"] == 8 * FILE
    assert main(["stat", str(kv)]) == 0
    assert "space" in capsys.readouterr().out


def test_delete(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(fill(kv, 0, 8))
    run(fill(kv, 0, 8, namespace="other"))
    ids = [one.tobytes().hex() for one in ucm.block_ids([1, 2, 50])]
    words = ("delete", kv, "--namespace", "space")
    chosen = [word for one in ids for word in ("--id", one)]
    code, told = call(capsys, *words, *chosen, "--dry-run")
    assert (code, told["blocks"], told["missing"]) == (1, 2, ids[2:])
    assert len(block_files(kv)) == 16
    assert call(capsys, *words, *chosen)[1]["bytes"] == 2 * FILE
    assert call(capsys, *words, "--all")[0] == 0
    assert len(block_files(kv)) == 8

    async def other() -> None:
        async with ucm.open_store("Posix", **keys(kv, namespace="other")) as store:
            assert (await store.lookup(ucm.block_ids(range(8)))).all()
            assert space_of(store)["all_namespaces_bytes"] == 8 * FILE

    run(other())


# ---- wrong usage


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["fsck", "{}/nowhere"], "not a directory"),
        (["fsck", "{}", "--namespace", "unknown"], "'unknown'"),
        (["gc", "{}"], "no bound"),
        (["gc", "{}", "--quota-gb", "1", "--low", "2"], "at most 1"),
    ],
)
def test_wrong_usage(kv: Path, words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(fill(kv, 0, 1))
    assert main([word.replace("{}", str(kv)) for word in words]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("one", ["abc", "zz" * 16, "00" * 15])
def test_an_id_that_is_none(kv: Path, one: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["delete", str(kv), "--namespace", "space", "--id", one])
    assert "32 hex digits" in capsys.readouterr().err
