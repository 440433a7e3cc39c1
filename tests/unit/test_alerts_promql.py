"""Conditions of PromQL: what each becomes, that it means the same, and what cannot be said."""

from __future__ import annotations

import itertools
import operator
import statistics
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import attrs
import promql_parser as promql
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbroker.alerts.promql import translate
from mbroker.alerts.promql_values import Renaming, Unsupported
from mbroker.alerts.reference import Reference
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Endpoint, Series
from mbroker.alerts.text import condition_text
from mbroker.alerts.tree import NoData, Rule

PLAIN = Renaming({}, frozenset())


def said(text: str, renaming: Renaming = PLAIN) -> tuple[str, ...]:
    return tuple(map(condition_text, translate(text, renaming).conditions))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("up == 0", "up == 0"),
        ("1 < load", "load > 1"),
        ('disk{fs!~"tmpfs|nfs", dev="sda"} <= 10', 'disk{fs!~"tmpfs|nfs", dev="sda"} <= 10'),
        ('{__name__="load", host="a"} > 1', 'load{host="a"} > 1'),
        ("avg_over_time(load[5m]) > 1", "mean(load[5m]) > 1"),
        ("min_over_time(load[90s]) > 1", "min(load[90s]) > 1"),
        ("max_over_time(load[1h30m]) > 1", "max(load[90m]) > 1"),
        ("quantile_over_time(0.9, load[5m]) > 1", "p90(load[5m]) > 1"),
        ("stddev_over_time(load[5m]) > 1", "stddev(load[5m]) > 1"),
        ("stdvar_over_time(load[5m]) > 1", "variance(load[5m]) > 1"),
        ("count_over_time(load[5m]) < 3", "count(load[5m]) < 3"),
        ("sum_over_time(load[5m]) > 3", "sum(load[5m]) > 3"),
        ("last_over_time(load[5m]) > 3", "load > 3"),
        ("rate(errors[5m]) > 0.5", "rate(errors[5m]) > 0.5"),
        ("irate(errors[5m]) > 0.5", "rate(errors[2]) > 0.5"),
        ("increase(errors[5m]) > 30", "rate(errors[5m]) > 0.1"),
        ("delta(temp[5m]) < -3", "delta(temp[5m]) < -3"),
        ("idelta(temp[5m]) < -3", "delta(temp[2]) < -3"),
        ("sum(load) > 3", "sum(load) > 3"),
        ("avg by (rack) (load) > 3", "mean(load) by (rack) > 3"),
        ("max(rate(errors[5m])) by (rack, row) > 3", "max(rate(errors[5m])) by (rack, row) > 3"),
        ("count(load) by (rack) < 3", "count(load) by (rack) < 3"),
        ("quantile(0.99, load) > 3", "p99(load) > 3"),
        ("stdvar(increase(errors[10s])) > 200", "variance(rate(errors[10s])) > 2"),
        ("count(load > 8) by (rack) >= 3", "atleast(3, load) by (rack) > 8"),
        ("count(load > 8) > 3", "atleast(4, load) > 8"),
        ("count(avg_over_time(load[5m]) <= 8) >= 2.5", "atleast(3, mean(load[5m])) <= 8"),
        ("100 - avg(idle) * 100 > 80", "mean(idle) < 0.2"),
        ("-(load) >= -2", "load <= 2"),
        ("load / 4 + 1 != 2", "load != 4"),
        ("10 - (load - 2) > 3", "load < 9"),
        ("free < 5 * 2 ^ 30", "free < 5368709120"),
        ("a > 1 and b > 2", "a > 1 and b > 2"),
        ("a > 1 and on (host) b > 2", "a > 1 and any(b) by (host) > 2"),
        ("a > 1 and on (rack) sum by (rack) (b) > 2", "a > 1 and sum(b) by (rack) > 2"),
        ("sum(a) by (host, rack) > 1 and on (rack) max_over_time(b[5m]) < 2", None),
        ("a > 1 unless a > 100", "a > 1 and not a > 100"),
        ("a < 1 or a > 5", "a < 1 or a > 5"),
        ("(a < 1 or a > 5) and b > 0", "(a < 1 or a > 5) and b > 0"),
        ("absent(heartbeat)", "absent(heartbeat[5m])"),
        ("absent(heartbeat) == 1", "absent(heartbeat[5m])"),
        ('absent_over_time(heartbeat{host="a"}[10m])', 'absent(heartbeat{host="a"}[10m])'),
    ],
)
def test_what_has_a_counterpart_becomes_it(expression: str, expected: str | None) -> None:
    expected = expected or "sum(a) by (host, rack) > 1 and any(max(b[5m])) by (rack) < 2"
    assert said(expression) == (expected,)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("load", "it fires whatever its value is"),
        ("vector(1)", "it fires whatever its value is"),
        ("load > bool 1", "bool makes a value of every series"),
        ("load > limit", "it compares two series"),
        ("1 > 2", "it is no PromQL"),
        ("load > Inf", "its threshold is not a finite number"),
        ("load > 1 / 0", "its constants make no finite number"),
        ("used / size > 0.9", "arithmetic between series (/) has no counterpart"),
        ("load % 2 > 0", "only + - * / with a finite number"),
        ("1 / load > 2", "only + - * / with a finite number"),
        ("load * 0 > -1", "a multiple of 0"),
        ("load offset 5m > 1", "offset and @ look into the past"),
        ("rate(load[5m] offset 5m) > 1", "offset and @ look into the past"),
        ("load @ end() > 1", "offset and @ look into the past"),
        ("max_over_time(load[5m:1m]) > 1", "subqueries have no counterpart"),
        ("predict_linear(free[1h], 3600) < 0", "the function predict_linear has no counterpart"),
        ("histogram_quantile(0.9, rate(b[5m])) > 1", "the function histogram_quantile has no counterpart"),
        ("time() - started < 600", "the time itself is no metric"),
        ("sum without (cpu) (load) > 1", "without names labels that go"),
        ("topk(3, load) > 1", "the aggregation topk has no counterpart"),
        ("sum(load > 1) > 5", "sum of a comparison has no counterpart"),
        ("count(up == 0) > 5", "count of a comparison needs"),
        ("count(load > 8) < 5", "count of a comparison needs"),
        ("count(sum(load) by (a) > 8) > 5", "count counts series"),
        ("sum(max by (a) (load)) > 5", "an aggregation of an aggregation"),
        ("sum(load + 1) > 5", "move other constants out of sum"),
        ('{host="a"} > 1', "the metric must be named"),
        ('{__name__=~"a.*"} > 1', "the metric must be named; it cannot be a pattern"),
        ('a{b="c" or d="e"} > 1', "or between labels has no counterpart"),
        ("a > 1 and sum(b) > 2", "and joins what has different labels"),
        ("a > 1 and ignoring (x) b > 2", "ignoring names labels that do not matter"),
        ("sum(a) by (host) > 1 and on (rack) b > 2", "on names labels that the left side does not have"),
        ("a > 1 and on (host) sum by (rack) (b) > 2", "on must name the labels"),
        ("a > 1 unless b > 2", "it would never fire here"),
        ("(a > 1 or b > 2) and c > 3", "or joins only conditions on one and the same series"),
        ("a > 1 and absent(b)", "absent stands for itself"),
        ("absent(a) == 0", "absent is 1"),
        ("absent(sum(a))", "absent is about series"),
        ("quantile(2, load) > 1", "a quantile is from 0 to 1"),
        ("avg_over_time(load[30d]) > 1", "a window may last at most 7d"),
        ("a > 1 and on (host) b == 2", "any needs > >= < or <="),
        ('a{b=~"("} > 1', "it is no PromQL"),
        ("a > 1 and", "it is no PromQL"),
        ("", "it is no PromQL"),
        ("a > 1 and (" * 70 + "a > 1" + ")" * 70, "it is nested more than"),
        ("(" * 2000 + "a" + ")" * 2000 + "> 1", "it has more than 256 brackets and operators"),
        ("-" * 4000 + "a > 1", "it has more than 256 brackets and operators"),
        ("a > " + "1+" * 2000 + "1", "it has more than 256 brackets and operators"),
        ("(" * 100 + "a" + ")" * 100 + "> 1", "it is nested more than 64 deep"),
        ("a" * 5000, "it has more than 4096 characters"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_one_line(expression: str, reason: str) -> None:
    with pytest.raises(Unsupported) as caught:
        translate(expression, PLAIN)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "note"),
    [
        ("quantile_over_time(0.9, a[5m]) > 1", "quantiles are of the nearest rank here"),
        ("stddev(a) > 1", "variance and stddev divide by n - 1 here"),
        ("rate(a[5m]) > 1", "rate is not extrapolated here"),
        ("increase(a[5m]) > 1", "with its threshold divided by 300"),
        ("irate(a[5m]) > 1", "irate looks at the last two samples here however old"),
        ("delta(a[5m]) > 1", "delta is last minus first here"),
        ("sum_over_time(a[5m]) > 1", "sum_over_time depends on how often a series is sampled"),
        ("a * 2 > 1", "constants moved to the threshold"),
        ("count(a) < 3", "a count is 0 here when every series is silent"),
        ("count(a > 1) > 3", "atleast waits here until each series of the group is known"),
        ("absent(a)", "absent is told here of each series that falls silent"),
        ("last_over_time(a[1h]) > 1", "last_over_time is the newest sample here"),
        ("a > 1 or b > 1", "or became 2 subscriptions"),
        ('a{job="x"} > 1', "job is left out, which publishers do not say: every series is meant"),
        ("sum by (job) (a) > 1", "job is left out, which publishers do not say: what differs in it alone is one group"),
        ('a{instance="x:9100"} > 1', "instance is called host here, and its values have no port"),
    ],
)
def test_a_difference_is_noted(expression: str, note: str) -> None:
    notes = translate(expression, Renaming()).notes
    assert any(note in each for each in notes)
    assert len(set(notes)) == len(notes)


@pytest.mark.parametrize(
    "expression", ["a > 1", "avg_over_time(a[5m]) > 1", "sum(a) by (b) > 1", "count(a) > 3", "a > 1 and b < 2"]
)
def test_what_means_the_same_has_no_notes(expression: str) -> None:
    assert translate(expression, Renaming()).notes == ()


def test_labels_of_scraping_are_renamed_or_left_out() -> None:
    assert said('sum by (job, instance) (a{job="x", instance=~"web.*"}) > 1', Renaming()) == (
        'sum(a{host=~"web.*"}) by (host) > 1',
    )


# -- the meaning, compared with an evaluator of PromQL that is as plain as can be

Vector: TypeAlias = "dict[Endpoint, float]"
MINUTE = 60_000
LOOKBACK = 5 * MINUTE
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda left, right: left / right,
}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_OVER: dict[str, Callable[[list[float]], float]] = {
    "avg_over_time": statistics.fmean,
    "min_over_time": min,
    "max_over_time": max,
    "sum_over_time": sum,
    "count_over_time": len,
}
_AGGREGATE: dict[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "avg": statistics.fmean,
    "min": min,
    "max": max,
    "count": len,
}


@attrs.frozen
class Prometheus:
    """Evaluates expressions over samples at one time."""

    samples: dict[Series, list[tuple[int, float]]]
    now: int

    def evaluate(self, tree: Any) -> Vector | float:
        match tree:
            case promql.ParenExpr():
                return self.evaluate(tree.expr)
            case promql.NumberLiteral():
                return tree.val
            case promql.VectorSelector():
                return {key: within[-1][1] for key, within in self.window(tree, LOOKBACK).items()}
            case promql.Call():
                matrix = tree.args[-1]
                span = round(matrix.range.total_seconds() * 1000)
                values = {
                    key: self.over(tree.func.name, span, within)
                    for key, within in self.window(matrix.vector_selector, span).items()
                }
                return {key: value for key, value in values.items() if value is not None}
            case promql.AggregateExpr():
                return self.aggregate(tree)
            case promql.BinaryExpr():
                return self.joined(str(tree.op), tree)
            case _:
                raise AssertionError(tree)

    def window(self, selector: promql.VectorSelector, span: int) -> dict[Endpoint, list[tuple[int, float]]]:
        found: dict[Endpoint, list[tuple[int, float]]] = {}
        for series, samples in self.samples.items():
            labels = dict(series.endpoint)
            if series.metric == selector.name and all(
                labels.get(m.name, "") == m.value for m in selector.matchers.matchers
            ):
                within = [sample for sample in samples if self.now - span < sample[0] <= self.now]
                if within:
                    found[series.endpoint] = within
        return found

    def over(self, name: str, span: int, within: list[tuple[int, float]]) -> float | None:
        if name in _OVER:
            return _OVER[name]([value for _, value in within])
        if len(within) < 2:
            return None
        (first, start), (last, end) = within[0], within[-1]
        if name in ("irate", "idelta"):
            (first, start), (last, end) = within[-2:]
            rise = end - start if end >= start or name == "idelta" else end
            return rise if name == "idelta" else rise * 1000 / (last - first)
        rise = end - start + sum(old for (_, old), (_, new) in itertools.pairwise(within) if new < old)
        mean = (last - first) / (len(within) - 1)
        ends = (first - (self.now - span), self.now - last)
        covered = last - first + sum(gap if gap < 1.1 * mean else mean / 2 for gap in ends)
        increase = rise * covered / (last - first)
        return increase if name == "increase" else increase * 1000 / span

    def aggregate(self, tree: promql.AggregateExpr) -> Vector:
        by = tree.modifier.labels if tree.modifier else []
        groups: dict[Endpoint, list[float]] = {}
        vector = self.evaluate(tree.expr)
        assert isinstance(vector, dict)
        for key, value in vector.items():
            labels = dict(key)
            groups.setdefault(frozenset((name, labels.get(name, "")) for name in by), []).append(value)
        return {key: _AGGREGATE[str(tree.op)](values) for key, values in groups.items()}

    def joined(self, word: str, tree: promql.BinaryExpr) -> Vector | float:
        left, right = self.evaluate(tree.lhs), self.evaluate(tree.rhs)
        if isinstance(left, dict) and isinstance(right, dict):
            on = tree.modifier.matching.labels if tree.modifier and tree.modifier.matching else None
            there = {_signature(key, on) for key in right}
            here = {_signature(key, on) for key in left}
            match word:
                case "and":
                    return {key: value for key, value in left.items() if _signature(key, on) in there}
                case "unless":
                    return {key: value for key, value in left.items() if _signature(key, on) not in there}
                case _:
                    return left | {key: value for key, value in right.items() if _signature(key, on) not in here}
        if word in _ARITHMETIC:
            if isinstance(left, dict):
                assert not isinstance(right, dict)
                return {key: _ARITHMETIC[word](value, right) for key, value in left.items()}
            if isinstance(right, dict):
                return {key: _ARITHMETIC[word](left, value) for key, value in right.items()}
            return _ARITHMETIC[word](left, right)
        vector, number, compare = (left, right, _COMPARE[word])
        if isinstance(right, dict):
            vector, number = right, left
            return {key: value for key, value in right.items() if compare(_number(number), value)}
        assert isinstance(vector, dict)
        return {key: value for key, value in vector.items() if compare(value, _number(number))}


def _number(value: Vector | float) -> float:
    assert not isinstance(value, dict)
    return value


def _signature(key: Endpoint, on: list[str] | None) -> Endpoint:
    return key if on is None else frozenset((name, dict(key).get(name, "")) for name in on)


ENDPOINTS = [frozenset({("host", host), ("rack", rack)}) for host, rack in [("a", "1"), ("b", "1"), ("c", "2")]]
SERIES = [Series(metric, endpoint) for metric in ("m", "n") for endpoint in ENDPOINTS]


def firing(expression: str, batches: list[list[Sample]]) -> Iterable[set[Endpoint]]:
    """Yield for whom the translation fires after each batch; minutes pass between them."""
    rules = [Rule(condition, nodata=NoData.CLEAR) for condition in translate(expression, PLAIN).conditions]
    references = [Reference(rule, interval=LOOKBACK // 3) for rule in rules]  # stale when Prometheus says so
    fires: list[set[Endpoint]] = [set() for _ in rules]
    for number, batch in enumerate(batches, 1):
        for reference, of_rule in zip(references, fires, strict=True):
            for edge in reference.batch(number * MINUTE, batch):
                (of_rule.add if edge.firing else of_rule.discard)(edge.key)
        yield set().union(*fires)


def agrees(expression: str, rows: list[list[float | None]], *, warm: int = 0) -> None:
    """Compare minute by minute, from *warm* on, for rows of one value for each series."""
    tree, samples = promql.parse(expression), {series: list[tuple[int, float]]() for series in SERIES}
    batches = [
        [Sample(series, number * MINUTE, value) for series, value in zip(SERIES, row, strict=True) if value is not None]
        for number, row in enumerate(rows, 1)
    ]
    for number, (batch, ours) in enumerate(zip(batches, firing(expression, batches), strict=True), 1):
        for sample in batch:
            samples[sample.series].append((sample.at, sample.value))
        theirs = Prometheus(samples, number * MINUTE).evaluate(tree)
        assert isinstance(theirs, dict)
        if number > warm:
            assert ours == set(theirs), f"at minute {number}"


values = st.integers(0, 9).map(float)
whole = st.lists(st.lists(values, min_size=6, max_size=6), min_size=1, max_size=15)
gappy = st.lists(st.lists(st.none() | values, min_size=6, max_size=6), min_size=1, max_size=25)


@pytest.mark.parametrize(
    "expression",
    [
        "m > 5",
        "3 >= m",
        'm{host="a"} == 0',
        "10 - m * 2 < 1",
        "m > 2 and n < 7",
        "m > 2 and on (rack) n < 3",
        "m > 5 unless m > 7",
        "m < 2 or m > 7",
        "m < 2 or n > 7",
        "(m < 2 or m > 7) and n != 4",
        "sum(m) > 14",
        "avg by (rack) (m) < 4",
        "min(m) by (host) > 6",
        "max by (rack) (m) - 1 >= 7",
        "m > 3 and on (rack) sum by (rack) (n) > 9",
        "sum by (rack) (m) > 9 and on (rack) n > 5",
        "sum by (rack) (m) > 9 and sum by (rack) (n) < 9",
    ],
)
@given(rows=gappy)
@settings(max_examples=15, deadline=None)
def test_an_instant_condition_fires_when_prometheus_says_so(expression: str, rows: list[list[float | None]]) -> None:
    agrees(expression, rows)


@pytest.mark.parametrize(
    "expression",
    [
        "avg_over_time(m[3m]) > 4.9",
        "min_over_time(m[3m]) > 2",
        "max_over_time(m[4m]) < 7",
        "sum_over_time(m[3m]) > 14",
        "count_over_time(m[3m]) >= 3",
        "idelta(m[5m]) > 3",
        "irate(m[5m]) > 0.05",
        "sum by (rack) (max_over_time(m[2m])) > 12",
        "count(m) > 2",
        "count(m > 5) by (rack) >= 2",
        "count(m <= 3) > 1",
    ],
)
@given(rows=whole)
@settings(max_examples=15, deadline=None)
def test_a_window_without_gaps_fires_when_prometheus_says_so(expression: str, rows: list[list[float | None]]) -> None:
    agrees(expression, rows)


@pytest.mark.parametrize(
    "expression",
    [
        "rate(m[5m]) > 0.0703",
        "increase(m[5m]) > 21.03",
        "sum by (rack) (rate(m[4m])) > 0.1501",
        "100 - rate(m[3m]) * 100 < 92.9",
    ],
)
@given(rows=whole)
@settings(max_examples=15, deadline=None)
def test_a_rate_over_a_full_window_fires_when_prometheus_says_so(
    expression: str, rows: list[list[float | None]]
) -> None:
    totals, climbing = [1000.0] * 6, list[list[float | None]]()
    for row in rows:
        totals = [0.0 if rise == 9 else total + (rise or 0) for total, rise in zip(totals, row, strict=True)]  # resets
        climbing.append(list(totals))
    agrees(expression, climbing, warm=5)
