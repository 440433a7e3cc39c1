"""Values of PromQL as expressions of the subscription language: selectors, functions, aggregations, and constants."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import attrs
import promql_parser as promql

from .selector import Label, Relation, Selector
from .terms import Count, Function, Operator, Span
from .tree import Comparison, Instant, Spatial, Temporal

__all__ = [
    "COMPARISONS",
    "FLIPPED",
    "Linear",
    "Renaming",
    "Unsupported",
    "Values",
    "bare",
    "check_depth",
    "constant_of",
    "is_condition",
    "span_of",
]

_DEEPEST = 64


class Unsupported(ValueError):
    """An expression has no counterpart; the message is one line that says what of it, and what to write instead."""


@attrs.frozen
class Renaming:
    """Labels that Prometheus itself adds when it scrapes, and what publishers of metrics say in their place."""

    names: Mapping[str, str] = attrs.field(factory=lambda: {"instance": "host"})
    left_out: frozenset[str] = frozenset({"job"})


FLIPPED = {
    Operator.ABOVE: Operator.BELOW,
    Operator.AT_LEAST: Operator.AT_MOST,
    Operator.BELOW: Operator.ABOVE,
    Operator.AT_MOST: Operator.AT_LEAST,
}
COMPARISONS = {each.value: each for each in Operator}
_TEMPORAL = {
    "avg_over_time": Function.MEAN,
    "min_over_time": Function.MIN,
    "max_over_time": Function.MAX,
    "sum_over_time": Function.SUM,
    "count_over_time": Function.COUNT,
    "stddev_over_time": Function.STDDEV,
    "stdvar_over_time": Function.VARIANCE,
    "quantile_over_time": Function.QUANTILE,
    "rate": Function.RATE,
    "increase": Function.RATE,
    "irate": Function.RATE,
    "delta": Function.DELTA,
    "idelta": Function.DELTA,
}
_SPATIAL = {
    "sum": Function.SUM,
    "avg": Function.MEAN,
    "min": Function.MIN,
    "max": Function.MAX,
    "count": Function.COUNT,
    "stddev": Function.STDDEV,
    "stdvar": Function.VARIANCE,
    "quantile": Function.QUANTILE,
}
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda left, right: left / right,
    "^": math.pow,
}

_INTERPOLATED = "quantiles are of the nearest rank here; Prometheus interpolates between two"
_SAMPLE = "variance and stddev divide by n - 1 here; Prometheus divides by n"
_EXTRAPOLATED = "{} is not extrapolated here to the edges of the window; the same once samples fill it"
_SHORTER = "delta is last minus first here; Prometheus extrapolates it to the window, by about one interval"
_MOVED = "constants moved to the threshold, which may round otherwise in the last digit"
_SAMPLED = "{} depends on how often a series is sampled, which is up to its publisher here"
_LAST_TWO = "{} looks at the last two samples here however old; Prometheus only within the window"
_NEWEST = "last_over_time is the newest sample here until it is silent for three intervals"
_RATED = "increase is compared as a rate per second here, with its threshold divided by {:g}"


@attrs.frozen
class Linear:
    """``scale * expression + offset``."""

    expression: Instant | Temporal | Spatial
    scale: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)

    def compared(self, sign: Operator, threshold: float) -> Comparison:
        """Return the comparison of the expression itself."""
        moved = (Fraction(threshold) - self.offset) / self.scale
        return Comparison(self.expression, FLIPPED.get(sign, sign) if self.scale < 0 else sign, float(moved))


def check_depth(depth: int) -> None:
    """Refuse what is nested too deep."""
    if depth > _DEEPEST:
        raise Unsupported(f"it is nested more than {_DEEPEST} deep")


def bare(tree: Any, depth: int = 0) -> Any:
    """Return *tree* without the parentheses around it."""
    while isinstance(tree, promql.ParenExpr):
        tree, depth = tree.expr, depth + 1
        check_depth(depth)
    return tree


def constant_of(tree: Any, depth: int = 0) -> float | None:
    """Return the number that *tree* is; None if it is about series."""
    tree = bare(tree)
    check_depth(depth)
    match tree:
        case promql.NumberLiteral():
            return tree.val
        case promql.UnaryExpr():
            inner = constant_of(tree.expr, depth + 1)
            return None if inner is None else -inner
        case promql.BinaryExpr() if str(tree.op) in _ARITHMETIC:
            left, right = constant_of(tree.lhs, depth + 1), constant_of(tree.rhs, depth + 1)
            if left is None or right is None:
                return None
            try:
                return _ARITHMETIC[str(tree.op)](left, right)
            except (ArithmeticError, ValueError):
                raise Unsupported("its constants make no finite number") from None
        case _:
            return None


def is_condition(tree: object) -> bool:
    """Whether *tree* is a comparison or a combination of such."""
    tree = bare(tree)
    return isinstance(tree, promql.BinaryExpr) and str(tree.op) in {*COMPARISONS, "and", "or", "unless"}


_RELATIONS = {
    str(promql.MatchOp.Equal): Relation.IS,
    str(promql.MatchOp.NotEqual): Relation.IS_NOT,
    str(promql.MatchOp.Re): Relation.MATCHES,
    str(promql.MatchOp.NotRe): Relation.MATCHES_NOT,
}


def span_of(tree: promql.MatrixSelector) -> Span:
    """Return the length of a window."""
    return Span(round(tree.range.total_seconds() * 1000))


class Values:
    """Translates values, and collects how they differ."""

    def __init__(self, renaming: Renaming) -> None:
        """Call labels as *renaming* says."""
        self._renaming = renaming
        self.notes: dict[str, None] = {}

    def note(self, text: str) -> None:
        """Say, once, how what was translated differs from the original."""
        self.notes[text] = None

    def value(self, tree: Any, depth: int) -> Linear:
        """Return what is compared with a threshold; raise :exc:`Unsupported`."""
        tree = bare(tree)
        check_depth(depth)
        match tree:
            case promql.VectorSelector():
                return Linear(Instant(self.selector(tree)))
            case promql.Call():
                return self._call(tree)
            case promql.AggregateExpr():
                return self._aggregate(tree, depth)
            case promql.UnaryExpr():
                inner = self.value(tree.expr, depth + 1)
                return attrs.evolve(inner, scale=-inner.scale, offset=-inner.offset)
            case promql.BinaryExpr():
                return self._arithmetic(tree, depth)
            case promql.SubqueryExpr():
                raise Unsupported("subqueries have no counterpart")
            case _:
                raise Unsupported(f"{type(tree).__name__} has no counterpart")

    def _arithmetic(self, tree: promql.BinaryExpr, depth: int) -> Linear:
        word, left, right = str(tree.op), constant_of(tree.lhs), constant_of(tree.rhs)
        if word in COMPARISONS or word in ("and", "or", "unless"):
            raise Unsupported("a comparison inside of a value only picks series; write it with and")
        constant = right if left is None else left
        if constant is None:
            for side in (tree.lhs, tree.rhs):
                self._check_clock(bare(side))
            raise Unsupported(f"arithmetic between series ({word}) has no counterpart; publish the result as a metric")
        if word not in ("+", "-", "*", "/") or (word == "/" and left is not None) or not math.isfinite(constant):
            raise Unsupported(f"only + - * / with a finite number can be moved to the threshold, not {word}")
        number = Fraction(constant)
        if number == 0 and word in ("*", "/"):
            raise Unsupported("a multiple of 0 says nothing of the series")
        self.note(_MOVED)
        value = self.value(tree.rhs if left is not None else tree.lhs, depth + 1)
        match word:
            case "+":
                return attrs.evolve(value, offset=value.offset + number)
            case "-" if left is None:
                return attrs.evolve(value, offset=value.offset - number)
            case "-":
                return attrs.evolve(value, scale=-value.scale, offset=number - value.offset)
            case "*":
                return attrs.evolve(value, scale=value.scale * number, offset=value.offset * number)
            case _:
                return attrs.evolve(value, scale=value.scale / number, offset=value.offset / number)

    def _call(self, tree: promql.Call) -> Linear:
        self._check_clock(tree)
        name = tree.func.name
        window = bare(tree.args[-1]) if tree.args else None
        if isinstance(window, promql.SubqueryExpr):
            raise Unsupported("subqueries have no counterpart")
        if not isinstance(window, promql.MatrixSelector) or name not in {*_TEMPORAL, "last_over_time"}:
            raise Unsupported(f"the function {name} has no counterpart")
        selector, span = self.selector(window.vector_selector), span_of(window)
        if name == "last_over_time":
            self.note(_NEWEST)
            return Linear(Instant(selector))
        function = _TEMPORAL[name]
        if name in ("irate", "idelta"):
            self.note(_LAST_TWO.format(name))
            return Linear(Temporal(function, selector, Count(2)))
        quantile = None
        if function is Function.QUANTILE:
            quantile = constant_of(tree.args[0])
        self._note_differences(function)
        if name in ("rate", "increase"):
            self.note(_EXTRAPOLATED.format(name))
        if name == "increase":
            self.note(_RATED.format(span.milliseconds / 1000))
        if name in ("sum_over_time", "count_over_time"):
            self.note(_SAMPLED.format(name))
        if name == "delta":
            self.note(_SHORTER)
        scale = Fraction(span.milliseconds, 1000) if name == "increase" else Fraction(1)
        return Linear(Temporal(function, selector, span, quantile), scale)

    def _check_clock(self, tree: Any) -> None:
        if isinstance(tree, promql.Call) and tree.func.name in ("time", "timestamp"):
            raise Unsupported("the time itself is no metric; absent tells of samples that stopped coming")

    def _aggregate(self, tree: promql.AggregateExpr, depth: int) -> Linear:
        word = str(tree.op)
        if word not in _SPATIAL:
            raise Unsupported(f"the aggregation {word} has no counterpart")
        function, by = _SPATIAL[word], self.by(tree)
        if is_condition(tree.expr):
            raise Unsupported(f"{word} of a comparison has no counterpart; only count has: atleast")
        member = self.value(tree.expr, depth + 1)
        if isinstance(member.expression, Spatial):
            raise Unsupported("an aggregation of an aggregation has no counterpart")
        if member.offset or member.scale < 0:
            raise Unsupported(f"only multiples of series can be aggregated; move other constants out of {word}")
        self._note_differences(function)
        quantile = constant_of(tree.param) if function is Function.QUANTILE else None
        scale = {Function.COUNT: Fraction(1), Function.VARIANCE: member.scale**2}.get(function, member.scale)
        return Linear(Spatial(function, member.expression, by, quantile=quantile), scale)

    def _note_differences(self, function: Function) -> None:
        if function is Function.QUANTILE:
            self.note(_INTERPOLATED)
        if function in (Function.STDDEV, Function.VARIANCE):
            self.note(_SAMPLE)

    # -- selectors

    def by(self, tree: promql.AggregateExpr) -> tuple[str, ...]:
        """Return the labels that an aggregation keeps."""
        if tree.modifier is None:
            return ()
        if tree.modifier.type != promql.AggModifierType.By:
            raise Unsupported("without names labels that go; name those that stay: by (label)")
        return self.labels(tree.modifier.labels)

    def labels(self, names: list[str]) -> tuple[str, ...]:
        """Return the labels *names* as they are called here."""
        for name in names:
            if name in self._renaming.left_out:
                self.note(f"{name} is left out, which publishers do not say: what differs in it alone is one group")
        return tuple(dict.fromkeys(self._label(name) for name in names if name not in self._renaming.left_out))

    def _label(self, name: str) -> str:
        if name not in self._renaming.names:
            return name
        self.note(f"{name} is called {self._renaming.names[name]} here, and its values have no port")
        return self._renaming.names[name]

    def selector(self, tree: promql.VectorSelector) -> Selector:
        """Return the series that are meant."""
        if tree.offset is not None or tree.at is not None:
            raise Unsupported("offset and @ look into the past; subscriptions are about the present")
        if tree.matchers.or_matchers:
            raise Unsupported("or between labels has no counterpart; use a pattern, or two rules")
        metric, labels = tree.name, list[Label]()
        for matcher in tree.matchers.matchers:
            relation = _RELATIONS[str(matcher.op)]
            if matcher.name == "__name__":
                if relation is not Relation.IS:
                    raise Unsupported("the metric must be named; it cannot be a pattern")
                metric = matcher.value
            elif matcher.name in self._renaming.left_out:
                self.note(f"{matcher.name} is left out, which publishers do not say: every series is meant")
            else:
                labels.append(Label(self._label(matcher.name), relation, matcher.value))
        if metric is None:
            raise Unsupported("the metric must be named")
        return Selector(metric, tuple(labels))
