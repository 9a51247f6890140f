"""What a process remembers of stored blocks: never what was removed after it was seen."""

from __future__ import annotations

import numpy as np
import pytest

from ucm_async.stages.posix.known import KnownBlocks
from ucm_async.types import block_ids

IDS = block_ids(range(4))


def test_it_remembers_and_forgets() -> None:
    known = KnownBlocks(64)
    known.add(IDS[:3], known.removals)
    assert known.known(IDS).tolist() == [True, True, True, False]
    assert known.prefix(IDS) == 3
    assert len(known) == 3
    known.discard(IDS[1:2])
    assert known.known(IDS).tolist() == [True, False, True, False]
    assert known.prefix(IDS) == 1


@pytest.mark.parametrize("rows", [slice(0, 0), slice(0, 1), slice(0, 4, 2)])
def test_any_number_of_them(rows: slice) -> None:
    known = KnownBlocks(64)
    known.add(IDS[rows], known.removals)
    assert (known.known(IDS).nonzero()[0] == np.arange(4)[rows]).all()
    known.removed(IDS[rows])
    assert not known.known(IDS).any()


def test_what_was_seen_before_a_removal_is_not_remembered_after_it() -> None:
    """Whoever looked may have seen what was removed meanwhile."""
    known = KnownBlocks(64)
    seen = known.removals
    known.removed(IDS[:1])
    known.add(IDS, seen)
    assert not known.known(IDS).any()
    known.add(IDS[1:], known.removals)
    assert known.known(IDS).tolist() == [False, True, True, True]


def test_finding_a_block_missing_is_no_removal() -> None:
    known = KnownBlocks(64)
    seen = known.removals
    known.discard(IDS)
    known.add(IDS, seen)
    assert known.known(IDS).all()


def test_it_is_bounded() -> None:
    known = KnownBlocks(64)
    many = block_ids(range(10_000))
    known.add(many, known.removals)
    assert 0 < known.known(many).sum() <= len(known) < 1000
