from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.bench.workloads import InfiniteCache, MultiTurn, Request, TraceError, ideal_hit_ratio, parse_trace

HASHES = st.lists(st.integers(0, 30), max_size=12)


def requests_of(lists: list[list[int]]) -> list[Request]:
    return [Request(i, tuple(hashes)) for i, hashes in enumerate(lists)]


# --- traces ---


@given(st.lists(HASHES, max_size=8))
def test_a_trace_reads_back_as_it_was_written(lists: list[list[int]]) -> None:
    lines = [
        json.dumps({"timestamp": i, "input_length": 512 * len(h), "output_length": 7, "hash_ids": h})
        for i, h in enumerate(lists)
    ]
    assert list(parse_trace(lines)) == [Request(i, tuple(h), 512 * len(h), 7) for i, h in enumerate(lists)]


def test_only_hash_ids_are_needed_and_blank_lines_are_skipped() -> None:
    assert list(parse_trace([b"\n", b'{"hash_ids": [3, 4]}\n', b"  "])) == [Request(0, (3, 4))]


def test_a_trace_is_read_lazily() -> None:
    def lines():
        yield '{"hash_ids": [1]}'
        raise AssertionError("read ahead")

    assert next(parse_trace(lines())).block_hashes == (1,)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "list, must be an object"),
        (b'{"ids": [1]}', r"hash_ids is missing \(keys: ids\)"),
        (b'{"hash_ids": 4}', "hash_ids: int, must be a list of ints"),
        (b'{"hash_ids": [1, -2]}', r"hash_ids\[1\]: -2"),
        (b'{"hash_ids": [true]}', r"hash_ids\[0\]: True"),
        (b'{"hash_ids": ["a"]}', r"hash_ids\[0\]: 'a'"),
        (b'{"hash_ids": [1], "timestamp": "now"}', "timestamp: 'now'"),
        (b'{"hash_ids": [1], "input_length": NaN}', "input_length: nan"),
    ],
)
def test_bad_lines_are_named_by_number(line: bytes, says: str) -> None:
    lines = [b'{"hash_ids": [1]}', b"", line]
    with pytest.raises(TraceError, match=f"^day.jsonl:3: {says}"):
        list(parse_trace(lines, "day.jsonl"))


# --- the ideal cache ---


@given(st.lists(HASHES, max_size=10))
def test_infinite_cache_agrees_with_its_definition(lists: list[list[int]]) -> None:
    hits = 0
    for i, hashes in enumerate(lists):
        stored = {h for earlier in lists[:i] for h in earlier}
        hits += next((k for k, h in enumerate(hashes) if h not in stored), len(hashes))
    asked = sum(map(len, lists))
    assert ideal_hit_ratio(requests_of(lists)) == (hits / asked if asked else 0.0)


def test_a_hit_behind_a_miss_does_not_count() -> None:
    cache = InfiniteCache()
    assert cache.serve([1, 2, 3]) == 0
    assert cache.serve([1, 9, 3]) == 1
    assert 9 in cache
    assert (cache.asked, cache.hits) == (6, 1)


# --- the multi-turn workload ---

SHAPES = st.builds(
    MultiTurn,
    seed=st.integers(0, 2**32),
    requests=st.integers(0, 60),
    users=st.integers(1, 9),
    system_prompts=st.integers(1, 4),
    system_blocks=st.integers(1, 20),
    message_blocks=st.floats(1, 20),
    answer_blocks=st.floats(1, 20),
    turns=st.floats(1, 8),
    context_blocks=st.integers(1, 64),
)


@given(SHAPES)
def test_multi_turn_is_the_same_for_the_same_seed(workload: MultiTurn) -> None:
    first = list(workload)
    assert first == list(workload)
    assert len(first) == workload.requests
    assert [r.timestamp_ms for r in first] == sorted(r.timestamp_ms for r in first)


@given(SHAPES)
def test_multi_turn_hashes_are_chained(workload: MultiTurn) -> None:
    parents: dict[int, int] = {}
    for request in workload:
        assert request.block_hashes
        assert len(set(request.block_hashes)) == len(request.block_hashes)
        assert request.input_tokens == len(request.block_hashes) * workload.block_tokens
        for parent, child in zip((0, *request.block_hashes), request.block_hashes, strict=False):
            assert parents.setdefault(child, parent) == parent, "one block follows two different prefixes"


def test_multi_turn_default_has_much_to_reuse() -> None:
    requests = list(MultiTurn())
    assert 0.6 < ideal_hit_ratio(requests) < 0.9
    assert max(len(r.block_hashes) for r in requests) <= MultiTurn().context_blocks


def test_seeds_share_nothing() -> None:
    one, two = ({h for r in MultiTurn(seed=s, requests=20) for h in r.block_hashes} for s in (1, 2))
    assert not one & two


@pytest.mark.parametrize("wrong", [{"users": 0}, {"turns": 0.5}, {"requests": -1}, {"answer_blocks": float("nan")}])
def test_multi_turn_refuses_nonsense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MultiTurn(**wrong)  # type: ignore[arg-type]
