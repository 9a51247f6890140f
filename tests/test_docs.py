"""Every python block of the README and the documentation runs, in order, a file at a time, in an empty directory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from ucm_async import StoreConfig
from ucm_async._config_checks import CHECKS
from ucm_async.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_its_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = Sybil(parsers=[PythonCodeBlockParser()], path=str(page.parent)).parse(page)
    examples = list(document.examples())
    blocks = len(re.findall(r"^```python$", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(examples) == blocks, "a python block would not be run"
    for example in examples:
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_the_configuration_page_has_every_key_and_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", (ROOT / "docs/configuration.md").read_text(encoding="utf-8"), re.M)
    assert sorted(key for key, _ in rows) == sorted(CHECKS)
    defaults = StoreConfig(block_size=7).as_dict()
    special = {"block_size": "required", "shard_size": "`block_size`"}
    for key, default in rows:
        value = defaults[key]
        words = {None: "none", (): "none", True: "true", False: "false"}
        text = special.get(key) or (f'`"{value}"`' if isinstance(value, str) else None)
        if text is None:
            text = "none" if value == {} else words[value] if value in words and value not in (0, 1) else str(value)
        if isinstance(value, bool):
            text = words[value]
        assert default == text, key


def test_the_command_line_page_has_every_command() -> None:
    headings = re.findall(r"^## (\w+)", (ROOT / "docs/command_line.md").read_text(encoding="utf-8"), re.M)
    assert sorted(headings) == sorted(COMMANDS)
