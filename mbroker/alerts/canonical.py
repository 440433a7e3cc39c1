"""One form for all the ways to say the same, so that equal rules can share their work."""

from __future__ import annotations

import attrs

from .selector import Selector
from .terms import Count, Function, Operator
from .text import condition_text
from .tree import Absent, And, Comparison, Condition, Expression, Instant, Not, Or, Rule, Spatial, Temporal

__all__ = ["canonical"]


def canonical(rule: Rule) -> Rule:
    """Return the rule that every rule of the same meaning and these differences has in common.

    Order and repetition of labels, ``by`` and conditions; nested ``and`` and ``or``; ``not``, which moves
    inwards; ``p50``, ``quantile(0)`` and ``quantile(1)``; order statistics of one sample; ``any``.
    """
    condition = _condition(rule.condition, negated=False)
    clear = rule.clear
    if clear is not None and isinstance(rule.condition, Comparison):
        # The direction of any() is that of the condition, not of clear.
        clear = attrs.evolve(clear, expression=_expression(clear.expression, rule.condition.operator))
    return attrs.evolve(rule, condition=condition, clear=clear)


def _condition(condition: Condition, *, negated: bool) -> Condition:
    match condition:
        case Comparison(expression, operator, threshold):
            plain = _expression(expression, operator)
            if negated and isinstance(plain, Spatial) and plain.function.is_quantifier:
                return Not(Comparison(plain, operator, threshold))  # its direction, and its quorum, would change
            return Comparison(plain, operator.negated if negated else operator, threshold)
        case Absent(selector, span):
            absent = Absent(_selector(selector), span)
            return Not(absent) if negated else absent
        case Not(inner):
            return _condition(inner, negated=not negated)
        case And(parts) | Or(parts):
            kind = And if isinstance(condition, And) is not negated else Or  # De Morgan
            flat: dict[Condition, None] = {}
            for part in parts:
                made = _condition(part, negated=negated)
                flat.update(dict.fromkeys(made.conditions if isinstance(made, kind) else (made,)))
            first, *others = sorted(flat, key=condition_text)
            return kind((first, *others)) if others else first


def _expression(expression: Expression, operator: Operator) -> Expression:
    match expression:
        case Instant(selector):
            return Instant(_selector(selector))
        case Temporal(function, selector, window, quantile):
            if function.is_order and window == Count(1):
                return Instant(_selector(selector))
            function, quantile = _order(function, quantile)
            return Temporal(function, _selector(selector), window, quantile)
        case Spatial(function, member, by, least, quantile):
            if function is Function.ANY:  # neither has a quorum, unlike all and atleast
                function = Function.MAX if operator.wants_more else Function.MIN
            function, quantile = _order(function, quantile)
            inner = _expression(member, operator)
            assert not isinstance(inner, Spatial)
            return Spatial(function, inner, tuple(sorted(by)), least, quantile)


def _order(function: Function, quantile: float | None) -> tuple[Function, float | None]:
    named = {0.0: Function.MIN, 0.5: Function.MEDIAN, 1.0: Function.MAX}
    return (named[quantile], None) if quantile in named else (function, quantile)


def _selector(selector: Selector) -> Selector:
    unique = dict.fromkeys(selector.labels)
    return Selector(
        selector.metric, tuple(sorted(unique, key=lambda label: (label.name, label.relation.value, label.value)))
    )
