"""From the tree of a rule to what the matcher knows: comparisons of streams, and a program that combines them."""

from __future__ import annotations

from .kernel import ABSENT, NOTHING, Compare, Made, NoDataCode, Step, Term, View
from .terms import Count, Function, Operator
from .tree import Absent, And, Comparison, Condition, Expression, Instant, NoData, Not, Or, Rule, Spatial, Temporal

__all__ = ["COMPARE", "NODATA", "direction", "member", "program", "reduced", "term"]

COMPARE = {
    Operator.ABOVE: Compare.ABOVE,
    Operator.AT_LEAST: Compare.AT_LEAST,
    Operator.BELOW: Compare.BELOW,
    Operator.AT_MOST: Compare.AT_MOST,
    Operator.EQUAL: Compare.EQUAL,
    Operator.UNEQUAL: Compare.UNEQUAL,
}
NODATA = {NoData.KEEP: NoDataCode.KEEP, NoData.CLEAR: NoDataCode.CLEAR, NoData.FIRE: NoDataCode.FIRE}

_MADE = {
    Function.MEAN: Made.MEAN,
    Function.SUM: Made.SUM,
    Function.VARIANCE: Made.VARIANCE,
    Function.STDDEV: Made.STDDEV,
    Function.COUNT: Made.COUNT,
    Function.RATE: Made.RATE,
    Function.DELTA: Made.DELTA,
    Function.EWMA: Made.EWMA,
}


def _made(function: Function, quantile: float | None) -> tuple[Made, int]:
    """Return what is made of many values, and which rank that takes."""
    match function:
        case Function.MIN:
            return Made.SMALLEST, 1
        case Function.MAX:
            return Made.LARGEST, 1
        case Function.MEDIAN:
            return Made.QUANTILE, 500_000
        case Function.QUANTILE:
            assert quantile is not None
            return Made.QUANTILE, round(quantile * 1_000_000)
        case _:
            return _MADE[function], 0


def member(expression: Expression) -> View:
    """Return what each single series contributes to *expression*."""
    match expression:
        case Instant():
            return View(Made.LAST)
        case Temporal(function, _, window, quantile):
            made, rank = _made(function, quantile)
            if isinstance(window, Count):
                return View(made, samples=window.count, rank=rank)
            return View(made, span=window.milliseconds, rank=rank)
        case Spatial(_, inner):
            return member(inner)


def reduced(expression: Spatial, above: bool) -> tuple[View, bool]:
    """Return what is made of the members, and whether all must be present.

    ``all``, ``any`` and ``atleast`` are order statistics. *above*: the comparison asks for large values.
    """
    least, greatest = (Made.SMALLEST, Made.LARGEST) if above else (Made.LARGEST, Made.SMALLEST)
    match expression.function:
        case Function.ALL:
            return View(least, rank=1), True
        case Function.ANY:
            return View(greatest, rank=1), False
        case Function.ATLEAST:
            assert expression.least is not None
            return View(greatest, rank=expression.least), True
        case function:
            made, rank = _made(function, expression.quantile)
            return View(made, rank=rank), False


def direction(rule: Rule, comparison: Comparison) -> bool:
    """Whether large values satisfy *comparison*; of a ``clear`` it is the condition that says so."""
    condition = rule.condition if isinstance(rule.condition, Comparison) else comparison
    return condition.operator in (Operator.ABOVE, Operator.AT_LEAST)


def term(rule: Rule, leaf: Comparison | Absent) -> Term:
    """Return *leaf* as the matcher knows it, of no source yet."""
    if isinstance(leaf, Absent):
        return ABSENT(NOTHING, leaf.span.milliseconds)
    compare, threshold = COMPARE[leaf.operator], leaf.threshold
    if isinstance(leaf.expression, Spatial):
        view, quorum = reduced(leaf.expression, direction(rule, leaf))
        return Term(NOTHING, view, compare, threshold, of_group=True, quorum=quorum)
    return Term(NOTHING, member(leaf.expression), compare, threshold)


def program(condition: Condition) -> bytes:
    """Return how the leaves of *condition*, from left to right, are combined; nothing if it is one leaf."""
    if isinstance(condition, Comparison | Absent):
        return b""
    count = 0
    steps = bytearray()

    def walk(part: Condition) -> None:
        nonlocal count
        match part:
            case Comparison() | Absent():
                steps.append(count)
                count += 1
            case Not(inner):
                walk(inner)
                steps.append(Step.NOT)
            case And(parts) | Or(parts):
                for index, each in enumerate(parts):
                    walk(each)
                    if index:
                        steps.append(Step.AND if isinstance(part, And) else Step.OR)

    walk(condition)
    return bytes(steps)
