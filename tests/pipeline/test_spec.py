"""The name of a composition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.errors import ConfigError
from ucm_async.pipeline import parse_pipeline

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}(\.[a-z]{1,4})?(:[A-Z][a-z]{0,4})?", fullmatch=True)


@given(st.lists(names, min_size=1, max_size=8, unique=True), st.sampled_from(["|", " | ", "|  "]))
def test_names_joined_by_bars(given_names: list[str], bar: str) -> None:
    assert parse_pipeline(bar.join(given_names)) == tuple(given_names)


@given(st.text(alphabet="ab|: .-1", max_size=12))
def test_anything_else_is_a_configuration_error(text: str) -> None:
    try:
        found = parse_pipeline(text)
    except ConfigError as error:
        assert str(error).startswith("store_pipeline: ")
    else:
        assert "|".join(found) == text.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "stage 1 is ''"),
        ("|Posix", "stage 1 is ''"),
        ("Cache||Posix", "stage 2 is '', must be a name or module:Class"),
        ("Cache|Posix|", "stage 3 is ''"),
        ("Cache Posix", "stage 1 is 'Cache Posix'"),
        ("1Posix", "stage 1 is '1Posix'"),
        ("a:b:c", "stage 1 is 'a:b:c'"),
        ("Posix|Posix", "names a stage twice"),
        ("|".join("ABCDEFGHI"), "9 stages, at most 8"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_pipeline(text)
