"""Samples out of order: with slack they are matched in the order of their times."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from array import array

import pytest

from mbroker.alerts.engine import Engine, Fired
from mbroker.alerts.language import Subscription
from mbroker.alerts.selector import Endpoint, Series
from mbroker.alerts.slack import Slack

SERIES = [Series("load", Endpoint({("host", f"h{n}")})) for n in range(3)]
SLACK = 5000


def arrivals(dice: random.Random, most: int) -> list[tuple[int, int, float, int]]:
    """Return samples as (arrival, which series, value, time), each at most so many milliseconds late."""
    made = [
        (at * 1000 + dice.randrange(most), series, float(dice.randrange(8)), at * 1000)
        for at in range(1, 200)
        for series in range(len(SERIES))
    ]
    return sorted(made)


def edges(slack: Slack, samples: list[tuple[int, int, float, int]], text: str) -> dict[Endpoint, list[Fired]]:
    engine = Engine()
    engine.add(Subscription.parse(text).rule)
    numbers = [engine.number(series) for series in SERIES]
    found: dict[Endpoint, list[Fired]] = {}
    made: list[Fired] = []
    for arrival, together in itertools.groupby(samples, key=lambda sample: sample[0]):
        columns = array("I"), array("d"), array("q")
        for _, series, value, at in together:
            columns[0].append(numbers[series])
            columns[1].append(value)
            columns[2].append(at)
        slack.put(*columns)
        assert slack.numbers <= {*numbers}
        made += engine.push(arrival, *slack.due(arrival))
    end = samples[-1][0] + SLACK
    made += engine.push(end, *slack.due(end))
    assert slack.numbers == set()
    for fired in made:
        found.setdefault(fired.key, []).append(fired)
    return found


@pytest.mark.parametrize("text", ["load > 4", "mean(load[3]) > 4", "rate(load[4s]) > 1 for 1s", "all(load) > 1"])
def test_samples_that_come_within_the_slack_are_matched_in_order(text: str) -> None:
    late = arrivals(random.Random(text), SLACK)
    assert late != sorted(late, key=lambda sample: sample[3])
    in_order = sorted(late, key=lambda sample: (sample[3], sample[0]))
    punctual = [(at, series, value, at) for _, series, value, at in in_order]
    wanted = edges(Slack(0), punctual, text)
    assert len(wanted) in (1, len(SERIES))
    assert edges(Slack(SLACK), late, text) == wanted


def test_samples_that_come_later_than_that_are_passed_on_and_found_late() -> None:
    engine, slack = Engine(), Slack(SLACK)
    number = engine.number(SERIES[0])
    for arrival, at in ((10_000, 4000), (10_000, 3000), (15_000, 12_000)):
        slack.put(array("I", [number]), array("d", [1.0]), array("q", [at]))
        engine.push(arrival, *slack.due(arrival))
    assert (engine.counters.samples, engine.counters.late, slack.numbers) == (1, 1, {number})
    engine.push(17_000, *slack.due(17_000))
    assert engine.counters.samples == 2


def test_samples_of_one_time_leave_in_the_order_in_which_they_came() -> None:
    slack = Slack(SLACK)
    for value, at in ((1.0, 2000), (2.0, 1000), (3.0, 2000)):
        slack.put(array("I", [0]), array("d", [value]), array("q", [at]))
    numbers, values, times = slack.due(2000 + SLACK)
    assert (list(numbers), list(values), list(times)) == ([0, 0, 0], [2.0, 1.0, 3.0], [1000, 2000, 2000])


def test_a_sample_that_waits_takes_few_bytes() -> None:
    count = 100_000
    columns = array("I", range(count)), array("d", bytes(8 * count)), array("q", [1000, 1250] * (count // 2))
    slack = Slack(SLACK)
    tracemalloc.start()
    try:
        slack.put(*columns)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 20 * count
