"""Types of options that several commands share."""

from __future__ import annotations

import argparse
import math


def positive_int(text: str) -> int:
    """Parse an int of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, must be a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}, must be at least 1")
    return value


def amount(text: str) -> float:
    """Parse a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}, must be a number of at least 0")
    return value


def stamped_bytes(text: str) -> int:
    """Parse a block size that the benchmarks can stamp."""
    from ..bench.blocks import BLOCK_BYTES_MULTIPLE  # noqa: PLC0415  (not for ``--help``)

    value = positive_int(text)
    if value % BLOCK_BYTES_MULTIPLE:
        raise argparse.ArgumentTypeError(f"{text}, must be a multiple of {BLOCK_BYTES_MULTIPLE}")
    return value
