from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucm_async.bench.replay import ReplayOptions, replay
from ucm_async.bench.report import Report
from ucm_async.bench.workloads import MultiTurn, Request, TraceError, ideal_hit_ratio, parse_trace
from ucm_async.types import Status, block_ids

from .doubles import FailingStore, FlippingStore, LazyStore, MemoryStore

BLOCK_BYTES = 4096 + 64
CHATS = MultiTurn(seed=3, requests=40, system_blocks=12)


def options(**other: object) -> ReplayOptions:
    return ReplayOptions(block_bytes=BLOCK_BYTES, memory_bytes=8 * BLOCK_BYTES, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("registered", [False, True])
async def test_a_good_store_has_the_hits_of_an_infinite_cache(concurrency: int, registered: bool) -> None:
    store = MemoryStore()
    report = await replay(store, CHATS, options(concurrency=concurrency, registered=registered))
    requests = list(CHATS)
    blocks = {one for request in requests for one in request.block_hashes}
    assert report.requests == len(requests)
    assert report.blocks_asked == sum(len(r.block_hashes) for r in requests)
    assert report.hit_ratio == report.ideal_hit_ratio == ideal_hit_ratio(requests)
    assert report.load.blocks == report.prefix_hits
    assert report.load.bytes == report.prefix_hits * BLOCK_BYTES
    assert report.dump.blocks == len(store.dumped) == len(blocks), "each block is made once"
    assert report.wrong_bytes == 0
    assert report.problems() == []
    assert len(store.registered) == (concurrency if registered else 0)
    assert store.settled_waits == (report.load.calls + report.dump.calls if registered else 0)


@given(st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=12), st.integers(1, 5), st.integers(0, 4))
def test_hits_are_exact_whatever_is_in_flight(lists: list[list[int]], concurrency: int, turns: int) -> None:
    requests = [Request(0, tuple(hashes)) for hashes in lists]
    store = MemoryStore(turns)
    report = asyncio.run(replay(store, requests, options(concurrency=concurrency)))
    assert report.hit_ratio == ideal_hit_ratio(requests)
    assert set(store.blocks) == {one.tobytes() for hashes in lists for one in block_ids(hashes)}
    assert report.problems() == []


async def test_a_flipped_bit_is_counted() -> None:
    store = FlippingStore()
    report = await replay(store, CHATS, options())
    assert report.wrong_blocks == report.wrong_bytes == store.rows // 10 > 0
    assert any("wrong bytes" in problem for problem in report.problems())


async def test_an_ok_without_bytes_is_caught_even_where_the_memory_still_holds_them() -> None:
    same = [Request(0, (1, 2)), Request(0, (1, 2)), Request(0, (1, 2))]
    report = await replay(LazyStore(), same, options(concurrency=1))
    assert report.wrong_blocks == 4


async def test_what_fails_to_load_is_dumped_again_and_told_by_reason() -> None:
    store = FailingStore()
    report = await replay(store, CHATS, options(concurrency=1))
    assert store.failed
    assert sum(report.load.failures.values()) == len(store.failed)
    assert set(report.load.failures) == {"CORRUPT", "IO_ERROR", "TIMEOUT"}
    assert all(store.dumped.count(one) == 2 for one in store.failed)
    assert report.hit_ratio == report.ideal_hit_ratio, "what was made again is a hit again"
    assert len(report.problems()) == 2, "a deadline is no problem, the others are"
    assert len(report.problems(expected=Status)) == 0


async def test_a_long_request_is_loaded_in_parts() -> None:
    store = MemoryStore()
    long = Request(0, tuple(range(20)))
    report = await replay(store, [long, long], options())
    assert (report.load.calls, report.load.blocks, report.dump.calls) == (3, 20, 3)


async def test_a_bad_trace_ends_the_replay_with_its_own_error() -> None:
    lines = ['{"hash_ids": [1]}'] * 70 + ["oops"]
    report = Report()
    with pytest.raises(TraceError, match="trace:71"):
        await replay(MemoryStore(), parse_trace(lines), options(), report)
    assert report.requests <= 70
    assert len(asyncio.all_tasks()) == 1


async def test_cancelled_replay_leaves_nothing_running_and_tells_what_it_did() -> None:
    def endless() -> Iterator[Request]:
        while True:
            yield Request(0, (1, 2, 3))

    report, served = Report(), asyncio.Event()
    running = asyncio.create_task(replay(MemoryStore(), endless(), options(), report, served.set))
    await served.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert report.requests > 0
    assert report.wall_s > 0
    assert len(asyncio.all_tasks()) == 1


async def test_requests_without_blocks_are_served() -> None:
    report = await replay(MemoryStore(), [Request(0, ())], options())
    assert (report.requests, report.blocks_asked, report.hit_ratio) == (1, 0, 0.0)


async def test_blocks_that_are_stored_already_are_more_than_the_ideal() -> None:
    store = MemoryStore()
    await replay(store, [Request(0, (1, 2))], options())
    report = await replay(store, [Request(0, (1, 2))], options())
    assert (report.hit_ratio, report.ideal_hit_ratio) == (1.0, 0.0)
    assert set(store.blocks) == {one.tobytes() for one in block_ids([1, 2])}


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"timeout_s": 0.0}, {"timeout_s": -1.0}])
def test_options_refuse_nonsense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        options(**wrong)
