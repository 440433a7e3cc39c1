"""Subscriptions of all kinds, for properties."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import strategies as st

from mbroker.action import Severity
from mbroker.alerts import Subscription
from mbroker.alerts.selector import WORDS, Label, Relation, Selector
from mbroker.alerts.terms import DAY, PAIRWISE, Count, Function, Operator, Span
from mbroker.alerts.tree import (
    Absent,
    And,
    Comparison,
    Condition,
    Handling,
    Instant,
    NoData,
    Not,
    Or,
    Rule,
    Spatial,
    Temporal,
)

__all__ = ["expressions", "rules", "subscriptions"]

names = st.one_of(
    st.sampled_from(["load", "cpu.user", "count", "p95", "m:sum", "forest"]),
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_.:]{0,8}", fullmatch=True).filter(lambda name: name not in WORDS),
)
texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12)
patterns = st.sampled_from(["web-.*", "a|b", "", r"\d+", "[^x]*", r"\"", "(?i)lab"])
labels = st.one_of(
    st.builds(Label, names, st.sampled_from([Relation.IS, Relation.IS_NOT]), texts),
    st.builds(Label, names, st.sampled_from([Relation.MATCHES, Relation.MATCHES_NOT]), patterns),
)
selectors = st.builds(Selector, names, st.lists(labels, max_size=3).map(tuple))
spans = st.one_of(
    st.builds(Span, st.integers(1, 7 * DAY)),
    st.sampled_from([Span(1000), Span(60_000), Span(3_600_000), Span(DAY)]),
)
windows = st.one_of(st.builds(Count, st.integers(2, 86_400)), spans)
thresholds = st.floats(allow_nan=False, allow_infinity=False)
quantiles = st.integers(0, 1_000_000).map(lambda millionths: millionths / 1_000_000)

TEMPORAL = [f for f in Function if f.is_temporal and f not in (Function.EWMA, Function.QUANTILE)]
SPATIAL = [f for f in Function if f.is_spatial and f not in (Function.ATLEAST, Function.QUANTILE)]

temporals = st.one_of(
    st.builds(Temporal, st.sampled_from(TEMPORAL), selectors, windows),
    st.builds(Temporal, st.sampled_from([f for f in TEMPORAL if f not in PAIRWISE]), selectors, st.just(Count(1))),
    st.builds(Temporal, st.just(Function.EWMA), selectors, spans),
    st.builds(Temporal, st.just(Function.QUANTILE), selectors, windows, quantiles),
)
members = st.one_of(st.builds(Instant, selectors), temporals)


def spatials(by: tuple[str, ...]) -> st.SearchStrategy[Spatial]:
    return st.one_of(
        st.builds(Spatial, st.sampled_from(SPATIAL), members, st.just(by)),
        st.builds(Spatial, st.just(Function.ATLEAST), members, st.just(by), st.integers(1, 1_000_000)),
        st.builds(Spatial, st.just(Function.QUANTILE), members, st.just(by), st.none(), quantiles),
    )


def expressions(by: tuple[str, ...]) -> st.SearchStrategy[Any]:
    return st.one_of(members, spatials(by))


def _comparable(parts: tuple[Any, Operator, float]) -> bool:
    expression, operator, _ = parts
    quantified = isinstance(expression, Spatial) and expression.function.is_quantifier
    return not (quantified and operator in (Operator.EQUAL, Operator.UNEQUAL))


def comparisons(by: tuple[str, ...]) -> st.SearchStrategy[Comparison]:
    parts = st.tuples(expressions(by), st.sampled_from(Operator), thresholds)
    return parts.filter(_comparable).map(lambda made: Comparison(*made))


def conditions(by: tuple[str, ...]) -> st.SearchStrategy[Condition]:
    def combined(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
        several = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return st.one_of(st.builds(Not, inner), st.builds(And, several), st.builds(Or, several))

    return st.recursive(st.one_of(comparisons(by), st.builds(Absent, selectors, spans)), combined, max_leaves=5)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Rules whose spatial parts have the same ``by``, and of which some have hysteresis."""
    by = tuple(draw(st.lists(names.filter(lambda name: name != "group"), max_size=2, unique=True)))
    rule = Rule(draw(conditions(by)), None, draw(st.none() | spans), draw(st.sampled_from(NoData)))
    condition = rule.condition
    if isinstance(condition, Comparison) and draw(st.booleans()):
        return attrs.evolve(rule, clear=attrs.evolve(condition, operator=condition.operator.negated))
    return rule


handlings = st.builds(Handling, st.sampled_from(Severity), st.lists(names, max_size=3, unique=True).map(tuple), spans)
subscriptions = st.builds(Subscription, rules(), handlings)
