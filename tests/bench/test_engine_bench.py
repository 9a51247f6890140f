from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from ucm_async.bench.engine import CASES, run_cases
from ucm_async.bench.limit import LimitProgram, compile_limit
from ucm_async.bench.measure import Finding
from ucm_async.bench.setting import BenchError, Setting, Shape
from ucm_async.cli import main

SHAPES = (Shape(1 << 20, 3), Shape(65536, 10))


def small(directory: Path, **other: object) -> Setting:
    return Setting(directory, SHAPES, rounds=2, busy_blocks=4, **other)  # type: ignore[arg-type]


async def run_case(name: str, setting: Setting) -> list[Finding]:
    found = await run_cases(setting, [name])
    assert found
    assert all(one.case == name for one in found)
    assert all(one.value.low <= one.value.median <= one.value.high for one in found if name != "ticker")
    assert json.loads(json.dumps([one.as_dict() for one in found]))
    assert await asyncio.to_thread(lambda: list(setting.directory.iterdir())) == [], "the scratch directories are gone"
    return found


@pytest.mark.parametrize("case", [name for name in CASES if name != "latency"])
async def test_every_case_measures_a_real_store(case: str, tmp_path: Path) -> None:
    await run_case(case, small(tmp_path))


@pytest.mark.may_block("the bare preadv on the loop is what a load is compared with")
async def test_latency_case_measures_a_real_store(tmp_path: Path) -> None:
    found = await run_case("latency", small(tmp_path))
    assert {"registered", "preadv"} <= set(found[0].detail or {})


_MEMORIES = ("registered", "unregistered")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("per_call", [None, 4])
async def test_loads_and_dumps_are_compared_with_a_c_program(tmp_path: Path, per_call: int | None) -> None:
    program = LimitProgram(await asyncio.to_thread(compile_limit), direct=False)
    setting = small(tmp_path, per_call=per_call, direct=False, reader=program, creator=program)
    loads = await run_case("load", setting)
    programs = ("C program", "C program on the store's files")
    shapes = ("3 x 1 MiB", "10 x 64 KiB")
    assert {(one.what, one.reference) for one in loads if one.unit == "GB/s"} == {
        *((f"{shape}, {name}", program) for shape in shapes for name in _MEMORIES for program in programs),
        ("10 x 64 KiB, registered", "threads"),
    }
    dumps = await run_case("dump", setting)
    assert all(one.ratio is not None for one in (*loads, *dumps))


async def test_a_full_disk_is_told_before_it_is_filled(tmp_path: Path) -> None:
    setting = Setting(tmp_path, (Shape(1 << 40, 1000),))
    with pytest.raises(BenchError, match="GB are free"):
        async with setting.folder("huge", Shape(1 << 40, 1000).total_bytes):
            pass


# --- the command line ---


def test_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        [
            "bench",
            "engine",
            "--only",
            "lookup,load",
            "--rounds",
            "1",
            "--shape",
            "65536x4",
            "--dir",
            str(tmp_path),
            "--json",
        ]
    )
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [one["case"] for one in told["findings"]] == ["lookup"] * 4 + ["load"] * 7
    assert told["setting"]["rounds"] == 1


def test_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["bench", "engine", "--only", "open", "--rounds", "1", "--engine", "psync", "--dir", str(tmp_path)]) == 0
    )
    assert "open_store, new directory" in capsys.readouterr().out


def test_command_without_a_compiler_measures_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "no-such-compiler")
    words = [
        "bench",
        "engine",
        "--only",
        "load",
        "--rounds",
        "1",
        "--shape",
        "65536x4",
        "--dir",
        str(tmp_path),
        "--json",
    ]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "no C compiler" in said.err
    speeds = [one for one in json.loads(said.out)["findings"] if one["reference"] == "C program"]
    assert speeds
    assert all(one["ratio"] is None and one["met"] is None for one in speeds)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--yardstick", "/no/such/program"], "/no/such/program"),
        (["--dir", "/no/such/directory", "--only", "open"], "/no/such/directory"),
    ],
)
def test_bad_arguments_are_errors(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "engine", "--dir", str(tmp_path), *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--only", "loads"],
        ["--rounds", "0"],
        ["--rounds", "many"],
        ["--shape", "4096"],
        ["--shape", "4096x0"],
        ["--shape", "4097x2"],
    ],
)
def test_wrong_usage_is_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["bench", "engine", *words])
    assert raised.value.code == 2
    assert f"argument {words[0]}: " in capsys.readouterr().err


def test_plot_says_what_it_needs_or_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "ratios.png"
    words = ["--only", "load", "--rounds", "1", "--shape", "65536x4", "--dir", str(tmp_path), "--plot", str(picture)]
    code = main(["bench", "engine", *words])
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert code == 2
        assert "matplotlib" in capsys.readouterr().err
    else:
        assert code == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
