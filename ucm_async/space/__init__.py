"""Space that keeps its promises: how many bytes a store may occupy, which blocks go when it is full, who sees to it.

It knows bytes, ids, namespaces and time, and no file: what lies where is the business of the stage, which tells it
through `SpaceUser`.

`limits` and `hotness` are pure: what is too much, and which blocks are cold. `ledger` is the account that the processes
of a host keep together, in memory that they share. `collector` removes what is cold, in small steps. `recorder`
keeps hotness up to date, `hotfile` over a restart. `manager` joins them: what a stage holds.
"""

from .hotness import F64, WEIGHT_DUMP, WEIGHT_LOAD, WEIGHT_LOOKUP, Hotness
from .limits import SpaceLimits
from .manager import SpaceManager
from .user import SpacePlace, SpaceUser

__all__ = [
    "F64",
    "WEIGHT_DUMP",
    "WEIGHT_LOAD",
    "WEIGHT_LOOKUP",
    "Hotness",
    "SpaceLimits",
    "SpaceManager",
    "SpacePlace",
    "SpaceUser",
]
