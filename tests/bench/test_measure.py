from __future__ import annotations

import json

import pytest

from ucm_async.bench.measure import Finding, Measured, Sample, Spread, alternate, percentiles, stopwatch


async def test_contestants_take_turns_in_changing_order_after_a_warm_up() -> None:
    ran: list[tuple[str, int]] = []

    def contestant(name: str):
        async def run(number: int) -> Sample:
            ran.append((name, number))
            return Sample(1, 1.0, 0.0)

        return run

    measured = await alternate({name: contestant(name) for name in "abc"}, rounds=3)
    orders = ["".join(name for name, number in ran if number == k) for k in (-1, 0, 1, 2)]
    assert orders == ["cab", "abc", "bca", "cab"]
    assert all(len(measured.samples[name]) == 3 for name in "abc"), "the warm-up does not count"


def test_ratios_are_taken_round_by_round() -> None:
    # The machine got twice as slow in the second round; both felt it, so the ratio did not change.
    measured = Measured(
        {"ours": [Sample(10, 1.0, 0.5), Sample(10, 2.0, 0.5)], "limit": [Sample(10, 0.5, 0), Sample(10, 1.0, 0)]}
    )
    assert measured.speed_ratio("ours", "limit") == Spread(0.5, 0.5, 0.5)
    assert measured.gb_per_s("ours", 10**9) == Spread(7.5, 5.0, 10.0)
    assert measured.cpu_us("ours") == Spread(50_000, 50_000, 50_000)
    assert "limit" in measured
    assert "pool" not in measured


def test_stopwatch_counts_cpu_of_work_and_not_of_waiting() -> None:
    with stopwatch() as watch:
        sum(range(300_000))
    assert watch.cpu_s > 0
    assert watch.wall_s > 0


def test_percentiles_name_themselves() -> None:
    assert percentiles([1.0, 2.0, 3.0], (50, 99.9)) == {"p50": 2.0, "p99.9": pytest.approx(2.998), "max": 3.0}


def finding(**other: object) -> Finding:
    return Finding("load", "it", Spread(2.0, 1.0, 3.0), "GB/s", **other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "met"),
    [
        (finding(), None),
        (finding(goal=(">=", 2.0)), True),
        (finding(goal=("<=", 1.9)), False),
        (finding(goal=(">=", 0.9), reference="C program"), None),
        (finding(goal=(">=", 0.9), reference="C program", ratio=Spread(0.95, 0.5, 1.0)), True),
        (finding(goal=(">=", 0.9), reference="C program", ratio=Spread(0.85, 0.5, 1.0)), False),
    ],
)
def test_a_goal_is_about_the_ratio_where_there_is_something_to_compare_with(one: Finding, met: bool | None) -> None:
    assert one.met is met
    assert json.loads(json.dumps(one.as_dict()))["met"] is met
