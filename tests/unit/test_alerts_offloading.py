"""Which rules and series a broker lets publishers compare themselves."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbroker.alerts.language import Subscription
from mbroker.alerts.offloading import Cost, Offloading, choose, cuts
from mbroker.alerts.selector import Endpoint, Selector, Series
from mbroker.alerts.terms import Operator
from mbroker.alerts.tree import Comparison, Instant, Rule
from mchannel.samples import Offload, Samples


def rule(text: str) -> Rule:
    return Subscription.parse(text).rule


# -- which rules


@pytest.mark.parametrize(
    "text", ["load > 5", "load >= 5 clear < 3", "load != 5", "load{core='1'} < 1 severity critical"]
)
def test_a_comparison_of_the_newest_sample_can_be_offloaded(text: str) -> None:
    assert cuts(rule(text))


@pytest.mark.parametrize(
    "text",
    [
        "load > 5 for 1m",
        "load > 5 nodata fire",
        "mean(load[5]) > 5",
        "max(load) > 5",
        "absent(load[5m])",
        "load > 5 and cpu > 5",
        "not load > 5",
    ],
)
def test_a_rule_that_needs_more_cannot(text: str) -> None:
    assert cuts(rule(text)) is None


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 5e-324, 1.7976931348623157e308])


@given(st.sampled_from(Operator), numbers.map(lambda x: x + 0.0), st.lists(st.floats(allow_nan=False), max_size=8))
def test_values_above_the_same_cuts_satisfy_the_same_rules(
    operator: Operator, threshold: float, values: list[float]
) -> None:
    found = cuts(Rule(Comparison(Instant(Selector("load")), operator, threshold)))
    assert found
    near = [threshold, math.nextafter(threshold, -math.inf), math.nextafter(threshold, math.inf), math.inf, -math.inf]
    holds: dict[int, set[bool]] = defaultdict(set)
    for value in (*values, *near):
        holds[sum(value > cut for cut in found)].add(operator.holds(value, threshold))
    assert all(len(truths) == 1 for truths in holds.values())


# -- which series


def test_those_that_save_most_for_a_threshold_come_first_within_the_bound() -> None:
    costs = [Cost(0, 100, 0, cuts=10), Cost(1, 100, 0, cuts=1), Cost(2, 1000, 0, cuts=2), Cost(3, 100, 0, cuts=2)]
    assert choose(costs, most=3) == {1, 2}


@pytest.mark.parametrize("cost", [Cost(0, 100, 60, 1), Cost(0, 0, 0, 1), Cost(0, 100, 0, 0), Cost(0, 100, 0, 101)])
def test_a_series_of_which_nothing_is_saved_stays_with_the_broker(cost: Cost) -> None:
    assert choose([cost], most=100) == frozenset()


def test_a_series_that_is_offloaded_stays_so_unless_it_no_longer_pays() -> None:
    one, other = Cost(0, 100, 60, 1), Cost(1, 100, 45, 1)
    assert choose([one, other], most=1) == {1}
    assert choose([one, other], most=1, held=frozenset([0])) == {0}
    assert choose([attrs.evolve(one, crossings=80)], most=1, held=frozenset([0])) == frozenset()


@given(
    st.lists(st.builds(Cost, st.integers(0, 50), *[st.integers(0, 50)] * 3), unique_by=lambda c: c.series),
    st.integers(0, 60),
    st.frozensets(st.integers(0, 50)),
)
def test_a_choice_keeps_its_bound_and_stands_when_it_is_made_again(
    costs: list[Cost], most: int, held: frozenset[int]
) -> None:
    chosen = choose(costs, most, held)
    assert sum(cost.cuts for cost in costs if cost.series in chosen) <= most
    assert choose(reversed(costs), most, held) == chosen


# -- what is measured


def took(*numbers: int, at: int = 0, run: int = 1) -> Samples:
    return Samples(run, array("I", numbers), array("d", [0.0] * len(numbers)), array("q", [at] * len(numbers)))


def series(number: int) -> Series:
    return Series(f"m{number}", Endpoint([("host", "h")]))


DECLARED = {number: series(number) for number in range(3)}


def following(*rules: str, most: int = 100) -> Offloading:
    offloading = Offloading(refresh=20_000, most=most)
    for number, text in enumerate(rules, 1):
        offloading.follow(number, rule(text))
    return offloading


def minute(offloading: Offloading, now: int, *numbers: int) -> Offload | None:
    """Let samples of *numbers* come for a minute, one of each a second, and then decide."""
    for second in range(60):
        offloading.count("h", took(*numbers, at=now + second), now + second * 1000)
    assert offloading.count("h", took(at=now), now + 60_000)
    return offloading.offer("h", 1, now + 60_000, DECLARED)


def pairs(asked: Offload | None) -> list[tuple[int, float]] | None:
    return None if asked is None else list(zip(asked.numbers, asked.cuts, strict=True))


def test_what_was_measured_for_a_period_is_offloaded_and_told_once() -> None:
    offloading = following("m0 > 5", "m0 <= 3", "m1 > 1", "mean(m1[5]) > 1", "m2 > 1")
    asked = minute(offloading, 0, 0, 1, 2)
    assert asked == Offload(1, 59, 20_000, array("I", [0, 0, 2]), array("d", [3.0, 5.0, 1.0]))
    assert minute(offloading, 60_000) is None


def test_a_time_that_cannot_be_is_not_believed_to_be_that_of_the_newest_sample() -> None:
    offloading = following("m0 > 5")
    offloading.count("h", took(0, at=1 << 60), 1000)
    asked = minute(offloading, 1000, 0)
    assert asked is not None
    assert asked.since == 1000 + 60_000


def test_a_series_that_keeps_changing_is_taken_back_and_not_tried_again_soon() -> None:
    offloading = following("m0 > 5")
    assert pairs(minute(offloading, 0, 0)) == [(0, 5.0)]
    assert pairs(minute(offloading, 60_000, 0)) == []
    offloading.given_back("h", 1)
    assert minute(offloading, 120_000, 0) is None


def test_a_series_that_kept_changing_is_tried_again_after_an_hour() -> None:
    offloading = following("m0 > 5")
    asked = [pairs(minute(offloading, number * 60_000, 0)) for number in range(64)]
    assert [number for number, each in enumerate(asked) if each] == [0, 62]
    assert [number for number, each in enumerate(asked) if each == []] == [1, 63]


def test_a_rule_that_comes_changes_the_offer_with_the_next_sample() -> None:
    offloading = following("m0 > 5", "m1 > 5")
    minute(offloading, 0, 0, 1)
    assert not offloading.count("h", took(0), 61_000)
    offloading.follow(3, rule("m0 > 7"))
    assert offloading.count("h", took(0), 62_000)
    assert pairs(offloading.offer("h", 1, 62_000, DECLARED)) == [(0, 5.0), (0, 7.0), (1, 5.0)]
    assert not offloading.count("h", took(0), 63_000)


def test_a_rule_that_cannot_be_offloaded_takes_its_series_back_until_it_goes() -> None:
    offloading = following("m0 > 5")
    minute(offloading, 0, 0)
    offloading.follow(2, rule("m0 > 5 for 1m"))
    assert pairs(offloading.offer("h", 1, 62_000, DECLARED)) == []
    offloading.leave(2, rule("m0 > 5 for 1m"))
    assert pairs(minute(offloading, 62_000, 0)) == [(0, 5.0)]


def test_a_publisher_that_gives_back_what_it_was_asked_for_is_measured_anew() -> None:
    offloading = following("m0 > 5")
    minute(offloading, 0, 0)
    offloading.given_back("h", 1)
    assert not offloading.count("h", took(0), 61_000)
    assert pairs(minute(offloading, 61_000, 0)) == [(0, 5.0)]


def test_no_more_is_offered_than_a_publisher_may_be_asked() -> None:
    offloading = following("m0 > 5", "m1 > 5", most=1)
    assert pairs(minute(offloading, 0, 0, 1)) == [(0, 5.0)]


def test_a_publisher_that_begins_anew_all_the_time_and_makes_up_numbers_is_remembered_within_bounds() -> None:
    offloading = following("m0 > 5")
    minute(offloading, 0, 0)
    for run in range(2, 100):
        offloading.count("liar", took(*range(run * 30_000, run * 30_000 + 30_000), run=run), 0)
        offloading.count("liar", took(*range(30_000), run=1), 0)
        offloading.count("liar", took(*range(run * 30_000, run * 30_000 + 30_000), run=1), 0)
    assert offloading.counted < 8 * 100_000
    assert minute(offloading, 60_000) is None  # the other one's offer stands
