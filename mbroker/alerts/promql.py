"""Conditions of Prometheus in the subscription language, where both mean the same or the difference can be told.

What a PromQL expression says is judged by the parse tree of promql-parser. Differences that every rule has (it is
evaluated at each sample instead of once an interval, silence is three intervals instead of five minutes) stand in the
documentation; those of one expression are its :attr:`Translation.notes`.
"""

from __future__ import annotations

import math
import re
from typing import Any

import attrs
import promql_parser as promql

from .promql_values import (
    COMPARISONS,
    FLIPPED,
    Renaming,
    Unsupported,
    Values,
    bare,
    check_depth,
    constant_of,
    is_condition,
    span_of,
)
from .terms import Function, Operator, Span
from .tree import Absent, And, Comparison, Condition, Not, Or, Spatial, leaves

__all__ = ["Translation", "translate"]

_LONGEST = 4096  # characters
_MOST = 256  # brackets and operators; what the parser needs grows with the square of how deep they nest
_PART = re.compile(
    r"""(?x) "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | `[^`]*` | ([-+*/%^(<>] | [=!]= | \b(?:and|or|unless)\b)"""
)
_LOOKBACK = Span(300_000)  # how long Prometheus takes a sample for the present value


@attrs.frozen
class Translation:
    """What a PromQL expression says."""

    conditions: tuple[Condition, ...]
    """One each for the subscriptions that together say the same; more than one only of ``or``."""
    notes: tuple[str, ...]
    """How they differ from the original, each in one line."""


_NONE_LEFT = "a count is 0 here when every series is silent, and has no value in Prometheus"
_QUORUM = "atleast waits here until each series of the group is known"
_EACH_ABSENT = "absent is told here of each series that falls silent; by Prometheus when none is left, or ever was"


def translate(text: str, renaming: Renaming) -> Translation:
    """Return what the PromQL expression *text* says; raise :exc:`Unsupported`."""
    if len(text) > _LONGEST:
        raise Unsupported(f"it has more than {_LONGEST} characters")
    if sum(part[1] is not None for part in _PART.finditer(text)) > _MOST:
        raise Unsupported(f"it has more than {_MOST} brackets and operators")
    try:
        tree = promql.parse(text)
    except ValueError as error:
        raise Unsupported(f"it is no PromQL: {' '.join(str(error).split()):.200}") from None
    translator = _Conditions(renaming)
    try:
        conditions = tuple(translator.condition(part) for part in _alternatives(tree))
        if len(conditions) > 1 and _one_series(*conditions):
            conditions = (Or(conditions),)
    except Unsupported:
        raise
    except (ValueError, OverflowError) as error:  # what the language itself refuses
        raise Unsupported(str(error)) from None
    if len(conditions) > 1:
        translator.note(f"or became {len(conditions)} subscriptions, which are told apart")
    return Translation(conditions, tuple(translator.notes))


def _alternatives(tree: Any) -> list[Any]:
    """Return the operands of the ``or`` at the top; there is one if there is none."""
    found, waiting = list[Any](), [tree]
    while waiting:
        part = bare(waiting.pop())
        if isinstance(part, promql.BinaryExpr) and str(part.op) == "or" and _matching(part) is None:
            waiting += [part.rhs, part.lhs]
        else:
            found.append(part)
    return found


def _matching(tree: promql.BinaryExpr) -> promql.LabelModifier | None:
    return tree.modifier.matching if tree.modifier else None


def _one_series(*conditions: Condition) -> bool:
    """Whether they are about the same series, so that each is known where the others are, and alike grouped."""
    found = [leaf for condition in conditions for leaf in leaves(condition)]
    return (
        all(isinstance(leaf, Comparison) for leaf in found)
        and len({leaf.selector for leaf in found}) == 1
        and len({_grouping(condition) for condition in conditions}) == 1
    )


def _grouping(condition: Condition) -> frozenset[str] | None:
    """Return the labels that alerts of *condition* are told apart by; None when these are all of the endpoint's."""
    longest: tuple[str, ...] = ()
    for leaf in leaves(condition):
        if leaf.by is None:
            return None
        longest = max(longest, leaf.by, key=len)
    return frozenset(longest)


class _Conditions:
    def __init__(self, renaming: Renaming) -> None:
        self._values = Values(renaming)
        self.note, self.notes = self._values.note, self._values.notes

    def condition(self, tree: Any, depth: int = 0) -> Condition:
        tree = bare(tree)
        check_depth(depth)
        if isinstance(tree, promql.Call) and tree.func.name in ("absent", "absent_over_time"):
            if depth:
                raise Unsupported("absent stands for itself here; give it a rule of its own")
            return self._absent(tree)
        if isinstance(tree, promql.BinaryExpr):
            word = str(tree.op)
            if word in ("and", "or", "unless"):
                return self._joined(word, tree, depth)
            if word in COMPARISONS:
                return self._compared(COMPARISONS[word], tree, depth)
        raise Unsupported("it fires whatever its value is; compare it with a number")

    def _joined(self, word: str, tree: promql.BinaryExpr, depth: int) -> Condition:
        left, right = self.condition(tree.lhs, depth + 1), self.condition(tree.rhs, depth + 1)
        matching = _matching(tree)
        if word == "and":
            if matching is not None:
                return And((left, self._matched(left, right, matching)))
            if _grouping(left) != _grouping(right):
                raise Unsupported("and joins what has different labels, which never match; say which: and on (label)")
            return And((left, right))
        if matching is not None or not _one_series(left, right):
            hint = "write two rules" if word == "or" else "where there is no such other series it would never fire here"
            raise Unsupported(f"{word} joins only conditions on one and the same series: {hint}")
        return Or((left, right)) if word == "or" else And((left, Not(right)))

    def _matched(self, left: Condition, right: Condition, matching: promql.LabelModifier) -> Condition:
        """Return *right* such that it holds for the labels that *matching* names."""
        if matching.type != promql.LabelModifierType.Include:
            raise Unsupported("ignoring names labels that do not matter; name those that do: and on (label)")
        by = self._values.labels(matching.labels)
        groups = _grouping(left)
        if groups is not None and not groups >= set(by):
            raise Unsupported("on names labels that the left side does not have any more")
        if isinstance(right, Comparison) and not isinstance(right.expression, Spatial):
            return Comparison(Spatial(Function.ANY, right.expression, by), right.operator, right.threshold)
        if _grouping(right) != frozenset(by):
            raise Unsupported("on must name the labels that the right side is grouped by")
        return right

    def _compared(self, sign: Operator, tree: promql.BinaryExpr, depth: int) -> Condition:
        if tree.modifier and tree.modifier.return_bool:
            raise Unsupported("bool makes a value of every series, so that it always fires; leave it out")
        left, right = constant_of(tree.lhs), constant_of(tree.rhs)
        if (left is None) == (right is None):
            raise Unsupported("it compares two series; a threshold is a number")
        side, threshold = (tree.lhs, right) if left is None else (tree.rhs, left)
        assert threshold is not None
        if left is not None:
            sign = FLIPPED.get(sign, sign)
        if not math.isfinite(threshold):
            raise Unsupported("its threshold is not a finite number")
        side = bare(side)
        if isinstance(side, promql.Call) and side.func.name in ("absent", "absent_over_time") and not depth:
            if not sign.holds(1, threshold):
                raise Unsupported("absent is 1, for which this never holds")
            return self._absent(side)
        if isinstance(side, promql.AggregateExpr) and str(side.op) == "count" and is_condition(side.expr):
            return self._at_least(sign, threshold, side, depth)
        value = self._values.value(side, depth + 1)
        function = value.expression.function if isinstance(value.expression, Spatial) else None
        if function is Function.COUNT and sign.holds(0, threshold):
            self.note(_NONE_LEFT)
        return value.compared(sign, threshold)

    def _at_least(self, sign: Operator, threshold: float, tree: promql.AggregateExpr, depth: int) -> Comparison:
        """Return ``count(x > 5) >= 3`` as ``atleast(3, x) > 5``."""
        inner = self.condition(tree.expr, depth + 1)
        if not isinstance(inner, Comparison) or isinstance(inner.expression, Spatial):
            raise Unsupported("count counts series that one comparison holds for, or all of them")
        if not sign.wants_more or inner.operator in (Operator.EQUAL, Operator.UNEQUAL):
            raise Unsupported("count of a comparison needs > or >= outside, and > >= < or <= inside")
        least = math.floor(threshold) + 1 if sign is Operator.ABOVE else math.ceil(threshold)
        self.note(_QUORUM)
        group = Spatial(Function.ATLEAST, inner.expression, self._values.by(tree), least)
        return Comparison(group, inner.operator, inner.threshold)

    def _absent(self, tree: promql.Call) -> Absent:
        self.note(_EACH_ABSENT)
        argument = bare(tree.args[0])
        if isinstance(argument, promql.MatrixSelector):
            return Absent(self._values.selector(argument.vector_selector), span_of(argument))
        if isinstance(argument, promql.VectorSelector):
            return Absent(self._values.selector(argument), _LOOKBACK)
        raise Unsupported("absent is about series, not about what is computed of them")
