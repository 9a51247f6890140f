"""The packed request is the same on both sides, and the module offers what its stub says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import ucm_async
from ucm_async import _portable
from ucm_async.engines import requests as python_side

from .tools import native

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "ext" / "request.h"
STUB = Path(ucm_async.__file__).parent / "_native.pyi"


def header() -> str:
    if not HEADER.exists():
        pytest.skip("the C sources are not here")
    return HEADER.read_text()


def test_fields_are_where_c_has_them() -> None:
    c_types = {"uint32_t": "<u4", "int32_t": "<i4", "uint64_t": "<u8", "int64_t": "<i8"}
    struct = re.search(r"struct request \{(.*?)\};", header(), re.S)
    assert struct
    fields = re.findall(r"^\s*(u?int\d+_t) (\w+);", struct[1], re.M)
    assert [(name, c_types[kind]) for kind, name in fields] == [
        (name, python_side.REQUEST[name].str) for name in python_side.REQUEST.names or ()
    ]
    assert native.REQUEST_BYTES == python_side.REQUEST.itemsize == 48


def test_numbers_are_the_same() -> None:
    text = header()
    c_numbers = {name: int(value, 0) for name, value in re.findall(r"\b(OP_\w+) = (\d+)", text)}
    c_numbers |= {name: int(value, 16) for name, value in re.findall(r"#define (OP_MASK|FLAG_\w+) (0x\w+?)u", text)}
    ours = {name: value for name, value in vars(python_side).items() if name.startswith(("OP_", "FLAG_"))}
    assert c_numbers == ours


def test_the_numbers_of_tables_are_the_twin_s() -> None:
    names = [name for name in dir(_portable) if re.match(r"(CLAIM|WATCH|TABLE)_|REASON_MAX|PROCESSES_MAX", name)]
    assert len(names) == 15
    assert all(getattr(_portable, name) == getattr(native, name) for name in names)


def test_every_name_of_the_stub_exists() -> None:
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ClassDef):
            made = getattr(native, node.name)
            for member in node.body:
                name = member.name if isinstance(member, ast.FunctionDef) else getattr(member, "target", None)
                name = name.id if isinstance(name, ast.Name) else name
                # Python before 3.12 does not show the buffer protocol as a method.
                assert name in (None, "__buffer__") or hasattr(made, name), f"{node.name}.{name}"
        elif isinstance(node, ast.FunctionDef):
            assert callable(getattr(native, node.name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert hasattr(native, node.target.id)


@pytest.mark.parametrize(
    "name",
    [
        "Gate",
        "Exports",
        "ThreadPool",
        "AioContext",
        "UringContext",
        "Driver",
        "Mapping",
        "IdTable",
        "BlockTable",
        "Watcher",
    ],
)
def test_types_are_final_and_cannot_be_changed(name: str) -> None:
    kind = getattr(native, name)
    with pytest.raises(TypeError):
        type("Child", (kind,), {})
    with pytest.raises(TypeError):
        kind.colour = "red"
    assert kind.__module__ == "ucm_async._native"


def test_exports_are_made_by_export_buffers_only() -> None:
    with pytest.raises(TypeError):
        native.Exports()


def test_io_setup_limit() -> None:
    used, most = native.io_setup_limit()
    assert (used, most) == (-1, -1) or 0 <= used <= most
