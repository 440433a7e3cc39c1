"""A subscription tried on the stored past fires on what it would have fired on."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbroker.alerts import Subscription
from mbroker.alerts.explain import CostClass, Explanation, Place, cost, explain
from mbroker.alerts.history import Accepts, History
from mbroker.alerts.reference import Reference
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Endpoint, Series

WEB1, WEB2 = (Endpoint({("host", name)}) for name in ("web1", "web2"))


@attrs.define
class Stored:
    samples: list[Sample]
    paces: dict[Series, int]

    def intervals(self, wanted: Accepts) -> dict[Series, int]:
        return {series: interval for series, interval in self.paces.items() if wanted.accepts(series)}

    def read(self, wanted: Accepts, begin: int, end: int) -> Iterator[Sample]:
        return (one for one in self.samples if wanted.accepts(one.series) and begin <= one.at < end)


def tried(
    text: str,
    samples: Iterable[Sample],
    begin: int,
    end: int,
    most: int = 1000,
    paces: dict[Series, int] | None = None,
    **settings: Any,
) -> Explanation:
    stored = Stored(list(samples), paces or {})
    trial = explain(Subscription.parse(text), stored, begin, end, interval=1000, most=most, **settings)
    while True:
        try:
            assert 0 <= next(trial) <= 1
        except StopIteration as done:
            result: Explanation = done.value
            return result


def every_second(values: Iterable[float], metric: str = "load", of: Endpoint = WEB1) -> list[Sample]:
    return [Sample(Series(metric, of), 100_000 + 1000 * number, value) for number, value in enumerate(values)]


def spans(explanation: Explanation) -> list[tuple[int, int | None]]:
    return [(alert.since // 1000 - 100, alert.until and alert.until // 1000 - 100) for alert in explanation.alerts]


def test_alerts_come_with_begin_end_and_what_began_them() -> None:
    found = tried("load > 8 severity critical", every_second([1, 9, 10, 2, 11, 12]), 100_000, 106_000)
    assert spans(found) == [(1, 3), (4, None)]
    assert [(alert.key, alert.value, alert.severity.value) for alert in found.alerts] == [
        (WEB1, 9.0, "critical"),
        (WEB1, 11.0, "critical"),
    ]


def test_only_what_is_asked_for_is_read() -> None:
    samples = every_second([9] * 4) + every_second([9] * 4, "fan") + every_second([9] * 4, of=WEB2)
    found = tried('load{host="web1"} > 8', sorted(samples, key=lambda one: one.at), 100_000, 104_000)
    assert (found.series, found.samples, len(found.alerts)) == (1, 4, 1)


def test_windows_are_filled_before_the_begin_where_what_fires_already_begins() -> None:
    samples = every_second([9] * 60 + [1] * 60)
    assert spans(tried("mean(load[30s]) > 8", samples, 160_000, 220_000)) == [(60, 63)]


def test_what_was_over_before_the_begin_is_not_told() -> None:
    assert spans(tried("load > 8", every_second([9, 1, 9, 1, 9, 1]), 102_000, 106_000)) == [(2, 3), (4, 5)]


def test_a_series_that_falls_silent_is_noticed_when_it_does() -> None:
    found = tried("absent(load[10s])", every_second([1, 1]), 100_000, 160_000)
    assert spans(found) == [(12, None)]


def test_a_gap_is_noticed_while_it_lasts() -> None:
    samples = [*every_second([1, 1]), Sample(Series("load", WEB1), 150_500, 1.0)]
    assert spans(tried("absent(load[10s])", samples, 100_000, 160_000)) == [(12, 51)]


def test_what_is_missing_from_the_start_is_not_missed() -> None:
    assert tried("absent(load[10s])", [], 100_000, 160_000).alerts == ()
    assert spans(tried("absent(load[10s])", every_second([1] * 60), 40_000, 160_000)) == []


def test_a_series_that_is_read_seldom_is_not_silent_between_two_samples() -> None:
    samples = [Sample(Series("load", WEB1), 100_000 + 60_000 * number, 9.0) for number in range(5)]
    paces = {Series("load", WEB1): 60_000, Series("load", WEB2): 1000}
    assert spans(tried("load > 8 nodata clear", samples, 100_000, 600_000, paces=paces)) == [(0, 240 + 181)]
    assert len(tried("load > 8 nodata clear", samples, 100_000, 600_000).alerts) == 5


def test_windows_of_series_that_are_read_seldom_are_filled_too() -> None:
    samples = [Sample(Series("load", WEB1), 60_000 * number, 9.0) for number in range(20)]
    paces = {Series("load", WEB1): 60_000}
    assert spans(tried("mean(load[5]) > 8", samples, 900_000, 960_000, paces=paces)) == [(800, None)]


def test_alerts_that_are_too_many_are_counted() -> None:
    found = tried("load > 8", every_second([1, 9] * 10), 100_000, 120_000, most=3)
    assert (spans(found), found.more) == ([(1, 2), (3, 4), (5, 6)], 7)


@settings(deadline=None)
@given(
    st.sampled_from(["load > 2", "max(load[3]) > 2 for 2s", "mean(load[4s]) >= 2 nodata clear", "mean(load) > 2"]),
    st.lists(st.tuples(st.sampled_from([WEB1, WEB2]), st.integers(0, 3), st.integers(1, 5)), max_size=30),
)
def test_it_fires_on_what_the_reference_fires_on(text: str, steps: list[tuple[Endpoint, int, int]]) -> None:
    at, samples = 100_000, list[Sample]()
    for endpoint, value, step in steps:
        at += 1000 * step
        samples.append(Sample(Series("load", endpoint), at, float(value)))
    end = at + 5000
    reference: Reference | None = None
    begun: list[tuple[Endpoint, int]] = []
    known = {sample.at: sample for sample in samples}
    for clock in range(samples[0].at if samples else end, end + 1, 1000):
        if reference is None:
            reference = Reference(Subscription.parse(text).rule, clock, interval=1000)
        else:
            came = known.get(clock - 1000)
            edges = reference.batch(clock, [came]) if came else reference.tick(clock)
            begun += [(edge.key, edge.at) for edge in edges if edge.firing]
    found = tried(text, samples, 0, end)
    assert sorted(map(str, begun)) == sorted(str((alert.key, alert.since)) for alert in found.alerts)


def test_it_reads_a_history(tmp_path: Path) -> None:
    with History(tmp_path / "history") as history:
        history.name(5, Series("load", WEB1))
        history.append(array("I", [5] * 4), array("d", [1, 9, 9, 1]), array("q", [1000, 2000, 3000, 4000]))
        trial = explain(Subscription.parse("load > 8"), history, 0, 5000)
        assert len(list(trial)) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("load > 8", CostClass.NEWEST),
        ("load > 8 for 1m", CostClass.NEWEST),
        ("absent(load[10s])", CostClass.NEWEST),
        ("mean(load[5m]) > 8", CostClass.RUNNING),
        ("ewma(5m, load) > 8 and load > 1", CostClass.RUNNING),
        ("max(load[5m]) > 8 or mean(load[5m]) > 8", CostClass.ORDERED),
        ("mean(load) by (rack) > 8", CostClass.RUNNING),
        ("any(load) by (rack) > 8", CostClass.ORDERED),
        ("sum(p95(load[5m])) by (rack) > 8", CostClass.ORDERED),
    ],
)
def test_the_dearest_comparison_is_the_cost(text: str, expected: CostClass) -> None:
    assert cost(Subscription.parse(text).rule) is expected


@pytest.mark.parametrize(
    ("text", "offload", "home", "place"),
    [
        ("load > 8", True, Place.BROKER, Place.PUBLISHER),
        ("load > 8", True, Place.ENGINES, Place.PUBLISHER),
        ("load > 8", False, Place.BROKER, Place.BROKER),
        ("load > 8", False, Place.ENGINES, Place.ENGINES),
        ("load > 8 for 1m", True, Place.BROKER, Place.BROKER),
        ("load > 8 for 1m", True, Place.ENGINES, Place.ENGINES),
    ],
)
def test_it_is_matched_where_the_settings_say(text: str, offload: bool, home: Place, place: Place) -> None:
    assert tried(text, [], 0, 1000, offload=offload, home=home).place is place


def test_infinite_values_are_compared_too() -> None:
    assert spans(tried("load > 8", every_second([1, math.inf]), 100_000, 102_000)) == [(1, None)]
