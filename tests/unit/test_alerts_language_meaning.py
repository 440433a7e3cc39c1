"""What subscriptions mean: every rule of the language reference, on streams short enough to follow by eye."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbroker.alerts import Subscription
from mbroker.alerts.functions import temporal
from mbroker.alerts.reference import Change, Reference, Truth
from mbroker.alerts.sample import Sample
from mbroker.alerts.selector import Endpoint, Series
from mbroker.alerts.tree import Comparison, Temporal

INTERVAL = 10_000
NAN, INF = math.nan, math.inf


def host(name: str, **labels: str) -> Endpoint:
    return frozenset({"host": name, **labels}.items())


H1, H2, H3 = host("h1", rack="r1"), host("h2", rack="r1"), host("h3", rack="r2")
WHOLE = Endpoint()


class Stream:
    """A rule, and samples that arrive when they were taken, in seconds."""

    def __init__(self, text: str, *registered: Endpoint, metric: str = "x") -> None:
        self.reference = Reference(Subscription.parse(text).rule, interval=INTERVAL)
        self.reference.register(*(Series(metric, endpoint) for endpoint in registered))

    def send(self, at: float, *values: float, to: Sequence[Endpoint] = (H1,), metric: str = "x") -> list[Change]:
        """Send one value to each endpoint of *to*, all at the same time."""
        samples = [Sample(Series(metric, to), _ms(at), value) for to, value in zip(to, values, strict=True)]
        return self.reference.batch(_ms(at), samples)

    def tick(self, at: float) -> list[Change]:
        return self.reference.tick(_ms(at))

    def truth(self, key: Endpoint = H1) -> Truth:
        return self.reference.truth(key)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def fires(at: float, key: Endpoint = H1) -> list[Change]:
    return [Change(key, firing=True, at=_ms(at))]


def clears(at: float, key: Endpoint = H1) -> list[Change]:
    return [Change(key, firing=False, at=_ms(at))]


def value(expression: str, *samples: float | tuple[float, float]) -> float | None:
    """Return the value of a function of a window after samples that are a second apart, or (second, value)."""
    condition = Subscription.parse(f"{expression} > 0").rule.condition
    assert isinstance(condition, Comparison)
    assert isinstance(condition.expression, Temporal)
    timed = [sample if isinstance(sample, tuple) else (at, sample) for at, sample in enumerate(samples)]
    return temporal(condition.expression, [(_ms(at), sample) for at, sample in timed])


# -- one alert when it begins, one when it ends


def test_an_alert_fires_once_and_clears_once() -> None:
    stream = Stream("x > 5")
    edges = [stream.send(at, sample) for at, sample in enumerate([5, 6, 7, 6, 5, 4, 9])]
    assert edges == [[], fires(1), [], [], clears(4), [], fires(6)]


def test_a_local_rule_has_one_alert_for_each_endpoint() -> None:
    stream = Stream("x{rack='r1'} > 5")
    assert stream.send(0, 9, 1, 9, to=[H1, H2, H3]) == fires(0, H1)
    assert stream.send(1, 9, 9, 9, to=[H1, H2, H3]) == fires(1, H2)


@pytest.mark.parametrize(
    ("comparison", "true", "false"),
    [
        ("> 5", 5 + 1e-15 * 5, 5.0),
        (">= 5", 5.0, math.nextafter(5, 0)),
        ("< 5", math.nextafter(5, 0), 5.0),
        ("<= 5", 5.0, math.nextafter(5, 9)),
        ("== 5", 5.0, math.nextafter(5, 9)),
        ("!= 5", math.nextafter(5, 9), 5.0),
        ("> 0", 5e-324, -0.0),
        ("== 0", -0.0, 5e-324),
        ("> 5", INF, -INF),
    ],
)
def test_comparisons_are_exact(comparison: str, true: float, false: float) -> None:
    assert Stream(f"x {comparison}").send(0, true) == fires(0)
    assert Stream(f"x {comparison}").send(0, false) == []


def test_clear_keeps_an_alert_until_its_own_comparison_holds() -> None:
    stream = Stream("x > 75 clear <= 72")
    edges = [stream.send(at, sample) for at, sample in enumerate([76, 74, 76, 73, 72, 74, 76])]
    assert edges == [fires(0), [], [], [], clears(4), [], fires(6)]


def test_clear_looks_at_the_same_value_of_all_as_the_condition() -> None:
    stream = Stream("all(x) > 75 clear <= 72")
    assert stream.send(0, 80, 76, to=[H1, H2]) == fires(0, WHOLE)
    assert stream.send(1, 80, 73, to=[H1, H2]) == []
    assert stream.send(2, 80, 72, to=[H1, H2]) == clears(2, WHOLE)


def test_for_waits_until_the_condition_was_true_for_so_long() -> None:
    stream = Stream("x > 5 for 2s")
    edges = [stream.send(at, sample) for at, sample in enumerate([6, 6, 5, 6, 6, 6, 6, 5])]
    assert edges == [[], [], [], [], [], fires(5), [], clears(7)]


def test_for_is_measured_by_the_times_of_samples_and_not_by_the_clock() -> None:
    stream = Stream("x > 5 for 20s")
    assert stream.send(0, 6) == []
    assert stream.tick(25) == []
    assert stream.reference.batch(26_000, [Sample(Series("x", H1), 19_999, 6)]) == []
    assert stream.reference.batch(27_000, [Sample(Series("x", H1), 20_000, 6)]) == fires(20)


def test_for_begins_anew_when_nothing_is_known_for_a_while() -> None:
    stream = Stream("x > 5 for 40s")
    stream.send(0, 6)
    assert stream.tick(30) == []
    assert stream.truth() is Truth.NODATA
    assert stream.send(41, 6) == []
    assert stream.send(60, 6) == []
    assert stream.send(81, 6) == fires(81)


# -- windows


def test_a_window_by_count_says_nothing_until_it_is_full() -> None:
    stream = Stream("mean(x[3]) > 5")
    assert stream.send(0, 9) + stream.send(1, 9) == []
    assert stream.truth() is Truth.UNKNOWN
    assert stream.send(2, 9) == fires(2)


def test_a_window_by_count_slides() -> None:
    assert value("mean(x[3])", 100, 1, 2, 3) == 2


def test_a_window_by_time_is_open_at_its_old_end() -> None:
    assert value("sum(x[3s])", 1, 10, 100, 1000) == 1110


def test_a_window_by_time_speaks_from_its_first_sample() -> None:
    assert value("mean(x[5m])", 7) == 7


def test_a_window_by_time_ends_at_the_newest_sample_of_its_series() -> None:
    stream = Stream("max(x[20s]) > 5")
    assert stream.send(0, 9) == fires(0)
    assert stream.tick(15) == []  # the clock moves, the window does not
    assert stream.send(19.999, 1) == []
    assert stream.send(20, 1) == clears(20)


@pytest.mark.parametrize(
    ("expression", "samples", "result"),
    [
        ("min(x[3])", (2, 3, 1), 1),
        ("max(x[3])", (2, 3, 1), 3),
        ("mean(x[4])", (1, 2, 3, 5), 2.75),
        ("sum(x[4])", (1e16, 1, 1, -1e16), 2),
        ("count(x[10s])", (5, 5, 5), 3),
        ("median(x[3])", (9, 1, 2), 2),
        ("median(x[4])", (9, 1, 2, 3), 2),
        ("variance(x[3])", (1, 2, 3), 1),
        ("stddev(x[3])", (1, 3, 5), 2),
        ("variance(x[3])", (1e9 + 4, 1e9 + 7, 1e9 + 13), 21),
        ("delta(x[3])", (5, 9, 2), -3),
    ],
)
def test_functions_of_a_window(expression: str, samples: tuple[float, ...], result: float) -> None:
    assert value(expression, *samples) == result


@pytest.mark.parametrize(
    ("quantile", "count", "rank"),
    [("0", 5, 1), ("0.2", 5, 1), ("0.200001", 5, 2), ("0.5", 4, 2), ("0.07", 100, 7), ("0.95", 20, 19), ("1", 5, 5)],
)
def test_a_quantile_is_the_sample_of_the_nearest_rank(quantile: str, count: int, rank: int) -> None:
    assert value(f"quantile({quantile}, x[{count}])", *range(count, 0, -1)) == rank


def test_stddev_divides_by_one_less_than_the_count() -> None:
    assert value("stddev(x[2])", 0, 2) == math.sqrt(2)


@pytest.mark.parametrize("function", ["variance", "stddev", "rate", "delta"])
def test_functions_of_pairs_need_two_samples(function: str) -> None:
    assert value(f"{function}(x[5s])", 1) is None
    assert value(f"{function}(x[5s])", 1, 1) == 0


# -- rate and delta


def test_rate_is_per_second_over_the_time_between_the_first_and_last_sample() -> None:
    assert value("rate(x[10s])", (0, 100), (2, 110), (4, 130)) == 7.5


def test_rate_takes_a_fall_for_a_reset_to_zero() -> None:
    assert value("rate(x[10s])", (0, 100), (1, 110), (2, 3), (4, 5)) == (10 + 3 + 2) / 4


def test_delta_is_signed_and_knows_no_resets() -> None:
    assert value("delta(x[10s])", 100, 110, 3) == -97


# -- ewma


def test_ewma_begins_at_the_first_sample_and_forgets_with_its_time_constant() -> None:
    assert value("ewma(10s, x)", 8) == 8
    assert value("ewma(10s, x)", (0, 8), (10, 0)) == pytest.approx(8 / math.e)
    assert value("ewma(10s, x)", (0, 8), (5, 0), (10, 0)) == pytest.approx(8 / math.e)


def test_ewma_of_a_constant_is_the_constant() -> None:
    assert value("ewma(1m, x)", *[0.1] * 50) == 0.1


# -- NaN, infinities, lateness


def test_nan_is_dropped_and_counted_and_moves_no_window() -> None:
    stream = Stream("count(x[2]) > 0")
    assert stream.send(0, 1) + stream.send(1, NAN) == []
    assert stream.send(1, 1) == fires(1)
    assert stream.reference.irregular == {"nan": 1, "infinite": 0}


@pytest.mark.parametrize("at", [5, 4])
def test_a_sample_that_is_not_newer_is_dropped_and_counted(at: float) -> None:
    stream = Stream("x > 5")
    stream.send(5, 1)
    assert stream.reference.batch(6000, [Sample(Series("x", H1), _ms(at), 9)]) == []
    assert stream.reference.irregular["late"] == 1
    assert stream.send(7, 9) == fires(7)


@pytest.mark.parametrize("function", ["mean", "sum", "variance", "stddev", "delta"])
def test_arithmetic_leaves_infinite_samples_of_its_window_out(function: str) -> None:
    assert value(f"{function}(x[4])", 5, 1, INF, 3, -INF) == value(f"{function}(x[2])", 1, 3)


def test_rate_and_ewma_leave_infinite_samples_out() -> None:
    assert value("rate(x[9s])", (0, 1), (1, INF), (2, 5)) == 2
    assert value("ewma(1s, x)", (0, 1), (1, INF), (2, 1)) == 1


def test_a_window_of_infinite_samples_alone_has_no_mean() -> None:
    assert value("mean(x[2])", INF, -INF) is None


def test_an_infinite_sample_has_its_place_in_a_window() -> None:
    assert value("mean(x[2])", 100, INF, 4) == 4


@pytest.mark.parametrize(("function", "result"), [("max", INF), ("min", 1), ("median", 3), ("p99", INF), ("count", 3)])
def test_order_and_count_use_infinite_samples(function: str, result: float) -> None:
    assert value(f"{function}(x[3])", 1, INF, 3) == result


def test_infinite_samples_are_counted() -> None:
    stream = Stream("mean(x[2]) > 0")
    stream.send(0, INF)
    stream.send(1, -INF)
    assert stream.reference.irregular["infinite"] == 2


@pytest.mark.parametrize("expression", ["sum(x[2])", "mean(x[2])", "variance(x[2])"])
def test_what_no_double_can_hold_is_unknown(expression: str) -> None:
    huge = 1.7e308
    assert value(expression, -huge, huge) == {"sum(x[2])": 0, "mean(x[2])": 0, "variance(x[2])": None}[expression]
    assert value("sum(x[2])", huge, huge) is None
    assert value("mean(x[2])", huge, huge) == huge


# -- absence and silence


def test_absent_fires_when_nothing_arrived_for_so_long_and_clears_with_the_next_sample() -> None:
    stream = Stream("absent(x[10s])")
    assert stream.send(0, 1) == []
    assert stream.tick(9.999) == []
    assert stream.tick(10) == fires(10)
    assert stream.tick(11) == []
    assert stream.send(12, 1) == clears(12)


def test_absent_is_about_registered_series_too_but_never_in_the_first_span() -> None:
    stream = Stream("absent(x[10s])", H1)
    assert stream.tick(9.999) == []
    assert stream.truth() is Truth.UNKNOWN
    assert stream.tick(10) == fires(10)


def test_what_was_never_heard_of_is_not_absent() -> None:
    stream = Stream("absent(x[10s])")
    assert stream.tick(100) == []


def test_absence_is_measured_by_the_clock_and_not_by_the_times_of_samples() -> None:
    stream = Stream("absent(x[10s])")
    assert stream.reference.batch(50_000, [Sample(Series("x", H1), 0, 1)]) == []
    assert stream.tick(59) == []
    assert stream.tick(60) == fires(60)


@pytest.mark.parametrize("at", [0, 1])
def test_dropped_samples_are_no_sign_of_life(at: float) -> None:
    stream = Stream("absent(x[10s])")
    stream.send(1, 1)
    stream.reference.batch(6000, [Sample(Series("x", H1), _ms(at), 1), Sample(Series("x", H1), 7000, NAN)])
    assert stream.tick(11) == fires(11)


def test_for_of_absence_runs_on_the_clock() -> None:
    stream = Stream("absent(x[10s]) for 5s")
    stream.send(0, 1)
    assert stream.tick(10) == []
    assert stream.tick(15) == fires(15)


@pytest.mark.parametrize(
    ("expression", "silence"), [("x", 30), ("mean(x[1])", 30), ("max(x[5s])", 5), ("ewma(1s, x)", 30)]
)
def test_a_series_is_stale_after_its_window_or_three_intervals(expression: str, silence: float) -> None:
    stream = Stream(f"{expression} > 5")
    stream.send(0, 9)
    stream.tick(silence - 0.001)
    assert stream.truth() is Truth.TRUE
    stream.tick(silence)
    assert stream.truth() is Truth.NODATA


@pytest.mark.parametrize(
    ("clause", "firing", "quiet"),
    [("", [], []), ("nodata keep", [], []), ("nodata clear", clears(30), []), ("nodata fire", [], fires(30))],
)
def test_nodata_says_what_silence_does_to_an_alert(clause: str, firing: list[Change], quiet: list[Change]) -> None:
    high, low = Stream(f"x > 5 {clause}"), Stream(f"x > 5 {clause}")
    assert high.send(0, 9) == fires(0)
    assert low.send(0, 1) == []
    assert high.tick(30) == firing
    assert low.tick(30) == quiet


def test_an_alert_that_silence_fired_clears_when_all_is_well_again() -> None:
    stream = Stream("x > 5 nodata fire")
    stream.send(0, 1)
    stream.tick(30)
    assert stream.send(31, 1) == clears(31)


def test_a_batch_moves_the_clock_before_its_samples_count() -> None:
    stream = Stream("x > 5 nodata clear")
    stream.send(0, 9)
    assert stream.send(40, 9) == clears(30) + fires(40)


# -- and, or, not


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("x > 5 and y > 5", Truth.UNKNOWN),
        ("x > 5 or y > 5", Truth.TRUE),
        ("x < 5 and y > 5", Truth.FALSE),
        ("x < 5 or y > 5", Truth.UNKNOWN),
        ("not y > 5", Truth.UNKNOWN),
        ("not x > 5", Truth.FALSE),
        ("not x < 5", Truth.TRUE),
    ],
)
def test_what_is_unknown_counts_as_neither_true_nor_false(text: str, truth: Truth) -> None:
    stream = Stream(text)
    stream.reference.register(Series("y", H1))
    stream.send(0, 9)
    assert stream.truth() is truth


def test_silence_of_one_part_is_silence_unless_the_other_part_decides() -> None:
    for text, truth in [
        ("x > 5 and y > 5", Truth.NODATA),
        ("x > 5 and y < 5", Truth.FALSE),
        ("x > 5 or y > 5", Truth.TRUE),
    ]:
        stream = Stream(text)
        stream.send(0, 9)
        stream.send(25, 9, metric="y")
        stream.tick(31)
        assert stream.truth() is truth


def test_conditions_on_single_endpoints_meet_at_the_endpoint() -> None:
    stream = Stream("x > 5 and y > 5")
    stream.send(0, 9, 9, to=[H1, H2])
    assert stream.send(1, 9, to=[H2], metric="y") == fires(1, H2)


def test_a_condition_on_a_group_holds_for_each_of_its_endpoints() -> None:
    stream = Stream("x > 5 and mean(x) by (rack) > 7")
    edges = stream.send(0, 9, 6, 6, to=[H1, H2, H3])
    assert edges == fires(0, H1) + fires(0, H2)


def test_metrics_of_one_time_make_no_edge_between_them() -> None:
    stream = Stream("x > 5 and y < 5")
    x, y = Series("x", H1), Series("y", H1)
    stream.reference.batch(0, [Sample(x, 0, 1), Sample(y, 0, 1)])
    assert stream.reference.batch(1000, [Sample(x, 1000, 9), Sample(y, 1000, 9)]) == []


# -- functions of endpoints


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("all(x) > 1", True),
        ("all(x) > 2", False),
        ("all(x) < 9", True),
        ("all(x) <= 7", False),
        ("any(x) > 7", True),
        ("any(x) > 8", False),
        ("any(x) < 3", True),
        ("any(x) <= 1", False),
        ("atleast(2, x) > 4", True),
        ("atleast(2, x) > 5", False),
        ("atleast(2, x) < 6", True),
        ("atleast(2, x) <= 4", False),
        ("atleast(4, x) > -1e308", False),
        ("min(x) == 2", True),
        ("max(x) == 8", True),
        ("mean(x) == 5", True),
        ("sum(x) == 15", True),
        ("median(x) == 5", True),
        ("count(x) == 3", True),
        ("variance(x) == 9", True),
        ("stddev(x) == 3", True),
        ("p34(x) == 5", True),
    ],
)
def test_functions_of_endpoints(text: str, truth: bool) -> None:
    assert Stream(text).send(0, 2, 8, 5, to=[H1, H2, H3]) == (fires(0, WHOLE) if truth else [])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(1, 5), st.sampled_from([">", ">=", "<", "<="]))
@settings(max_examples=60, deadline=None)
def test_at_least_k_members_means_that_so_many_satisfy_the_comparison(values: list[int], least: int, sign: str) -> None:
    stream = Stream(f"atleast({least}, x) {sign} 3")
    stream.send(0, *values, to=[host(f"h{number}") for number in range(len(values))])
    satisfied = sum({">": v > 3, ">=": v >= 3, "<": v < 3, "<=": v <= 3}[sign] for v in values)
    assert (stream.truth(WHOLE) is Truth.TRUE) == (satisfied >= least)


def test_a_group_is_evaluated_once_for_each_time() -> None:
    stream = Stream("mean(x) > 5")
    assert stream.send(0, 9, 0, to=[H1, H2]) == []
    assert stream.send(1, 0, 9, to=[H1, H2]) == []


def test_a_group_is_evaluated_before_a_later_time_of_the_same_batch() -> None:
    stream = Stream("mean(x) > 5")
    one, two = Series("x", H1), Series("x", H2)
    samples = [Sample(one, 0, 9), Sample(two, 0, 9), Sample(one, 1000, 0), Sample(two, 1000, 0)]
    assert stream.reference.batch(1000, samples) == fires(0, WHOLE) + clears(1, WHOLE)


def test_a_new_member_does_not_count_at_times_before_it_came() -> None:
    stream = Stream("all(x) > 5")
    assert stream.reference.batch(1000, [Sample(Series("x", H1), 0, 9), Sample(Series("x", H2), 1000, 1)]) == [
        *fires(0, WHOLE),
        *clears(1, WHOLE),
    ]


def test_by_makes_one_alert_for_each_value_of_its_labels() -> None:
    stream = Stream("mean(x) by (rack) > 5")
    racks = [Endpoint({("rack", "r1")}), Endpoint({("rack", "r2")})]
    assert stream.send(0, 9, 3, 7, to=[H1, H2, H3]) == fires(0, racks[0]) + fires(0, racks[1])
    assert stream.send(1, 5, 5, 7, to=[H1, H2, H3]) == clears(1, racks[0])


def test_endpoints_without_the_label_are_a_group_of_their_own() -> None:
    stream = Stream("sum(x) by (rack) > 5")
    assert stream.send(0, 9, to=[host("h9")]) == fires(0, Endpoint({("rack", "")}))


def test_by_group_counts_an_endpoint_in_each_of_its_groups() -> None:
    stream = Stream("count(x) by (group) > 1")
    both = Endpoint({("host", "h1"), ("group", "a"), ("group", "b")})
    assert stream.send(0, 1, 1, to=[both, host("h2", group="b")]) == fires(0, Endpoint({("group", "b")}))


def test_a_stale_member_leaves_its_group() -> None:
    stream = Stream("mean(x) > 5")
    assert stream.send(0, 1, 9, to=[H1, H2]) == []
    stream.send(20, 9, to=[H2])
    assert stream.tick(30) == fires(20, WHOLE)


@pytest.mark.parametrize("quantifier", ["all(x)", "atleast(1, x)"])
def test_all_and_atleast_need_every_registered_member(quantifier: str) -> None:
    stream = Stream(f"{quantifier} > 5", H1, H2)
    assert stream.send(0, 9) == []
    assert stream.truth(WHOLE) is Truth.UNKNOWN
    assert stream.send(1, 9, to=[H2]) == fires(1, WHOLE)
    stream.send(25, 9)
    stream.tick(31)  # h2 is stale: neither true nor false
    assert stream.truth(WHOLE) is Truth.UNKNOWN
    assert stream.send(32, 1) == []
    assert stream.send(33, 1, to=[H2]) == clears(33, WHOLE)


def test_any_ignores_members_of_which_nothing_is_known() -> None:
    stream = Stream("any(x) > 5", H1, H2)
    assert stream.send(0, 9) == fires(0, WHOLE)


def test_a_member_whose_window_is_not_full_does_not_count_yet() -> None:
    stream = Stream("max(mean(x[2])) > 5")
    stream.send(0, 9, 9, to=[H1, H2])
    assert stream.send(1, 1, to=[H1]) == []
    assert stream.send(2, 9, to=[H2]) == fires(2, WHOLE)


def test_a_group_that_fell_silent_as_a_whole_has_no_data() -> None:
    stream = Stream("max(x) > 5 nodata clear")
    stream.send(0, 9, 9, to=[H1, H2])
    stream.send(10, 9, to=[H2])
    assert stream.tick(30) == []
    assert stream.tick(40) == clears(40, WHOLE)


def test_count_counts_the_members_that_are_heard_and_waits_for_those_that_may_still_come() -> None:
    stream = Stream("count(x) < 2", H1, H2)
    assert stream.send(0, 1) == []
    assert stream.truth(WHOLE) is Truth.UNKNOWN
    stream.send(25, 1)
    assert stream.tick(30) == fires(25, WHOLE)
    assert stream.tick(60) == []
    assert stream.send(61, 1, 1, to=[H1, H2]) == clears(61, WHOLE)


def test_infinite_members_count_in_order_and_not_in_arithmetic() -> None:
    stream = Stream("max(x) > 100 and mean(x) == 4")
    assert stream.send(0, 3, INF, 5, to=[H1, H2, H3]) == fires(0, WHOLE)


# -- one form for equal rules

ENDPOINTS = [H1, H2]
TEXTS = [
    "not (x > 2 and not y > 2)",
    "not any(x) > 2 or not absent(y[15s])",
    "any(x) >= 2 clear < 1",
    "any(x) < 2 for 10s",
    "max(x[1]) > 2 and quantile(0, y[2]) < 2 nodata fire",
    "p50(x[3]) > 2 or (y > 3 or p50(x[3]) > 2)",
    "not (all(mean(x[2])) > 2 and y > 1) nodata clear",
    "not (count(x) < 2 or x == 3)",
]
samples = st.builds(
    Sample,
    st.builds(Series, st.sampled_from(["x", "y"]), st.sampled_from(ENDPOINTS)),
    st.integers(0, 12).map(lambda step: step * 5000),
    st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, INF, NAN]),
)


@given(st.sampled_from(TEXTS), st.lists(st.tuples(st.integers(0, 4), st.lists(samples, max_size=4)), max_size=8))
@settings(max_examples=150, deadline=None)
def test_a_rule_and_its_canonical_form_have_the_same_edges(text: str, batches: list[tuple[int, list[Sample]]]) -> None:
    subscription = Subscription.parse(text)
    assert subscription.canonical() != subscription
    one, other = Reference(subscription.rule), Reference(subscription.canonical().rule)
    now = 0
    for pause, batch in batches:
        now += pause * 7500
        assert one.batch(now, batch) == other.batch(now, batch)
