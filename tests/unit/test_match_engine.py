"""The engine says what the reference says, edge by edge."""

from __future__ import annotations

import math
import random
from collections import defaultdict

import pytest

from mbroker.alerts.engine import Engine
from mbroker.alerts.language import Subscription
from mbroker.alerts.reference import Reference, Sample
from mbroker.alerts.selector import Endpoint, Series

START = 1_000_000
HOSTS = [frozenset({("host", f"h{n}"), ("rack", f"r{n % 2}")}) for n in range(4)]

RULES = [
    "load > 5",
    "load <= 3",
    "load == 4",
    "load != 4",
    "load > 6 clear < 3",
    "load >= 6 clear == 3",
    "load > 4 for 3s",
    "load > 5 clear < 3 for 2s",
    "mean(load[3]) > 4",
    "mean(load[5s]) <= 3.5",
    "sum(load[4]) == 16",
    "stddev(load[4]) > 2",
    "stddev(load[2]) == 0",
    "variance(load[5s]) < 2",
    "min(load[3]) > 2",
    "max(load[4s]) < 6",
    "median(load[4]) >= 4",
    "quantile(0.9, load[5]) > 6",
    "count(load[3s]) < 3",
    "rate(load[4]) > 1.5",
    "rate(load[4s]) > 2 for 1s",
    "delta(load[3]) < 0",
    "ewma(2s, load) > 4",
    "absent(load[5s])",
    "absent(load[3s]) and temp > 3",
    "absent(load[4s]) for 3s",
    "load > 4 and temp > 4",
    "load > 6 or not temp > 2",
    "(load > 3 and temp < 6) or mean(load[3]) > 5",
    "load > 4 and temp > 4 for 2s",
    "load > 5 nodata clear",
    "load > 5 nodata fire",
    "mean(load[4s]) > 5 nodata fire",
    "all(load) > 2",
    "any(load) > 7",
    "all(load) < 6 clear >= 7",
    "atleast(2, load) > 5",
    "atleast(3, load) <= 4 for 2s",
    "mean(load) > 4",
    "max(mean(load[3])) by (rack) > 5",
    "stddev(load) > 2",
    "count(load) < 4",
    "median(load) >= 4",
    "sum(max(load[3s])) > 20",
    "mean(load) > 4 and max(temp) > 6",
    "load > 4 and mean(temp) by (rack) > 3",
    "all(load) > 3 nodata fire",
]


def stream(dice: random.Random, batches: int) -> list[tuple[int, list[Sample]]]:
    """Late, missing, infinite and reset values; gaps; clocks of hosts that differ."""
    now = START
    made: list[tuple[int, list[Sample]]] = []
    clocks: dict[Series, int] = defaultdict(lambda: START)
    values: dict[Series, float] = defaultdict(lambda: 4.0)
    everything = [Series(metric, host) for host in HOSTS for metric in ("load", "temp")]
    for _ in range(batches):
        now += dice.choice([300, 1000, 1000, 2000, dice.randrange(1, 40_000) if dice.random() < 0.1 else 1000])
        batch: list[Sample] = []
        for series in dice.sample(everything, dice.randrange(len(everything) + 1)):
            for _ in range(dice.choice([1, 1, 1, 3])):
                clocks[series] = max(
                    clocks[series] + dice.choice([1, 1000, 1000, -5, 0]), now - 3000 * (dice.random() < 0.8)
                )
                values[series] = max(0.0, min(9.0, values[series] + dice.choice([-2, -1, 0, 0, 1, 2, 0.1, 0.3])))
                value = values[series] if dice.random() < 0.94 else dice.choice([math.nan, math.inf, -math.inf, 0.0])
                batch.append(Sample(series, clocks[series], value))
        made.append((now, batch))
    return made


@pytest.mark.parametrize("text", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_every_edge_is_that_of_the_reference(text: str, seed: int) -> None:
    rule = Subscription.parse(text).rule
    engine, reference = Engine(START), Reference(rule, START)
    engine.add(rule)
    for now, samples in stream(random.Random(f"{seed} {text}"), 60):
        wanted: dict[Endpoint, list[tuple[bool, int]]] = defaultdict(list)
        got: dict[Endpoint, list[tuple[bool, int]]] = defaultdict(list)
        for edge in reference.batch(now, samples):
            wanted[edge.key].append((edge.firing, edge.at))
        for fired in engine.batch(now, samples):
            got[fired.key].append((fired.firing, fired.at))
        assert got == wanted, (text, now, samples)
