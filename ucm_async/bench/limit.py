"""What a C program gets from the same storage: our own (``limit.c``, compiled when first needed), or another one.

Another one must take the same command line, ``PROGRAM ENGINE files DIRECT BLOCK_BYTES BLOCKS DEPTH HUGE PATH [MODE]``,
and print a line that has ``X MB/s``, ``Y iops`` and ``cpu_us/op Z``, in this order.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final, Literal

from ..errors import UcmError
from .measure import Sample

__all__ = ["LimitError", "LimitProgram", "compile_limit"]

_FLAGS: Final = ("-std=c11", "-O2", "-pthread", "-Wall", "-Wextra")
_LINE: Final = re.compile(r"([\d.]+) MB/s\s+([\d.]+) iops.*?cpu_us/op ([\d.]+)")


class LimitError(UcmError):
    """The C program is not there, or it failed."""


@dataclass(frozen=True, slots=True)
class LimitProgram:
    """A compiled C program.

    Attributes
    ----------
    path
        The executable.
    direct
        Whether it uses O_DIRECT.
    """

    path: Path
    direct: bool

    async def read(self, folder: Path, block_bytes: int, blocks: int, *, depth: int) -> Sample:
        """Read the files 000000, 000001, … of `folder`, opened before the clock starts.

        Raises
        ------
        LimitError
            It failed, or printed something else.
        """
        return await self._run("uring", "files", folder, block_bytes, blocks, depth, "r")

    async def create(self, folder: Path, block_bytes: int, blocks: int, *, threads: int) -> Sample:
        """Create, write, close and rename files in `folder`, which has none.

        Raises
        ------
        LimitError
            It failed, or printed something else.
        """
        return await self._run("thr", "files", folder, block_bytes, blocks, threads, "c")

    async def write_slab(self, path: Path, slot_bytes: int, blocks: int, *, depth: int) -> Sample:
        """Write the slots of one file, allocated before the clock starts unless it is there.

        Raises
        ------
        LimitError
            It failed, printed something else, or is a program that knows no slabs.
        """
        return await self._run("uring", "slab", path, slot_bytes, blocks, depth, "w")

    async def read_slab(self, path: Path, slot_bytes: int, blocks: int, *, depth: int) -> Sample:
        """Read the slots of one file; errors as of `write_slab`."""
        return await self._run("uring", "slab", path, slot_bytes, blocks, depth, "r")

    async def _run(
        self,
        engine: str,
        layout: Literal["files", "slab"],
        path: Path,
        block_bytes: int,
        blocks: int,
        depth: int,
        mode: Literal["r", "w", "c"],
    ) -> Sample:
        words = [engine, layout, int(self.direct), block_bytes, blocks, depth, 1, path, mode]
        process = await asyncio.create_subprocess_exec(
            self.path, *map(str, words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        line = _LINE.search(out.decode(errors="replace"))
        if process.returncode != 0 or line is None:
            said = (err or out).decode(errors="replace").strip()
            raise LimitError(f"{self.path.name} {' '.join(map(str, words))}: exit code {process.returncode}: {said}")
        mb_per_s, cpu_us = float(line[1]), float(line[3])
        return Sample(blocks, blocks * block_bytes / mb_per_s / 1e6, cpu_us * blocks / 1e6)


def compile_limit() -> Path:
    """Compile ``limit.c`` if this version of it was not compiled before; returns the executable. Blocks.

    Raises
    ------
    LimitError
        There is no C compiler, or it failed.
    """
    source = resources.files(__package__) / "limit.c"
    code = source.read_bytes()
    program = _cache_directory() / f"limit-{hashlib.blake2b(code, digest_size=8).hexdigest()}"
    if program.exists():
        return program
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise LimitError(
            "no C compiler (cc, or $CC): nothing to compare with; install one, or pass --yardstick PROGRAM"
        )
    with resources.as_file(source) as path, tempfile.TemporaryDirectory(dir=program.parent) as folder:
        made = Path(folder) / "limit"
        done = subprocess.run([compiler, *_FLAGS, "-o", made, path], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LimitError(f"{compiler} could not compile limit.c: {done.stderr.strip()}")
        made.replace(program)
    return program


def _cache_directory() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for directory in (base / "ucm-async", Path(tempfile.gettempdir()) / f"ucm-async-{os.getuid()}"):
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(directory, os.W_OK | os.X_OK) and directory.stat().st_uid == os.getuid():
            return directory
    raise LimitError("no directory to compile into: neither ~/.cache nor the temporary directory is writable")
