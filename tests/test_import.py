"""What an import of the package gives, and what it leaves out."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import inspect
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ucm_async


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["asyncio", "anyio", "uvloop", "rich", "yaml", "torch", "ucm_async.store"])
def test_the_import_leaves_out_what_only_some_need(module: str) -> None:
    assert run_python(f"import sys, ucm_async; print({module!r} in sys.modules)") == "False"


def test_every_public_name_is_there() -> None:
    for name in ucm_async.__all__:
        assert getattr(ucm_async, name) is not None
        assert name in dir(ucm_async)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'opn_store'"):
        ucm_async.opn_store  # type: ignore[attr-defined]  # noqa: B018


def test_public_names_are_documented() -> None:
    public = {name: getattr(ucm_async, name) for name in ucm_async.__all__}
    real = {name: one for name, one in public.items() if inspect.isclass(one) or inspect.isfunction(one)}
    undocumented = [name for name, one in real.items() if not (one.__doc__ or "").strip()]
    assert undocumented == []


def test_errors_say_what_they_are_and_survive_pickling() -> None:
    error = ucm_async.CorruptError("checksum differs", row=3, block_id=b"\1" * 16, shard=2)
    copy = pickle.loads(pickle.dumps(error))
    assert str(error) == f"row 3: block {'01' * 16} shard 2: checksum differs"
    assert isinstance(copy, ucm_async.CorruptError)


def test_the_version_is_the_one_installed() -> None:
    assert importlib.metadata.version("ucm-async") == ucm_async.__version__


def test_types_are_shipped() -> None:
    files = importlib.resources.files("ucm_async")
    assert files.joinpath("py.typed").is_file()
    assert files.joinpath("_native.pyi").is_file()


def test_every_c_file_is_built_and_every_header_watched() -> None:
    root = Path(__file__).parent.parent
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    (extension,) = settings["tool"]["setuptools"]["ext-modules"]
    assert extension["sources"] == sorted(f"ext/{file.name}" for file in (root / "ext").glob("*.c"))
    assert extension["depends"] == sorted(f"ext/{file.name}" for file in (root / "ext").glob("*.h"))
