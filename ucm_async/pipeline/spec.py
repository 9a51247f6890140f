"""The name of a composition: ``"Cache|Compress|Posix"``. Pure."""

from __future__ import annotations

import re
from typing import Final

from ..errors import ConfigError

__all__ = ["parse_pipeline"]

_STAGE_NAME: Final = re.compile(r"[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?")
STAGES_MAX: Final = 8


def parse_pipeline(text: str) -> tuple[str, ...]:
    """Return the names of the stages, the caller's side first.

    A name is that of a registered stage, or ``module:Class``.

    Raises
    ------
    ConfigError
        Nothing, or something else, stands between two bars; a stage stands twice; or there are more than eight.
    """
    names = tuple(part.strip() for part in text.split("|"))
    for position, name in enumerate(names):
        if not _STAGE_NAME.fullmatch(name):
            raise ConfigError(
                f"store_pipeline: {text!r}: stage {position + 1} is {name!r}, must be a name or module:Class"
            )
    if len(set(names)) != len(names):
        raise ConfigError(f"store_pipeline: {text!r} names a stage twice")
    if len(names) > STAGES_MAX:
        raise ConfigError(f"store_pipeline: {len(names)} stages, at most {STAGES_MAX}")
    return names
