"""What the past means to a rule: how much of it matters, and what tells that it ceased to be true."""

from __future__ import annotations

import math

import attrs

from .canonical import canonical
from .places import Places
from .sample import SILENT
from .selector import Endpoint, project
from .terms import Function, Span
from .tree import Absent, NoData, Not, Rule, Spatial, Temporal, leaves

__all__ = ["heard", "opposite", "span"]

_TAIL = math.ceil(math.log(1e6))  # spans of an EWMA after which what came before is a millionth
_OPPOSITE = {NoData.KEEP: NoData.KEEP, NoData.CLEAR: NoData.FIRE, NoData.FIRE: NoData.CLEAR}


def span(rule: Rule, interval: int) -> int:
    """Return how many milliseconds before a moment matter to *rule*, when samples have that *interval*."""
    longest = 0
    for leaf in leaves(rule.condition):
        if isinstance(leaf, Absent):
            longest = max(longest, leaf.span.milliseconds)
            continue
        expression = leaf.expression.member if isinstance(leaf.expression, Spatial) else leaf.expression
        if isinstance(expression, Temporal):
            window = expression.window
            length = window.milliseconds if isinstance(window, Span) else window.count * interval
            longest = max(longest, length * (_TAIL if expression.function is Function.EWMA else 1))
    return longest + (rule.hold.milliseconds if rule.hold else 0) + SILENT * interval


def opposite(rule: Rule) -> Rule:
    """Return the rule that is true where alerts of *rule* end; where that is not known, neither is true.

    Raises ValueError if that is nested too deep.
    """
    condition = rule.condition
    if rule.clear is not None:  # twice the opposite: of all() the condition says what it is, and clear is the reverse
        condition = attrs.evolve(rule.clear, operator=rule.clear.operator.negated)
    return canonical(Rule(Not(condition), nodata=_OPPOSITE[rule.nodata]))


def heard(rule: Rule, places: Places) -> set[Endpoint]:
    """Return the endpoints and groups that *rule* has series of."""
    found = set[Endpoint]()
    for leaf in leaves(rule.condition):
        for place, _ in places.accepted(leaf.selector):
            endpoint = places.endpoints[place]
            found |= {endpoint} if leaf.by is None else project(endpoint, leaf.by)
    return found
