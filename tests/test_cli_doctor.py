"""``ucm-async`` and its ``doctor``, as called from a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ucm_async import __version__
from ucm_async.cli import COMMANDS, main
from ucm_async.cli.machine import Finding


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def finding(report: dict[str, Any], name: str) -> Finding:
    (found,) = [Finding(**one) for one in report["findings"] if one["name"] == name]
    return found


class TestFrame:
    def test_without_a_command_it_tells_the_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main([])
        assert stop.value.code == 2
        assert "usage: ucm-async" in capsys.readouterr().err

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["--version"])
        assert stop.value.code == 0
        assert capsys.readouterr().out == f"ucm-async {__version__}\n"

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_has_help_and_json(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"usage: ucm-async {command}" in capsys.readouterr().out

    def test_an_unknown_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["replya"])
        assert stop.value.code == 2
        assert "replya" in capsys.readouterr().err

    def test_as_a_process_with_a_reader_that_leaves(self, tmp_path: Path) -> None:
        script = f"{sys.executable} -m ucm_async.cli doctor --json {tmp_path} | head -n 1"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert done.stdout == "{\n"
        assert done.stderr == ""


class TestDoctor:
    def test_a_machine_that_runs_the_tests_can_serve(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, report = doctor(capsys, str(tmp_path))
        assert code == 0
        assert report["can_serve"] is True
        assert finding(report, "psync").value is True
        assert finding(report, "ucm_async").value == __version__
        assert finding(report, "cores").value == len(os.sched_getaffinity(0))
        assert finding(report, "free").value > 0  # type: ignore[operator]
        assert finding(report, "directory").value == str(tmp_path)

    def test_it_leaves_nothing_behind(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        doctor(capsys, str(tmp_path))
        assert os.listdir(tmp_path) == []

    def test_everything_is_explained(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, report = doctor(capsys, str(tmp_path))
        names = [one["name"] for one in report["findings"]]
        assert len(set(names)) == len(names)
        for one in report["findings"]:
            assert one["state"] in ("ok", "slower", "broken")
            if one["name"] in ("psync", "aio", "uring") and not one["value"]:
                assert one["text"], "an engine that does not work must say why"

    def test_a_missing_directory(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, report = doctor(capsys, str(tmp_path / "none"))
        assert code == 1
        assert report["can_serve"] is False
        assert finding(report, "directory").state == "broken"
        assert finding(report, "directory").advice == f"mkdir -p {tmp_path / 'none'}"

    def test_memory_is_no_disk(self, capsys: pytest.CaptureFixture[str]) -> None:
        if not os.access("/dev/shm", os.W_OK):
            pytest.skip("no /dev/shm here")
        code, report = doctor(capsys, "/dev/shm")
        assert code == 0
        assert finding(report, "file system").value == "tmpfs"
        assert "do not survive" in finding(report, "file system").advice

    def test_the_table_has_every_finding(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        for word in ("psync", "aio", "uring", "O_DIRECT", "RLIMIT_MEMLOCK", "/dev/shm", "A store can serve here"):
            assert word in out

    def test_without_the_extension_it_says_so(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "ucm_async.cli", "doctor", "--json", str(tmp_path)]
        environment = {**os.environ, "UCM_ASYNC_PORTABLE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        report = json.loads(done.stdout)
        assert done.returncode == 0
        assert finding(report, "extension").value is False
        assert "UCM_ASYNC_PORTABLE" in finding(report, "extension").text
        assert finding(report, "psync").value is True
        assert finding(report, "uring").value is False
