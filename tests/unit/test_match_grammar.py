"""The engine says what the reference says of all that the grammar can put together, whatever happens to the series."""

from __future__ import annotations

import random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mbroker.alerts.engine import Engine
from mbroker.alerts.language import Subscription, SubscriptionError
from mbroker.alerts.reference import Reference
from mbroker.alerts.terms import Operator
from mbroker.alerts.tree import Rule, leaves
from tests.unit.test_match_engine import START, by_key, stream

metrics = st.sampled_from(["load", "load", "temp", "load{rack='r0'}", "load{host!='h1'}", "temp{host=~'h[12]'}"])
windows = st.sampled_from(["2", "3", "5", "1500ms", "3s", "5s", "40s"])
spans = st.sampled_from(["1s", "2s", "3s", "20s", "35s"])
ordered = ["min", "max", "mean", "median", "stddev", "variance", "sum", "count", "p90"]


def built(form: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return texts of a form with a place for each of the parts."""
    return st.tuples(*parts).map(lambda made: form.format(*made))


temporals = built("{}({}[{}])", st.sampled_from([*ordered, "rate", "delta"]), metrics, windows) | built(
    "ewma({}, {})", spans, metrics
)
members = metrics | temporals
groupings = st.sampled_from(["", "", " by (rack)", " by (host, rack)", " by (site)"])
spatials = built("{}({}){}", st.sampled_from([*ordered, "all", "any", "atleast(2,"]), members, groupings).map(
    lambda text: text.replace("(2,(", "(2, ")
)
absences = built("absent({}[{}])", metrics, spans)


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, Operator, int]:
    return draw(members | spatials), draw(st.sampled_from(Operator)), draw(st.integers(0, 8))


plain = comparisons().map(lambda made: f"{made[0]} {made[1].value} {made[2]}")
conditions = st.recursive(
    plain | plain | absences,
    lambda inner: built("not {}", inner) | built("({} and {})", inner, inner) | built("({} or {})", inner, inner),
    max_leaves=3,
)


@st.composite
def hysteresis(draw: st.DrawFn) -> str:
    expression, operator, threshold = draw(comparisons())
    gap = draw(st.sampled_from([0, 2])) * (1 if operator in (Operator.BELOW, Operator.AT_MOST) else -1)
    bound = threshold if operator in (Operator.EQUAL, Operator.UNEQUAL) else threshold + gap
    return f"{expression} {operator.value} {threshold} clear {operator.negated.value} {bound}"


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Rules of every kind, whose thresholds and times are such that samples of a minute make edges."""
    clauses = [draw(st.just("") | spans.map(" for {}".format))]
    clauses.append(draw(st.sampled_from(["", " nodata clear", " nodata fire"])))
    try:
        return Subscription.parse(draw(conditions | hysteresis()) + "".join(clauses)).rule
    except SubscriptionError:  # == of a quantifier, or groups without an alert in common
        assume(False)
        raise


@settings(max_examples=100, deadline=None)
@given(st.lists(rules(), min_size=1, max_size=3, unique=True), st.integers(0, 1 << 32))
def test_every_edge_of_every_rule_is_that_of_the_reference(texts: list[Rule], seed: int) -> None:
    dice = random.Random(seed)
    # A group remembers the time of a member that is gone, which an alert at one endpoint that comes later begins with.
    forgets = all(len({leaf.by for leaf in leaves(rule.condition)}) == 1 for rule in texts)
    engine = Engine(START, interval=3000)
    references = {engine.add(rule): Reference(rule, START, interval=3000) for rule in texts}
    for now, samples in stream(dice, 25):
        happens = dice.random()
        if happens < 0.1:
            engine = Engine.load(engine.save())
        elif happens < 0.2:
            for series in {sample.series for sample in samples}:
                interval = dice.choice([None, 1000, 5000, 15_000])
                engine.pace(engine.number(series), interval)
                for reference in references.values():
                    reference.register(series)
                    reference.pace(series, interval)
        elif happens < 0.3 and forgets:
            unheard = {number: engine.places.series(number) for number in engine.unheard(now - 2000)}
            gone = [one for number in engine.forget(unheard) if (one := unheard[number]) is not None]
            for reference in references.values():
                reference.forget(*gone)
        edges = engine.batch(now, samples)
        for number, reference in references.items():
            mine = by_key(edge for edge in edges if edge.rule == number)
            assert mine == by_key(reference.batch(now, samples)), (now, samples)
