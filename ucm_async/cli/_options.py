"""Types of options that several commands share."""

from __future__ import annotations

import argparse


def positive_int(text: str) -> int:
    """Parse an int of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, must be a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}, must be at least 1")
    return value
