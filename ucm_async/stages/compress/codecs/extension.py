"""What the codecs of the extension have in common: they need it."""

from __future__ import annotations

from ....errors import ConfigError
from ....native import NATIVE, WHY

__all__ = ["need_extension"]


def need_extension(codec: str) -> None:
    """Refuse a codec that this machine can neither write nor read."""
    if not NATIVE:
        raise ConfigError(f"codec {codec!r}: needs the extension ucm_async._native, and {WHY}")
