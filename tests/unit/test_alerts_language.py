"""The subscription language as text: what it accepts, and what it says to what it does not."""

from __future__ import annotations

import json
import sys

import pytest

from mbroker.action import Severity
from mbroker.alerts import Subscription, SubscriptionError
from mbroker.alerts.selector import Endpoint, Label, Relation, Selector, Series
from mbroker.alerts.terms import Count, Function, Operator, Span
from mbroker.alerts.tree import (
    Absent,
    And,
    Comparison,
    Handling,
    Instant,
    NoData,
    Not,
    Or,
    Rule,
    Spatial,
    Temporal,
    leaves,
)
from mbroker.values import Invalid
from mchannel.packing import pack

TEMPERATURE = Selector("temperature", (Label("group", Relation.IS, "hansen"),))
LOAD = Selector("load")
HIGH = Comparison(Instant(LOAD), Operator.ABOVE, 5.0)


def parse(text: str) -> Rule:
    return Subscription.parse(text).rule


def refusal(text: str) -> str:
    with pytest.raises(SubscriptionError) as caught:
        Subscription.parse(text)
    return str(caught.value)


def test_figure_2_is_a_spatial_function_of_a_temporal_one() -> None:
    subscription = Subscription.parse("all(mean(temperature{group='hansen'}[15])) > 75 for 2m severity critical")
    mean = Temporal(Function.MEAN, TEMPERATURE, Count(15))
    comparison = Comparison(Spatial(Function.ALL, mean), Operator.ABOVE, 75.0)
    assert subscription == Subscription(Rule(comparison, hold=Span(120_000)), Handling(Severity.CRITICAL))


def test_a_bare_metric_is_the_newest_sample_of_each_endpoint() -> None:
    assert parse("load > 5").condition == HIGH


@pytest.mark.parametrize("word", ["min", "max", "mean", "median", "stddev", "variance", "sum", "count"])
def test_a_function_of_a_window_is_temporal_and_one_without_is_spatial(word: str) -> None:
    function = Function(word)
    assert parse(f"{word}(load[5]) > 5").condition == Comparison(
        Temporal(function, LOAD, Count(5)), Operator.ABOVE, 5.0
    )
    assert parse(f"{word}(load) > 5").condition == Comparison(Spatial(function, Instant(LOAD)), Operator.ABOVE, 5.0)


@pytest.mark.parametrize("word", ["rate", "delta"])
def test_rate_and_delta_are_functions_of_windows_alone(word: str) -> None:
    assert parse(f"{word}(load[5m]) > 5").condition == Comparison(
        Temporal(Function(word), LOAD, Span(300_000)), Operator.ABOVE, 5.0
    )
    assert refusal(f"{word}(load) > 5") == f"column 1: {word} needs a window: {word}(metric[5m])"


def test_ewma_takes_its_time_constant_instead_of_a_window() -> None:
    temporal = Temporal(Function.EWMA, LOAD, Span(30_000))
    assert parse("ewma(30s, load) > 5").condition == Comparison(temporal, Operator.ABOVE, 5.0)


def test_a_percentile_is_a_quantile() -> None:
    assert parse("p95(load[20m]) > 5") == parse("quantile(0.95, load[20m]) > 5")
    assert parse("p7(load) > 5") == parse("quantile(0.07, load) > 5")


def test_atleast_says_how_many() -> None:
    spatial = Spatial(Function.ATLEAST, Instant(LOAD), least=3)
    assert parse("atleast(3, load) > 5").condition == Comparison(spatial, Operator.ABOVE, 5.0)


def test_by_follows_a_function_of_endpoints() -> None:
    spatial = Spatial(Function.MAX, Temporal(Function.RATE, LOAD, Span(60_000)), ("rack", "row"))
    assert parse("max(rate(load[1m])) by (rack, row) > 5").condition == Comparison(spatial, Operator.ABOVE, 5.0)
    assert refusal("mean(load[5]) by (rack) > 1").startswith("column 15: expected '>'")


def test_labels_are_compared_and_matched() -> None:
    selector = Selector(
        "load",
        (
            Label("a", Relation.IS, "1"),
            Label("b", Relation.IS_NOT, "it's"),
            Label("c", Relation.MATCHES, 'x"\\d'),
            Label("d", Relation.MATCHES_NOT, ""),
        ),
    )
    text = r"""load{a="1", b!="it's", c=~'x"\\d', d!~""} > 5"""
    assert parse(text).condition == Comparison(Instant(selector), Operator.ABOVE, 5.0)
    assert parse("load{} > 5").condition == HIGH


def test_and_binds_more_tightly_than_or_and_not_more_than_both() -> None:
    low = Comparison(Instant(LOAD), Operator.BELOW, 1.0)
    absent = Absent(Selector("up"), Span(10_000))
    text = "not load > 5 and load < 1 or absent(up[10s])"
    assert parse(text).condition == Or((And((Not(HIGH), low)), absent))
    assert parse("not (load > 5 and (load < 1 or absent(up[10s])))").condition == Not(And((HIGH, Or((low, absent)))))


@pytest.mark.parametrize(
    "text",
    [
        "(x > 1 or y > 1) or z > 1",
        "(x > 1 and y > 1) and z > 1",
        "x > 1 and (y > 1 or z > 1)",
        "x > 1 and y > 1 or z > 1",
        "not (x > 1 or y > 1) and z > 1",
        "not not x > 1",
    ],
)
def test_parentheses_are_printed_where_the_tree_needs_them(text: str) -> None:
    assert str(Subscription.parse(text)) == text


@pytest.mark.parametrize("number", ["75", "-0.5", "1e-07", "1e+300", "100000000000000.5"])
def test_numbers_are_printed_in_their_shortest_form(number: str) -> None:
    assert str(Subscription.parse(f"x > {number}")) == f"x > {number}"


def test_clauses_stand_in_any_order() -> None:
    text = "load > 5 keep a, b expire 30d severity info nodata fire for 90s clear <= 4"
    clear = Comparison(Instant(LOAD), Operator.AT_MOST, 4.0)
    handling = Handling(Severity.INFO, ("a", "b"), Span(30 * 86_400_000))
    assert Subscription.parse(text) == Subscription(Rule(HIGH, clear, Span(90_000), NoData.FIRE), handling)


def test_without_clauses_the_usual_holds() -> None:
    subscription = Subscription.parse("load > 5")
    assert (subscription.rule.hold, subscription.rule.clear, subscription.rule.nodata) == (None, None, NoData.KEEP)
    assert subscription.handling == Handling(Severity.WARNING, (), Span(86_400_000))


def test_words_of_functions_are_names_where_nothing_is_called() -> None:
    assert str(Subscription.parse("count > 5 and p95 > 1 and mean{sum='1'} > 2")).startswith("count > 5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 1: expected 'not', '(', 'absent', a function or a metric, found the end"),
        ("mean(temp[15) > 75", "column 13: expected ']', found ')'"),
        ("mean(temp[15]) >> 75", "column 17: expected a number, found '>'"),
        ("temp > hot", "column 8: expected a number, found 'hot'"),
        ("temp > nan", "column 8: expected a number, found 'nan'"),
        ("temp > .5", "column 8: expected a number, found '.5'"),
        ("temp > 1e999", "column 8: 1e999 is beyond the range of a double"),
        ('all(mean(t{g="x"}[15]) > 7', "column 24: expected ')', found '>'"),
        ("x[15] > 3", "column 2: a window holds many samples; write a function of it: mean(x[...])"),
        ("x", "column 2: expected '{', '>', '>=', '<', '<=', '==' or '!=', found the end"),
        ("x > 1 or", "column 9: expected 'not', '(', 'absent', a function or a metric, found the end"),
        ("for > 1", "column 1: expected 'not', '(', 'absent', a function or a metric, found 'for'"),
        ("mean(x[five]) > 1", "column 8: expected a number of samples or a duration such as 30s or 2m, found 'five'"),
        ("mean(x[0]) > 1", "column 8: count must be a whole number from 1 to 86400, not 0"),
        ("mean(x[86401]) > 1", "column 8: count must be a whole number from 1 to 86400, not 86401"),
        ("mean(x[8d]) > 1", "column 8: a window may last at most 7d, not 8d"),
        ("absent(x[5]) ", "column 10: expected a duration such as 30s or 2m, found '5'"),
        ("stddev(x[1]) > 1", "column 1: stddev needs a window of at least 2 samples"),
        ("quantile(1.5, x[9]) > 1", "column 10: a quantile is from 0 to 1 with at most six decimals, not 1.5"),
        ("atleast(0, x) > 1", "column 9: atleast needs a whole number from 1 to 1000000, not 0"),
        ("all(x) == 1", "column 1: all needs > >= < or <=; min and max can be compared with == and !="),
        ("mean(mean(mean(x[3]))) > 1", "column 11: only two functions can be nested, the outer one of endpoints"),
        ("rate(mean(x[3])) > 1", "column 6: rate needs a metric and a window here: rate(metric[5m])"),
        ('x{a="\\d"} > 1', "column 6: a text knows no escape '\\\\d'; a backslash itself is written \\\\"),
        ('x{a=~"("} > 1', "column 6: not a pattern that RE2 accepts: missing ): ("),
        ('x{a="b} > 1', "column 5: expected a text in quotes, found a text without its closing quote"),
        ("x{a=b} > 1", "column 5: expected a text in quotes, found 'b'"),
        ("x{a<'b'} > 1", "column 4: expected '=', '!=', '=~' or '!~', found '<'"),
        ("x > 1 for 2m30s", "column 11: expected a duration such as 30s or 2m, found '2m30s'"),
        ("x > 1 for 1m for 2m", "column 14: 'for' was said before"),
        ("x > 1 severity urgent", "column 16: expected 'info', 'warning' or 'critical', found 'urgent'"),
        ("x > 1 keep a, a", "column 7: keep must have each name once"),
        ("x > 1 and y > 2 clear < 1", "column 17: clear needs a condition that is one comparison"),
        (
            "x > 75%",
            "column 7: expected 'and', 'or', 'clear', 'for', 'nodata', 'severity', 'keep', 'expire' or the end, found "
            + repr("%"),
        ),
        (
            "mean(x) by (a) > 1 or mean(x) by (b) > 1",
            "column 1: by (a) and by (b) have no alert in common; write two subscriptions",
        ),
        (
            "x > 1 and mean(x) by (group) > 1",
            "column 1: by (group) does not go with a condition on single endpoints, which may be in many groups",
        ),
        ("x > 1\n  and y >> 2", "line 2, column 10: expected a number, found '>'"),
    ],
)
def test_an_error_says_the_column_and_what_was_expected(text: str, message: str) -> None:
    assert refusal(text) == message


def test_an_unknown_function_is_answered_with_those_there_are() -> None:
    message = refusal("avg(x[3]) > 1")
    assert message.startswith("column 1: there is no function 'avg'; there are min max mean")
    assert "ewma" in message


def test_an_error_can_be_shown_under_its_line() -> None:
    with pytest.raises(SubscriptionError) as caught:
        Subscription.parse("load > 1 and\nload >> 2 for 1m")
    assert (caught.value.line, caught.value.column) == (2, 7)
    assert caught.value.marked() == "load >> 2 for 1m\n      ^"


@pytest.mark.parametrize(
    ("fires", "clears"),
    [
        ("> 75", "<= 75"),
        (">= 75", "< 75"),
        ("> 75", "< 70"),
        ("< 5", "> 5"),
        ("== 2", "!= 2"),
        ("!= 0", "== 0"),
        ("== 2", "> 2"),
    ],
)
def test_clear_may_touch_where_the_alert_fires(fires: str, clears: str) -> None:
    assert parse(f"x {fires} clear {clears}").clear is not None


@pytest.mark.parametrize(
    ("fires", "clears"), [("> 75", "<= 80"), (">= 75", "<= 75"), ("> 75", "> 80"), ("< 5", "> 4"), ("!= 0", "> 3")]
)
def test_clear_may_not_hold_where_the_alert_fires(fires: str, clears: str) -> None:
    assert "is also true where the alert fires" in refusal(f"x {fires} clear {clears}")


# -- hostile text


def test_a_text_that_is_too_long_is_not_looked_at() -> None:
    assert refusal("x > 1" + " " * 5000) == "column 4097: a subscription has at most 4096 characters, not 5005"


@pytest.mark.parametrize("opening", ["(", "not ", "x > 1 or (", "x > 1 and not ("])
def test_depth_is_bounded_before_python_is(opening: str) -> None:
    limit = sys.getrecursionlimit()
    assert 4096 // len(opening) > limit // 20
    assert "at most 32 deep" in refusal(opening * (4096 // len(opening)))


def test_depth_just_within_the_bound_is_accepted_and_printed() -> None:
    subscription = Subscription.parse("not " * 32 + "x > 1")
    assert Subscription.parse(str(subscription)) == subscription
    assert "at most 32 deep" in refusal("not " * 33 + "x > 1")


def test_functions_nest_no_deeper_than_two() -> None:
    assert "only two functions" in refusal("max(" * 1000)


def test_comparisons_are_bounded() -> None:
    assert len(list(leaves(parse(" or ".join(["x > 1"] * 64)).condition))) == 64
    assert refusal(" or ".join(["x > 1"] * 65)) == "column 1: a condition may have at most 64 comparisons"


def test_labels_of_a_selector_are_bounded() -> None:
    pairs = [f"l{number}='1'" for number in range(17)]
    assert accepts(f"x{{{','.join(pairs[:16])}}}", *((f"l{number}", "1") for number in range(17)))
    assert refusal(f"x{{{','.join(pairs)}}} > 1") == "column 1: labels must be 0 to 16, not 17"


@pytest.mark.parametrize(
    "pattern", ["(a{1000}){1000}", "((a{100}){100}){100}", r"(a)\\1", "(?=a)b", "a**", ".{1000}" * 20]
)
def test_a_pattern_that_could_blow_up_is_refused(pattern: str) -> None:
    assert refusal(f'x{{a=~"{pattern}"}} > 1').startswith("column 6: not a pattern that RE2 accepts: ")


def test_a_pattern_that_backtracks_elsewhere_is_linear_here() -> None:
    label = Label("a", Relation.MATCHES, "(a*)*(a|a)*(.*.*.*.*)*x")
    assert not label.accepts(frozenset({("a", "a" * 10_000)}))


def test_a_control_character_in_a_text_is_refused() -> None:
    assert refusal('x{a="\x1b[2J"} > 1') == "column 5: value must be at most 256 characters and no control characters"


@pytest.mark.parametrize("text", ["\u0663 > 1", "x > \u0663", "x\uff1e1", "x > 1\u00a0", "x\x00 > 1"])
def test_only_ascii_is_syntax(text: str) -> None:
    assert "expected" in refusal(text)


# -- selectors


def endpoint(*pairs: tuple[str, str]) -> Endpoint:
    return frozenset(pairs)


def accepts(selector: str, *pairs: tuple[str, str]) -> bool:
    condition = parse(f"{selector} > 0").condition
    assert isinstance(condition, Comparison)
    return condition.selector.accepts(Series("x", endpoint(*pairs)))


def test_a_pattern_matches_the_whole_value() -> None:
    assert accepts('x{host=~"web"}', ("host", "web"))
    assert not accepts('x{host=~"web"}', ("host", "web1"))
    assert accepts('x{host=~"web|db"}', ("host", "db"))
    assert accepts('x{host!~"web"}', ("host", "web1"))


def test_a_label_that_is_missing_is_the_empty_text() -> None:
    assert accepts('x{host=""}')
    assert accepts('x{host!="a"}')
    assert accepts('x{host=~".*"}')
    assert not accepts('x{host=~".+"}')


def test_an_endpoint_may_be_in_many_groups_of_which_one_suffices() -> None:
    both = (("group", "hansen"), ("group", "web"))
    assert accepts('x{group="web"}', *both)
    assert accepts('x{group=~"h.*"}', *both)
    assert not accepts('x{group!="web"}', *both)
    assert not accepts('x{group!~"h.*"}', *both)


def test_another_metric_is_another_series() -> None:
    assert not accepts("y")


# -- JSON and msgpack


def test_the_tree_in_json_is_short_and_has_a_version() -> None:
    text = Subscription.parse("all(mean(temperature{group='hansen'}[15])) > 75 for 2m severity critical").to_json()
    assert json.loads(text) == [
        1,
        [">", ["all", ["mean", ["temperature", ["group", "=", "hansen"]], 15], []], 75.0],
        {"for": "2m", "severity": "critical"},
    ]


@pytest.mark.parametrize(
    "clauses", ["nodata clear", "nodata fire", "severity info", "keep a, b", "expire 3d", "for 90s", "clear <= 4"]
)
def test_every_clause_goes_through_json_and_msgpack(clauses: str) -> None:
    subscription = Subscription.parse(f"x > 5 {clauses}")
    assert str(Subscription.from_json(subscription.to_json())) == f"x > 5 {clauses}"
    assert str(Subscription.from_msgpack(subscription.to_msgpack())) == f"x > 5 {clauses}"


LAST = ["last", ["x"]]
FULL = [">", LAST, 5]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "must be an array, not None"),
        ([1, FULL], "must have 3 to 3 items, not 2"),
        ([2, FULL, None], "0: must be 1, the version, not 2"),
        ([1, FULL, []], "2: must be a table of clear, expire, for, keep, nodata, severity"),
        ([1, FULL, {"colour": 1}], "2: must be a table of clear, expire, for, keep, nodata, severity"),
        ([1, FULL, {"for": 5}], "2.for: must be a duration such as 30s or 2m, not 5"),
        ([1, FULL, {"nodata": "no"}], "2.nodata: 'no' is not a valid NoData"),
        ([1, FULL, {"keep": ["a", 1]}], "2.keep: keep must be a tuple of the right values, not ('a', 1)"),
        ([1, ["absent", ["x"], "1m"], {"clear": [">", 1]}], "2.clear: clear needs a condition that is one comparison"),
    ],
)
def test_data_that_say_no_subscription_are_refused_with_the_place(data: object, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        Subscription.from_json(json.dumps(data))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (["~", LAST, 5], "1.0: must be one of > >= < <= == !=, not '~'"),
        ([">", LAST, "5"], "1: threshold must be a finite number, not '5'"),
        ([">", LAST, float("nan")], "1: threshold must be a finite number, not nan"),
        ([">", LAST, 10**400], "1: threshold must be a finite number, not inf"),
        ([">", LAST, True], "1: threshold must be a finite number, not True"),
        ([">", ["last", ["or"]], 5], "1.1.1: metric must be a name, not 'or'"),
        ([">", ["last", ["x", ["a", "=~", "("]]], 5], "1.1.1.1: not a pattern that RE2 accepts: missing ): ("),
        ([">", ["mean", ["x"], "soon"], 5], "1.1.2: must be a duration such as 30s or 2m, not 'soon'"),
        ([">", ["mean", ["x"], None], 5], "1.1.2: must be an array, not None"),
        ([">", ["mean", ["x"], True], 5], "1.1.2: must be a duration such as 30s or 2m, not True"),
        (
            [">", ["quantile", ["x"], 5, "1"], 5],
            "1.1: a quantile is from 0 to 1 with at most six decimals, not '1'",
        ),
        ([">", ["atleast", LAST, [], 1.5], 5], "1.1: atleast needs a whole number from 1 to 1000000, not 1.5"),
        (
            [">", ["max", ["max", LAST, []], []], 5],
            "1.1.1: only two functions can be nested, the inner one of a window",
        ),
        (["and", FULL], "1: conditions must be a tuple of at least two conditions"),
    ],
)
def test_data_that_say_no_condition_are_refused_with_the_place(condition: object, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        Subscription.from_json(json.dumps([1, condition, {}]))
    assert str(caught.value) == message


@pytest.mark.parametrize("depth", [33, 900])
def test_nesting_in_data_is_bounded_before_python_is(depth: int) -> None:
    data = '["not",' * depth + '[">",["last",["x"]],5]' + "]" * depth
    with pytest.raises(Invalid) as caught:
        Subscription.from_json(f"[1,{data},{{}}]")
    assert str(caught.value) == f"{'.'.join('1' * 34)}: conditions may be nested at most 32 deep"


@pytest.mark.parametrize("text", ["", "[" * 8000, "[1,", "nul", '{"a":1}', "1" * 10_000, "[" + "1," * 8000 + "1]"])
def test_what_is_no_json_of_ours_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        Subscription.from_json(text)


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x91" * 5000, pack({"a": 1}), pack([b"1", 2, 3]), pack([1, {1: 2}, {}])]
)
def test_what_is_no_msgpack_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        Subscription.from_msgpack(data)


def test_data_that_are_too_large_are_not_looked_at() -> None:
    for read in (Subscription.from_json, Subscription.from_msgpack):
        with pytest.raises(Invalid, match="must be at most 16384 bytes, not 16385"):
            read(b" " * 16_385)


# -- one form for equal rules


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x{a='1', b='2'} > 1", "x{b='2', a='1', a='1'} > 1"),
        ("x > 1 and y > 2 and z > 3", "(z > 3 and y > 2) and x > 1"),
        ("x > 1 or x > 1", "x > 1"),
        ("not (x > 1 or y < 2)", "x <= 1 and y >= 2"),
        ("not not absent(x[1m])", "absent(x[1m])"),
        ("p50(x[5m]) > 1", "median(x[5m]) > 1"),
        ("quantile(0, x[5m]) > 1", "min(x[5m]) > 1"),
        ("quantile(1, x) > 1", "max(x) > 1"),
        ("max(x[1]) > 1", "x > 1"),
        ("any(x) >= 1", "max(x) >= 1"),
        ("any(x) < 1", "min(x) < 1"),
        ("any(x) > 5 clear <= 4", "max(x) > 5 clear <= 4"),
        ("not any(x) > 1", "max(x) <= 1"),
        ("sum(x) by (b, a) > 1", "sum(x) by (a, b) > 1"),
        ("x > -0", "x > 0"),
        ("mean(x[60s]) > 1", "mean(x[1m]) > 1"),
    ],
)
def test_rules_that_mean_the_same_have_one_canonical_form(one: str, other: str) -> None:
    assert Subscription.parse(one).canonical() == Subscription.parse(other).canonical()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("all(x) > 1", "min(x) > 1"),  # all has a quorum
        ("atleast(1, x) > 1", "any(x) > 1"),
        ("not all(x) > 1", "any(x) <= 1"),
        ("mean(x[1]) > 1", "x > 1"),  # mean leaves infinities out
        ("x > 1", "x >= 1"),
        ("x > 1", "x > 1 for 1s"),
        ("x{a='b'} > 1", "x{a!='b'} > 1"),
    ],
)
def test_rules_that_differ_in_one_case_stay_apart(one: str, other: str) -> None:
    assert Subscription.parse(one).canonical() != Subscription.parse(other).canonical()


def test_what_becomes_of_an_alert_does_not_keep_rules_apart() -> None:
    one = Subscription.parse("x > 1 severity info keep a").canonical()
    assert one.rule == Subscription.parse("x > 1 expire 3d").canonical().rule
    assert one.handling.severity is Severity.INFO
