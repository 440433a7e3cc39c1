"""What the matcher computes is the double next to the true value, whatever was in the window before."""

from __future__ import annotations

import math
import random
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbroker.alerts.functions import temporal
from mbroker.alerts.kernel import Compare, Flip, Kernel, KernelError, Made, Step, Term, View
from mbroker.alerts.selector import Selector
from mbroker.alerts.terms import Count, Function, Span, Window
from mbroker.alerts.tree import Temporal

FUNCTIONS = {
    Function.MEAN: (Made.MEAN, 0),
    Function.SUM: (Made.SUM, 0),
    Function.VARIANCE: (Made.VARIANCE, 0),
    Function.STDDEV: (Made.STDDEV, 0),
    Function.COUNT: (Made.COUNT, 0),
    Function.MIN: (Made.SMALLEST, 1),
    Function.MAX: (Made.LARGEST, 1),
    Function.MEDIAN: (Made.QUANTILE, 500_000),
    Function.RATE: (Made.RATE, 0),
    Function.DELTA: (Made.DELTA, 0),
    Function.EWMA: (Made.EWMA, 0),
}

NUMBERS = st.one_of(
    st.floats(-1e6, 1e6),
    st.integers(-5, 5).map(float),
    st.sampled_from([0.1, 1e16, -1e16, 1e300, -1e300, math.inf, -math.inf, 1.7e308, 1e-9]),
)


def push(kernel: Kernel, series: int, samples: list[tuple[int, float]]) -> list[Flip]:
    ids = array("I", [series] * len(samples))
    values, times = array("d", [x for _, x in samples]), array("q", [t for t, _ in samples])
    return [*kernel.push(ids, values, times), *kernel.settle()]


def fires(kernel: Kernel, series: int, samples: list[tuple[int, float]], rule: int) -> bool:
    push(kernel, series, samples)
    return kernel.fires(rule)


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(NUMBERS, min_size=2, max_size=14),
    steps=st.lists(st.integers(1, 3000), min_size=14, max_size=14),
    size=st.integers(2, 5),
    by_count=st.booleans(),
)
def test_a_value_is_exact(function: Function, values: list[float], steps: list[int], size: int, by_count: bool) -> None:
    window: Window = Count(size) if by_count and function is not Function.EWMA else Span(size * 1000)
    expression = Temporal(function, Selector("m"), window)
    made, rank = FUNCTIONS[function]
    view = (
        View(made, samples=window.count, rank=rank)
        if isinstance(window, Count)
        else View(made, span=window.milliseconds, rank=rank)
    )
    times = [1_000_000 + sum(steps[: index + 1]) for index in range(len(values))]
    samples = list(zip(times, values, strict=True))
    wanted = temporal(expression, samples)
    around = 0.0 if wanted is None or math.isinf(wanted) else wanted
    kernel = Kernel()
    series = kernel.open_series(1 << 50)
    rules = {
        compare: kernel.add(Term(series, view, compare, around))
        for compare in (Compare.EQUAL, Compare.ABOVE, Compare.BELOW)
    }
    watchers = [kernel.add(Term(series, view, Compare.ABOVE, bound)) for bound in (-3.0, 0.5, 2.0)]
    push(kernel, series, samples)
    if wanted is None:
        return  # what fired before goes on
    holds = {Compare.EQUAL: wanted == around, Compare.ABOVE: wanted > around, Compare.BELOW: wanted < around}
    assert {compare: kernel.fires(rule) for compare, rule in rules.items()} == holds
    assert [kernel.fires(rule) for rule in watchers] == [wanted > bound for bound in (-3.0, 0.5, 2.0)]


@settings(deadline=None)
@given(
    bounds=st.lists(st.integers(0, 60), max_size=80),
    values=st.lists(st.one_of(st.integers(-1, 61), st.sampled_from([math.inf, -math.inf])), min_size=1, max_size=12),
)
def test_each_threshold_between_two_values_is_passed_once(bounds: list[int], values: list[float]) -> None:
    kernel = Kernel()
    series = kernel.open_series(1 << 50)
    rules = {kernel.add(Term(series, View(Made.LAST), Compare.AT_LEAST, float(bound))): bound for bound in bounds}
    before = -math.inf
    for at, value in enumerate(values, 1):
        flips = [(rule, fires) for _, _, rule, _, _, fires in push(kernel, series, [(at, value)])]
        passed = [(rule, value >= bound) for rule, bound in rules.items() if (value >= bound) != (before >= bound)]
        assert sorted(flips) == sorted(passed)
        before = value


def test_a_full_buffer_of_edges_loses_none() -> None:
    kernel = Kernel(room=3)
    series = kernel.open_series(1 << 50)
    rules = [kernel.add(Term(series, View(Made.LAST), Compare.ABOVE, float(n))) for n in range(100)]
    edges = push(kernel, series, [(t, 1000.0 * (t % 2)) for t in range(1, 8)])
    assert len(edges) == 7 * 100
    assert all(kernel.fires(rule) for rule in rules)


def test_a_window_that_outgrows_the_limit_is_unknown_until_it_is_whole_again() -> None:
    kernel = Kernel(longest=4)
    series = kernel.open_series(1 << 50)
    rule = kernel.add(Term(series, View(Made.COUNT, span=10), Compare.ABOVE, 3.5), hold=1)
    assert push(kernel, series, [(t, 0.0) for t in range(1, 5)]) == []
    push(kernel, series, [(5, 0.0)])
    assert (kernel.counters.overflows, kernel.fires(rule)) == (1, False)
    edges = push(kernel, series, [(t, 0.0) for t in (8, 11, 14, 15, 17)])
    assert edges == []  # the window is whole, and holds 4, from 15 to 17
    assert not kernel.fires(rule)


def test_a_count_window_beyond_the_limit_is_refused() -> None:
    kernel = Kernel(longest=10)
    series = kernel.open_series(1 << 50)
    with pytest.raises(KernelError, match="longer than the engine keeps"):
        kernel.add(Term(series, View(Made.MEAN, samples=11), Compare.ABOVE, 1.0))
    kernel.add(Term(series, View(Made.MEAN, samples=10), Compare.ABOVE, 1.0))
    assert kernel.counters.rules == 1


@pytest.mark.parametrize(
    "term",
    [
        Term(7, View(Made.LAST), Compare.ABOVE, 1.0),
        Term(0, View(Made.LAST), Compare.ABOVE, math.nan),
        Term(0, View(Made.LAST), Compare.ABOVE, math.inf),
        Term(0, View(Made.MEAN), Compare.ABOVE, 1.0),
        Term(0, View(Made.MEAN, samples=3, span=3), Compare.ABOVE, 1.0),
        Term(0, View(Made.QUANTILE, samples=3, rank=1_000_001), Compare.ABOVE, 1.0),
        Term(0, View(Made.LARGEST, samples=3), Compare.ABOVE, 1.0),
        Term(0, View(Made.MEAN), Compare.ABOVE, 1.0, of_group=True),
        Term(0, View(Made.LAST)),
    ],
)
def test_a_rule_out_of_range_changes_nothing(term: Term) -> None:
    kernel = Kernel()
    kernel.open_series(10)
    before = kernel.counters
    with pytest.raises(KernelError):
        kernel.add(term)
    assert kernel.counters == before


@pytest.mark.parametrize("program", [b"\x01", b"\xfd", b"\x00\xfe", b"\x00\x00", b"\x00" * 3 + b"\xfe"])
def test_a_program_that_makes_no_sense_is_refused(program: bytes) -> None:
    kernel = Kernel()
    series = kernel.open_series(10)
    with pytest.raises(KernelError):
        kernel.add(Term(series, View(Made.LAST), Compare.ABOVE, 1.0), program=program)


def test_rules_come_and_go_between_batches() -> None:
    dice = random.Random(5)
    kernel = Kernel()
    series = kernel.open_series(1 << 50)
    views = [View(Made.LAST), View(Made.MEAN, samples=3), View(Made.LARGEST, samples=4, rank=2)]
    kept = [kernel.add(Term(series, view, Compare.ABOVE, -1e9)) for view in views]  # so that windows stay
    rules: dict[int, tuple[View, float]] = {}
    history: list[float] = []
    for at in range(1, 400):
        if dice.random() < 0.5 or not rules:
            view, bound = dice.choice(views), float(dice.randrange(10))
            rules[kernel.add(Term(series, view, Compare.AT_LEAST, bound))] = (view, bound)
        elif dice.random() < 0.4:
            gone = dice.choice(list(rules))
            kernel.remove(gone)
            del rules[gone]
        history.append(float(dice.randrange(10)))
        push(kernel, series, [(at, history[-1])])
        if at < 4:
            continue
        now = {views[0]: history[-1], views[1]: math.fsum(history[-3:]) / 3, views[2]: sorted(history[-4:])[-2]}
        assert all(kernel.fires(rule) == (now[view] >= bound) for rule, (view, bound) in rules.items())
    for rule in [*rules, *kept]:
        kernel.remove(rule)
    assert (kernel.counters.rules, kernel.counters.streams) == (0, 0)
    kernel.close_series(series)


def test_dense_thresholds_on_an_order_statistic_are_matched_from_a_sorted_window() -> None:
    kernel = Kernel()
    series = kernel.open_series(1 << 50)
    rules = {
        n / 10: kernel.add(Term(series, View(Made.QUANTILE, samples=50, rank=500_000), Compare.ABOVE, n / 10))
        for n in range(100)
    }
    dice = random.Random(7)
    history: list[float] = []
    for at in range(1, 600):
        history.append(dice.uniform(0, 10))
        push(kernel, series, [(at, history[-1])])
        if at >= 50:
            median = sorted(history[-50:])[24]
            assert all(kernel.fires(rule) == (median > bound) for bound, rule in rules.items())
    assert kernel.counters.exact < 300  # then no search is needed any more


def test_and_over_two_series_sees_one_instant_together() -> None:
    kernel = Kernel()
    one, two = kernel.open_series(1 << 50), kernel.open_series(1 << 50)
    terms = [Term(series, View(Made.LAST), Compare.ABOVE, 0.0) for series in (one, two)]
    rule = kernel.add(*terms, program=bytes([0, 1, Step.AND]))
    ids, times = array("I", [one, two, one, two]), array("q", [1, 1, 2, 2])
    assert list(kernel.push(ids, array("d", [1, 0, 0, 1]), times)) == []
    assert list(kernel.settle()) == []
    assert not kernel.fires(rule)


def snapshots(kernel: Kernel) -> Kernel:
    made = Kernel()
    made.load(kernel.save())
    return made


def test_a_snapshot_goes_on_where_it_was_taken() -> None:
    dice = random.Random(3)
    kernel = Kernel()
    series = [kernel.open_series(1 << 50) for _ in range(4)]
    group = kernel.open_group(View(Made.MEAN, samples=2))
    for one in series:
        kernel.join(group, one)
        for made in (Made.MEAN, Made.STDDEV, Made.RATE, Made.COUNT):
            for bound in range(5):
                kernel.add(Term(one, View(made, samples=3), Compare.ABOVE, float(bound)), hold=bound % 2)
        kernel.add(Term(one, View(Made.EWMA, span=5), Compare.BELOW, 2.0), clear=(Compare.ABOVE, 3.0))
    kernel.add(Term(group, View(Made.SMALLEST, rank=1), Compare.ABOVE, 2.0, of_group=True, quorum=True))
    other = snapshots(kernel)
    for at in range(1, 100):
        ids, values = array("I", series), array("d", [float(dice.randrange(7)) for _ in series])
        edges = [*kernel.push(ids, values, array("q", [at] * 4)), *kernel.settle()]
        assert [*other.push(ids, values, array("q", [at] * 4)), *other.settle()] == edges
        if at % 9 == 0:
            other = snapshots(other)
    assert other.counters.samples == kernel.counters.samples


@pytest.mark.parametrize("damage", ["short", "long", "version", "empty"])
def test_a_damaged_snapshot_is_refused(damage: str) -> None:
    kernel = Kernel()
    kernel.add(Term(kernel.open_series(9), View(Made.MEAN, samples=3), Compare.ABOVE, 1.0))
    image = bytearray(kernel.save())
    if damage == "version":
        image[8] += 1
    made = {"short": image[:-1], "long": image + b"\0", "version": image, "empty": b""}[damage]
    with pytest.raises(KernelError, match="no snapshot that this version wrote"):
        kernel.load(bytes(made))
    assert kernel.counters.rules == 1
