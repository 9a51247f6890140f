"""Rules for the C sources that no compiler checks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

EXT = Path(__file__).parents[2] / "ext"
SOURCES = sorted(EXT.glob("*.[ch]"))

pytestmark = pytest.mark.skipif(not SOURCES, reason="the C sources are not here")


def code_of(path: Path) -> str:
    """The text without comments and strings."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.S)
    return re.sub(r'"(?:\\.|[^"\\])*"', '""', text)


def functions_of(path: Path) -> dict[str, str]:
    """Name and body of every function of a file."""
    return {
        match[1]: match[2]
        for match in re.finditer(r"^(?:[\w ]+[ *])?(\w+)\([^;{}]*\)\n\{\n(.*?)^\}", code_of(path), re.S | re.M)
    }


# Who takes a buffer keeps it inside this function, or hands it to these, which the tests of leaks run.
RELEASED_ELSEWHERE = {
    "requests_view": ["batch_free", "execute"],
    "take_views": ["release_all"],
    "blocktable_new": ["blocktable_dealloc"],
    "take_arrays": ["drop_arrays"],
    "slottable_new": ["slottable_dealloc"],
}


def test_every_buffer_is_released() -> None:
    functions = {name: body for path in SOURCES for name, body in functions_of(path).items()}
    takers = {name for name, body in functions.items() if "PyObject_GetBuffer(" in body}
    assert {"requests_view", "take_views", "crc32c_function", "ids_view", "codings_view"} <= takers
    for name in takers:
        if name in RELEASED_ELSEWHERE:
            for other in RELEASED_ELSEWHERE[name]:
                assert "PyBuffer_Release(" in functions[other], other
        else:
            assert "PyBuffer_Release(" in functions[name], name
    for name, body in functions.items():
        for view in ("requests_view", "ids_view", "words_view", "array_view", "extents_view", "codings_view"):
            if f"{view}(" in body and name not in ("batch_new", "first_view", *RELEASED_ELSEWHERE):
                assert "PyBuffer_Release(" in body, f"{name} uses {view}"
        if "take_arrays(" in body and name != "begin":
            assert "drop_arrays(" in body or "done_with(" in body, name
        if "begin(self" in body:
            assert "drop_arrays(" in body or "end_of_ours(" in body, name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_static_types_and_no_old_calls(path: Path) -> None:
    code = code_of(path)
    assert not re.search(r"\bPyTypeObject\s+\w+\s*=", code)
    assert "PyModule_Create" not in code
    assert not re.search(r"\b(strcpy|strcat|sprintf|gets|alloca)\(", code)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_files_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
    for name, body in functions_of(path).items():
        assert len(body.splitlines()) <= 40, name


def test_mutable_state_belongs_to_objects() -> None:
    """Static variables that are not const: only the checksum's tables, which are written once."""
    found = {}
    for path in SOURCES:
        for match in re.finditer(
            r"^static (?!const|inline)(?!.*\bconst\b)[\w ]+[ *](\w+)(?:\[\w*\])*(?: = [^;]+)?;", code_of(path), re.M
        ):
            found[match[1]] = path.name
    tables = {name for name, where in found.items() if not name.endswith(("_methods", "_attributes", "_slots"))}
    shifts = {"by_rows", "by_line", "by_lane"}
    assert tables == {"slices", "after_lane", "hardware", "folding", "once", "module_definition"} | shifts
