"""The guard of `conftest` does see a blocking call of the package, and nobody else's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockingError

import ucm_async


def function_of(file: str) -> Any:
    """Return a coroutine function that blocks, as if it stood in `file`."""
    names: dict[str, Any] = {}
    source = "import os\nasync def block(call, *arguments): return getattr(os, call)(*arguments)"
    exec(compile(source, file, "exec"), names)
    return names["block"]


IN_PACKAGE = function_of(str(Path(ucm_async.__file__).parent / "stages" / "made_up.py"))
ELSEWHERE = function_of("/somewhere/made_up.py")


@pytest.mark.parametrize("call", ["stat", "listdir", "mkdir"])
async def test_a_blocking_call_of_the_package_fails(call: str, tmp_path: Path) -> None:
    with pytest.raises(BlockingError, match=call):
        await IN_PACKAGE(call, str(tmp_path / "new"))


async def test_so_does_synchronous_file_io(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 16)
    fd = os.open(file, os.O_RDONLY)
    try:
        for call, arguments in {"pread": (fd, 1, 0), "preadv": (fd, [bytearray(1)], 0), "fsync": (fd,)}.items():
            with pytest.raises(BlockingError, match=call):
                await IN_PACKAGE(call, *arguments)
    finally:
        os.close(fd)


async def test_tests_may_block(tmp_path: Path) -> None:
    await ELSEWHERE("mkdir", str(tmp_path / "new"))


async def test_threads_may_block(tmp_path: Path) -> None:
    names: list[str] = await asyncio.to_thread(lambda: asyncio.run(ELSEWHERE("listdir", str(tmp_path))))
    assert names == []


@pytest.mark.may_block("this test is about the permission")
async def test_it_can_be_allowed(tmp_path: Path) -> None:
    await IN_PACKAGE("mkdir", str(tmp_path / "new"))


async def test_a_configuration_file_may_be_read_when_a_store_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "store.toml"
    file.write_text('store_pipeline = "Empty"\nblock_size = 4096\n')
    async with ucm_async.open_store(file) as store:
        assert store.config.store_pipeline == "Empty"


async def test_both_loops_run_the_tests(request: pytest.FixtureRequest) -> None:
    loop = type(asyncio.get_running_loop()).__module__
    expected = "uvloop" if "uvloop" in request.node.name else "asyncio"
    assert loop.startswith(expected)
