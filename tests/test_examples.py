from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(directory: Path) -> list[tuple[int, int]]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / "frontend.py"), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [(int(a), int(b)) for a, b in re.findall(r"(\d+) blocks loaded, (\d+) computed", done.stdout)]


def test_the_frontend_computes_only_what_is_not_stored(tmp_path: Path) -> None:
    assert run(tmp_path) == [(0, 44), (32, 12)]
    assert run(tmp_path) == [(44, 0), (44, 0)]
