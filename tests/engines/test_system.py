"""What the file system is asked for beside requests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ucm_async.engines.system import System


def test_directories_apart_have_their_names_and_nothing_else_is_left(tmp_path: Path) -> None:
    System().mkdir_apart(tmp_path, ["a", "b"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_directories_apart_are_asked_for_where_the_file_system_knows_how(tmp_path: Path) -> None:
    parent, probe = tmp_path / "parent", tmp_path / "probe"
    parent.mkdir()
    probe.mkdir()
    System().mkdir_apart(parent, ["a"])
    marked = shutil.which("chattr") and subprocess.run(["chattr", "+T", probe], capture_output=True, check=False)
    if not marked or marked.returncode:
        pytest.skip("no chattr, or a file system without the flag")
    listed = subprocess.run(["lsattr", "-d", parent], capture_output=True, check=True, text=True).stdout
    assert "T" in listed.split()[0]


def test_a_parent_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        System().mkdir_apart(tmp_path / "missing", ["a"])
