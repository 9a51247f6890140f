"""The Compress benchmark: its cases, by name, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import running
from .setting import Setting

if TYPE_CHECKING:
    from ..store import Store
    from .measure import Finding

__all__ = ["CASES", "DEFAULT_CODECS", "CompressSetting", "run_cases"]

CASES: Final[Mapping[str, str]] = {"overlap": "compress_overlap"}
"""Each case, and its module in `ucm_async.bench.cases`."""

DEFAULT_CODECS: Final = ("huffman", "packed", "fp8_e4m3", "int4")


@dataclass(frozen=True, slots=True)
class CompressSetting(Setting):
    """One run of the benchmark.

    Attributes
    ----------
    codecs
        What is measured, as in ``compress_codec``.
    threads
        As ``compress_threads``, and of the codec alone; 0: as many as processors.
    """

    codecs: Sequence[str] = DEFAULT_CODECS
    threads: int = 0

    def open_compressed(self, folder: Path, block_bytes: int, codec: str) -> AbstractAsyncContextManager[Store]:
        """Open ``Compress|Posix`` of whole blocks in `folder`."""
        return self.open_store(
            folder, block_bytes, "Compress|Posix", compress_codec=codec, compress_threads=self.threads
        )


async def run_cases(
    setting: CompressSetting, names: Sequence[str], on_case: Callable[[str], None] = lambda _name: None
) -> list[Finding]:
    """See `running.run_cases`."""
    return await running.run_cases(CASES, setting, names, on_case)
