"""Why rows failed, as it is handed up from stage to stage: by the position of the row that was handed down. Pure."""

from __future__ import annotations

from ..types import I64, Reasons

__all__ = ["reasons_at", "reasons_of"]


def reasons_of(reasons: Reasons, keys: I64) -> Reasons:
    """Return the reason of each row that goes by ``keys[row]`` in `reasons`: its block's number, or an older position.

    Parameters
    ----------
    reasons
        Key -> why.
    keys
        int64, shape (n,); may repeat.

    Returns
    -------
    Mapping
        Row, from 0 to n - 1 -> why, without those of which `reasons` has nothing.
    """
    return {row: reasons[key] for row, key in enumerate(keys.tolist()) if key in reasons} if reasons else reasons


def reasons_at(reasons: Reasons, places: I64) -> Reasons:
    """Return `reasons` with position ``i``, from 0 to n - 1, as ``places[i]``; int64, shape (n,), each once."""
    return {int(places[at]): error for at, error in reasons.items()}
