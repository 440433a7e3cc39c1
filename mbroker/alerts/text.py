"""From tree to text; what it prints is read back as the same tree."""

from __future__ import annotations

from collections.abc import Iterator

from .selector import Label, Selector
from .terms import Function
from .tree import (
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

__all__ = ["condition_text", "printed"]


def printed(rule: Rule, handling: Handling) -> str:
    """Return the subscription in the language; clauses that say what is the default are left out."""
    return " ".join([condition_text(rule.condition), *_clauses(rule, handling)])


def _clauses(rule: Rule, handling: Handling) -> Iterator[str]:
    usual = Handling()
    if rule.clear is not None:
        yield f"clear {rule.clear.operator.value} {_number(rule.clear.threshold)}"
    if rule.hold is not None:
        yield f"for {rule.hold}"
    if rule.nodata is not NoData.KEEP:
        yield f"nodata {rule.nodata.value}"
    if handling.severity is not usual.severity:
        yield f"severity {handling.severity.value}"
    if handling.keep:
        yield f"keep {', '.join(handling.keep)}"
    if handling.expire != usual.expire:
        yield f"expire {handling.expire}"


def condition_text(condition: Condition) -> str:
    """Return one condition in the language."""
    match condition:
        case Comparison(expression, operator, threshold):
            return f"{_expression(expression)} {operator.value} {_number(threshold)}"
        case Absent(selector, span):
            return f"absent({_selector(selector)}[{span}])"
        case Not(inner):
            return f"not {_enclosed(inner, And | Or)}"
        case And(parts):
            return " and ".join(_enclosed(part, And | Or) for part in parts)
        case Or(parts):
            return " or ".join(_enclosed(part, Or) for part in parts)


def _enclosed(condition: Condition, kinds: object) -> str:
    text = condition_text(condition)
    return f"({text})" if isinstance(condition, kinds) else text  # type: ignore[arg-type]


def _expression(expression: Expression) -> str:
    match expression:
        case Instant(selector):
            return _selector(selector)
        case Temporal(Function.EWMA, selector, window):
            return f"ewma({window}, {_selector(selector)})"
        case Temporal(function, selector, window, quantile):
            return _call(function, quantile, f"{_selector(selector)}[{window}]")
        case Spatial(function, member, by, least, quantile):
            by_text = f" by ({', '.join(by)})" if by else ""
            return _call(function, least if quantile is None else quantile, _expression(member)) + by_text


def _call(function: Function, argument: float | None, inner: str) -> str:
    if function is Function.QUANTILE and argument is not None:
        percent = round(argument * 100)
        if 1 <= percent <= 99 and percent / 100 == argument:
            return f"p{percent}({inner})"
    return f"{function.value}({inner})" if argument is None else f"{function.value}({_number(argument)}, {inner})"


def _selector(selector: Selector) -> str:
    labels = ", ".join(map(_label, selector.labels))
    return f"{selector.metric}{{{labels}}}" if labels else selector.metric


def _label(label: Label) -> str:
    text = label.value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{label.name}{label.relation.value}"{text}"'


def _number(value: float) -> str:
    """Return the shortest text that is read back as *value*."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
