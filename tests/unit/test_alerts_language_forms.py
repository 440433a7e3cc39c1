"""The language in all its forms is one tree, and its parser agrees with a grammar written apart from it."""

from __future__ import annotations

import contextlib
import json
import random
import re
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.lark import from_lark
from lark import Lark
from lark.exceptions import UnexpectedInput

from mbroker.alerts import Subscription, SubscriptionError
from mbroker.values import Invalid
from tests.unit.subscriptions import subscriptions

GRAMMAR: Any = Lark(Path(__file__).with_name("subscription.lark").read_text(), parser="lalr")

# What the parser refuses although the form is right; all else that it refuses, the grammar must refuse.
_BEYOND_FORM = re.compile(
    r".*?column \d+: ("
    r"\S+ must be (a name|a whole number|at most 256|0 to|1 to)|keep must have|by must have|labels must be|keep must be"
    r"|'\w+' was said before|clear needs|clear .* is also true|not a pattern|a (window|duration) may last|a quantile is"
    r"|atleast needs|\w+ needs > >= <|\w+ needs a window of at least 2|.* is beyond the range"
    r"|by \(.*\) (and by|does not go)|conditions may be nested|a condition may have|a subscription has"
    r")"
)

WORDS = """
    load up{a='1'} mean( max( all( rate( atleast( quantile( ewma( p95( absent( ( ) [15] [5m] [ ] , 3 0.5 -1e3 10s
    > >= < <= == != and or not by (rack) clear for severity critical keep nodata fire expire "x" { } = =~ % \\ 2m30s
""".split()  # noqa: SIM905


def refusal(text: str) -> SubscriptionError | None:
    try:
        Subscription.parse(text)
    except SubscriptionError as error:
        return error
    return None


def is_wellformed(text: str) -> bool:
    try:
        GRAMMAR.parse(text)
    except UnexpectedInput:
        return False
    return True


def agree(text: str) -> bool:
    """Check that both accept *text* or neither does, and return whether they do."""
    refused = refusal(text)
    if is_wellformed(text):
        assert not refused or _BEYOND_FORM.match(str(refused)), f"{text!r} is well formed, but {refused}"
    else:
        assert refused, f"{text!r} was accepted"
    return not refused


@given(subscriptions)
@settings(max_examples=60, deadline=None)
def test_what_is_printed_is_read_back_as_the_same_tree(subscription: Subscription) -> None:
    assert Subscription.parse(str(subscription)) == subscription


@given(subscriptions)
@settings(max_examples=100, deadline=None)
def test_json_and_msgpack_hold_the_same_tree(subscription: Subscription) -> None:
    assert Subscription.from_json(subscription.to_json()) == subscription
    assert Subscription.from_msgpack(subscription.to_msgpack()) == subscription


@given(subscriptions)
@settings(max_examples=100, deadline=None)
def test_a_canonical_form_is_its_own(subscription: Subscription) -> None:
    once = subscription.canonical()
    assert once.canonical() == once
    assert Subscription.parse(str(once)) == once


@given(subscriptions)
@settings(max_examples=40, deadline=None)
def test_every_printed_subscription_is_in_the_grammar(subscription: Subscription) -> None:
    assert agree(str(subscription))


@given(from_lark(GRAMMAR))
@settings(
    max_examples=60, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)  # the grammar filters
def test_sentences_of_the_grammar_are_parsed(text: str) -> None:
    agree(text)


@given(subscriptions, st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_the_parser_and_the_grammar_agree_on_mutated_sentences(subscription: Subscription, seed: int) -> None:
    dice = random.Random(seed)
    tokens = re.findall(r"\s+|[\w.]+|.", str(subscription))
    for _ in range(dice.randint(1, 3)):
        place = dice.randrange(len(tokens))
        tokens[place : place + dice.randint(0, 2)] = [dice.choice(["", " ", dice.choice(tokens), dice.choice(WORDS)])]
        tokens = tokens or [""]
    agree("".join(tokens))


@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join))
@settings(max_examples=100, deadline=None)
@example("order > 1 order > 2")
@example("x>1or y>2")
@example("x > 1 for2m")
@example("mean (x [ 5 ]) > 1")
@example("not(x > 1)")
@example("count > 1 and count(x) > 1")
def test_the_parser_and_the_grammar_agree_on_heaps_of_words(text: str) -> None:
    agree(text)


@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=30).map("".join))
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_subscription_or_an_error_within_it(text: str) -> None:
    error = refusal(text)
    if error:
        lines = text.split("\n")
        assert 1 <= error.line <= len(lines)
        assert 1 <= error.column <= len(lines[error.line - 1]) + 1
        assert "\n" not in str(error)


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["last", "mean", "all", "and", "not", "absent", ">", "x", "5m", "quantile", "atleast", "=~"])
)
_TABLES = st.sampled_from(["for", "clear", "keep"])
_DATA = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TABLES, inner, max_size=2), max_leaves=12
)


@given(_DATA)
@settings(max_examples=100, deadline=None)
def test_any_json_is_a_subscription_or_invalid(data: object) -> None:
    shapes: list[Any] = [data, [1, data, {}], [1, [">", data, 5], {}], [1, [">", ["last", ["x"]], 5], data]]
    for shape in shapes:
        with contextlib.suppress(Invalid):
            Subscription.from_json(json.dumps(shape))


@given(st.binary(max_size=80))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_subscription_or_invalid(data: bytes) -> None:
    with contextlib.suppress(Invalid):
        Subscription.from_msgpack(data)
