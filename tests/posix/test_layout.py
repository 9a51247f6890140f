"""Where a block lies: paths, backends."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.stages.posix.layout import (
    backend_seeds,
    block_paths,
    choose_backend,
    paths_below,
    subdirectories,
)
from ucm_async.types import U8, as_block_ids, block_ids

KINDS_OF_IDS = {
    "hashed": lambda i: block_ids([i]).tobytes(),
    "counted, little-endian": lambda i: struct.pack("<QQ", i, 0),
    "counted, big-endian": lambda i: struct.pack(">QQ", 0, i),
    "counted in steps of 4096": lambda i: struct.pack("<QQ", 7, i << 12),
    "alike but for one end": lambda i: struct.pack("<I", i) + b"\xff" * 12,
    "alike but for the other": lambda i: b"\xff" * 12 + struct.pack("<I", i),
    "both halves the same": lambda i: struct.pack("<QQ", i, i),
}
MANY = 8192

raw_ids = st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=20, unique=True)
path_sets = st.lists(st.text("abcdef/", min_size=1, max_size=8), min_size=1, max_size=6, unique=True)


@pytest.fixture(params=KINDS_OF_IDS, scope="module")
def many_ids(request: pytest.FixtureRequest) -> U8:
    return as_block_ids([KINDS_OF_IDS[request.param](i) for i in range(MANY)])


class TestPaths:
    @given(raw_ids)
    def test_a_path_is_a_directory_and_the_id_in_hex(self, ids: list[bytes]) -> None:
        array = as_block_ids(ids)
        for block_id, row, directory in zip(ids, block_paths(array), subdirectories(array).tolist(), strict=True):
            path = row.tobytes()
            assert path == f"{directory:02x}/{block_id.hex()}".encode() + b"\0"

    @given(raw_ids)
    def test_below_a_directory(self, ids: list[bytes]) -> None:
        paths = paths_below("writers/me", as_block_ids(ids))
        assert [row.tobytes() for row in paths] == [b"writers/me/" + one.hex().encode() + b"\0" for one in ids]

    def test_paths_are_unique(self, many_ids: U8) -> None:
        assert len({row.tobytes() for row in block_paths(many_ids)}) == MANY

    def test_the_path_of_a_block_never_changes(self) -> None:
        """What is stored is found by it."""
        paths = block_paths(as_block_ids([bytes(range(16)), b"\xff" * 16]))
        assert paths[0].tobytes() == b"08/000102030405060708090a0b0c0d0e0f\0"
        assert paths[1].tobytes() == b"01/ffffffffffffffffffffffffffffffff\0"

    def test_directories_are_filled_evenly(self, many_ids: U8) -> None:
        counts = np.bincount(subdirectories(many_ids), minlength=256)
        chi_squared = ((counts - MANY / 256) ** 2 / (MANY / 256)).sum()
        assert chi_squared < 255 + 6 * np.sqrt(2 * 255)


class TestBackends:
    @given(raw_ids, path_sets, st.randoms())
    def test_their_order_does_not_matter(self, ids: list[bytes], paths: list[str], random) -> None:  # type: ignore[no-untyped-def]
        array, shuffled = as_block_ids(ids), random.sample(paths, len(paths))
        chosen = [paths[i] for i in choose_backend(array, backend_seeds(tuple(paths))).tolist()]
        again = [shuffled[i] for i in choose_backend(array, backend_seeds(tuple(shuffled))).tolist()]
        assert chosen == again

    @given(raw_ids, path_sets)
    def test_a_new_one_takes_blocks_and_moves_none_between_the_others(self, ids: list[bytes], paths: list[str]) -> None:
        array = as_block_ids(ids)
        before = choose_backend(array, backend_seeds(tuple(paths)))
        after = choose_backend(array, backend_seeds((*paths, "new")))
        assert ((after == before) | (after == len(paths))).all()

    @pytest.mark.parametrize("count", [2, 3, 7])
    def test_blocks_are_spread_evenly(self, many_ids: U8, count: int) -> None:
        chosen = choose_backend(many_ids, backend_seeds(tuple(f"/mnt/disk{i}" for i in range(count))))
        share = np.bincount(chosen, minlength=count) / MANY
        assert (abs(share - 1 / count) < 6 * np.sqrt(1 / count / MANY)).all()

    def test_a_new_one_takes_its_share(self, many_ids: U8) -> None:
        paths = tuple(f"/mnt/disk{i}" for i in range(4))
        taken = (choose_backend(many_ids, backend_seeds(paths)) == 3).mean()
        assert abs(taken - 1 / 4) < 6 * np.sqrt(1 / 4 / MANY)

    def test_backend_and_directory_are_independent(self, many_ids: U8) -> None:
        """Else a backend would use only some of its directories."""
        chosen = choose_backend(many_ids, backend_seeds(("/a", "/b")))
        directories = subdirectories(many_ids)
        for backend in (0, 1):
            assert len(np.unique(directories[chosen == backend])) > 240
