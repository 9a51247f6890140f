"""Which blocks are wanted and which are cold: a number each, that accesses raise and time lowers. One loop's.

An access at time t counts 2^(t / half-life) times its weight, and a block's number is the logarithm of the sum of its
accesses. So all numbers decay together without being touched, and the order of blocks that nobody asks for never changes
(forward decay: Cormode, Shkapenyuk, Srivastava and Xu, ICDE 2009; with a half-life between zero and infinity it goes
from LRU to LFU: Lee et al., LRFU, IEEE Transactions on Computers 50(12), 2001).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..types import U8, Bools

__all__ = ["HALF_LIFE_S", "WEIGHT_DUMP", "WEIGHT_LOAD", "WEIGHT_LOOKUP", "Hotness"]

HALF_LIFE_S: Final = 600.0
WEIGHT_LOAD: Final = 1.0
WEIGHT_DUMP: Final = 1.0
WEIGHT_LOOKUP: Final = 0.25
"""A lookup that found a block is often followed by its load."""


class Hotness:
    """The order in which blocks may go. Bounded: of more blocks than `capacity` it forgets some of the cold ones.

    Parameters
    ----------
    capacity
        How many blocks are remembered.
    """

    def __init__(self, capacity: int) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def touch(self, ids: U8, weight: float, at: float | None = None) -> None:
        """Count an access to each of `ids`, uint8 (n, 16), at time `at` (seconds since the epoch; default now).

        Costs some 0.1 µs an id; ids that are not known yet are added. What stages call is `SpaceManager.touch`, which
        only notes it.
        """
        raise NotImplementedError

    def forget(self, ids: U8) -> None:
        """Forget blocks that were removed."""
        raise NotImplementedError

    async def coldest(self, count: int, keep: Callable[[U8], Bools] | None = None) -> U8:
        """Return up to `count` of the coldest blocks, the coldest first: uint8 (m, 16), m <= count.

        Parameters
        ----------
        count
            How many are wanted.
        keep
            Told some ids, says which must stay (bool, their shape); they are passed over, and asked for again later.

        Returns
        -------
        numpy.ndarray
            They stay known until `forget`, and are returned again if they are still the coldest then.
        """
        raise NotImplementedError
