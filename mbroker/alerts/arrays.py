"""The tree as nested arrays, which are its form in JSON and msgpack: ``[1, condition, {clause: value}]``.

=============  ==============================================================================
condition      ``["or", condition...]  ["and", condition...]  ["not", condition]``
               ``["absent", selector, "10s"]  [">", expression, 75.0]``
expression     ``["last", selector]``
               ``["mean", selector, 15]  ["quantile", selector, "20m", 0.95]  ["ewma", selector, "30s"]``
               ``["all", expression, [label...]]  ["atleast", expression, [label...], 3]``
selector       ``[metric, [label, "=~", text]...]``
=============  ==============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar, cast

from mbroker.action import Severity
from mbroker.values import Fault, Invalid, Where

from .selector import Label, Relation, Selector
from .terms import UNITS, Count, Function, Operator, Span, Window
from .tree import (
    DEEPEST,
    Absent,
    And,
    Comparison,
    Condition,
    Expression,
    Handling,
    Instant,
    NoData,
    Not,
    Or,
    Rule,
    Spatial,
    Temporal,
)

__all__ = ["arrays", "tree"]

VERSION = 1

Array: TypeAlias = "list[Any]"
T = TypeVar("T")

_SPAN = re.compile(r"([0-9]{1,12})(ms|s|m|h|d)")
_OPERATORS = {operator.value: operator for operator in Operator}
_FUNCTIONS = {function.value: function for function in Function}
_USUAL = Handling()
_CLAUSES = frozenset(["clear", "for", "nodata", "severity", "keep", "expire"])


def arrays(rule: Rule, handling: Handling = _USUAL) -> Array:
    """Return the subscription as lists, dictionaries and scalars."""
    clauses: dict[str, object] = {}
    if rule.clear is not None:
        clauses["clear"] = [rule.clear.operator.value, rule.clear.threshold]
    if rule.hold is not None:
        clauses["for"] = str(rule.hold)
    if rule.nodata is not NoData.KEEP:
        clauses["nodata"] = rule.nodata.value
    if handling.severity is not _USUAL.severity:
        clauses["severity"] = handling.severity.value
    if handling.keep:
        clauses["keep"] = list(handling.keep)
    if handling.expire != _USUAL.expire:
        clauses["expire"] = str(handling.expire)
    return [VERSION, _of_condition(rule.condition), clauses]


def _of_condition(condition: Condition) -> Array:
    match condition:
        case Comparison(expression, operator, threshold):
            return [operator.value, _of_expression(expression), threshold]
        case Absent(selector, span):
            return ["absent", _of_selector(selector), str(span)]
        case Not(inner):
            return ["not", _of_condition(inner)]
        case And(parts):
            return ["and", *map(_of_condition, parts)]
        case Or(parts):
            return ["or", *map(_of_condition, parts)]


def _of_expression(expression: Expression) -> Array:
    match expression:
        case Instant(selector):
            return ["last", _of_selector(selector)]
        case Temporal(function, selector, window, quantile):
            length = window.count if isinstance(window, Count) else str(window)
            return [function.value, _of_selector(selector), length, *([] if quantile is None else [quantile])]
        case Spatial(function, member, by, least, quantile):
            arguments = [argument for argument in (least, quantile) if argument is not None]
            return [function.value, _of_expression(member), list(by), *arguments]


def _of_selector(selector: Selector) -> Array:
    return [selector.metric, *([label.name, label.relation.value, label.value] for label in selector.labels)]


def tree(data: object) -> tuple[Rule, Handling]:
    """Return what the arrays of :func:`arrays` say; raise :exc:`mbroker.values.Invalid` when they say nothing."""
    version, condition, clauses = _array(data, (), 3, 3)
    if type(version) is not int or version != VERSION:
        raise _invalid((0,), f"must be {VERSION}, the version, not {version!r:.20}")
    if not isinstance(clauses, Mapping) or not _CLAUSES.issuperset(cast("Mapping[object, object]", clauses)):
        raise _invalid((2,), f"must be a table of {', '.join(sorted(_CLAUSES))}")
    given = cast("Mapping[str, object]", clauses)
    made = _condition(condition, (1,), 0)
    clear = None
    if "clear" in given:
        sign, threshold = _array(given["clear"], (2, "clear"), 2, 2)
        if not isinstance(made, Comparison):
            raise _invalid((2, "clear"), "clear needs a condition that is one comparison")
        clear = _make((2, "clear"), Comparison, made.expression, _member(_OPERATORS, sign, (2, "clear", 0)), threshold)
    hold = _span(given["for"], (2, "for")) if "for" in given else None
    nodata = _make((2, "nodata"), NoData, given.get("nodata", "keep"))
    severity = _make((2, "severity"), Severity, given.get("severity", "warning"))
    keep = tuple(_array(given.get("keep", []), (2, "keep")))
    expire = _span(given.get("expire", "1d"), (2, "expire"))
    return _make((), Rule, made, clear, hold, nodata), _make((2, "keep"), Handling, severity, keep, expire)


def _condition(data: object, where: Where, depth: int) -> Condition:
    if depth > DEEPEST:
        raise _invalid(where, f"conditions may be nested at most {DEEPEST} deep")
    head, *rest = _array(data, where, 2)
    if head in ("and", "or"):
        parts = tuple(_condition(part, (*where, at), depth + 1) for at, part in enumerate(rest, 1))
        return _make(where, And, parts) if head == "and" else _make(where, Or, parts)
    if head == "not":
        _array(data, where, 2, 2)
        return Not(_condition(rest[0], (*where, 1), depth + 1))
    _array(data, where, 3, 3)
    if head == "absent":
        return _make(where, Absent, _selector(rest[0], (*where, 1)), _span(rest[1], (*where, 2)))
    operator = _member(_OPERATORS, head, (*where, 0))
    return _make(where, Comparison, _expression(rest[0], (*where, 1)), operator, rest[1])


def _expression(data: object, where: Where, *, nested: bool = False) -> Expression:
    head, inner, *rest = _array(data, where, 2, 4)
    if head == "last":
        _array(data, where, 2, 2)
        return Instant(_selector(inner, (*where, 1)))
    function = _member(_FUNCTIONS, head, (*where, 0))
    window, *arguments = _array(rest, where, 1, 2)
    argument = arguments[0] if arguments else None
    if isinstance(window, int | str):
        selector = _selector(inner, (*where, 1))
        return _make(where, Temporal, function, selector, _window(window, (*where, 2)), argument)
    if nested:
        raise _invalid(where, "only two functions can be nested, the inner one of a window")
    by = tuple(_array(window, (*where, 2)))
    member = _expression(inner, (*where, 1), nested=True)
    least, quantile = (argument, None) if function is Function.ATLEAST else (None, argument)
    return _make(where, Spatial, function, member, by, least, quantile)


def _selector(data: object, where: Where) -> Selector:
    metric, *labels = _array(data, where, 1)
    return _make(where, Selector, metric, tuple(_label(label, (*where, at)) for at, label in enumerate(labels, 1)))


def _label(data: object, where: Where) -> Label:
    name, relation, value = _array(data, where, 3, 3)
    return _make(where, Label, name, _make((*where, 1), Relation, relation), value)


def _window(data: object, where: Where) -> Window:
    return _make(where, Count, data) if type(data) is int else _span(data, where)


def _span(data: object, where: Where) -> Span:
    match = _SPAN.fullmatch(data) if isinstance(data, str) else None
    if match is None:
        raise _invalid(where, f"must be a duration such as 30s or 2m, not {data!r:.40}")
    return _make(where, Span, int(match[1]) * UNITS[match[2]])


def _array(data: object, where: Where, least: int = 0, most: int = 256) -> Array:
    if not isinstance(data, list | tuple):
        raise _invalid(where, f"must be an array, not {data!r:.40}")
    items = list(cast("Array", data))
    if not least <= len(items) <= most:
        raise _invalid(where, f"must have {least} to {most} items, not {len(items)}")
    return items


def _member(known: Mapping[str, T], name: object, where: Where) -> T:
    if not isinstance(name, str) or name not in known:
        raise _invalid(where, f"must be one of {' '.join(known)}, not {name!r:.40}")
    return known[name]


def _make(where: Where, kind: Callable[..., T], *values: object) -> T:
    try:
        return kind(*values)
    except (TypeError, ValueError) as error:
        raise _invalid(where, str(error)) from None


def _invalid(where: Where, reason: str) -> Invalid:
    return Invalid((Fault(where, reason),))
