"""Which series that are silent for long must stay: those that an alert needs, wherever its other series are."""

from __future__ import annotations

from collections.abc import Iterator

from .places import Places
from .selector import Endpoint, Series, project
from .tree import Absent, Comparison, Rule, leaves

__all__ = ["is_needed"]


def is_needed(series: Series, rule: Rule, firing: set[Endpoint], going: set[int], places: Places) -> bool:
    """Tell whether an alert of *rule* needs *series* though all of *going* go, which are numbers of *places*.

    An alert that fires needs one series of its endpoint or group; one of an endpoint that looks at several needs all
    or none of them.
    """
    leading = [leaf for leaf in leaves(rule.condition) if _is_leading(rule, leaf)]
    for key in {key for leaf in leading if leaf.selector.accepts(series) for key in _keys(leaf, series.endpoint)}:
        if not rule.is_local and key not in firing:
            continue
        others = any(number not in going for leaf in leading for number in _members(leaf, key, places))
        if rule.is_local if others else key in firing:
            return True
    return False


def _is_leading(rule: Rule, leaf: Comparison | Absent) -> bool:
    """Whether alerts of *rule* exist because of what *leaf* reads, not merely look at it."""
    return leaf.by is None if rule.is_local else len(leaf.by or ()) == len(rule.by)


def _keys(leaf: Comparison | Absent, endpoint: Endpoint) -> frozenset[Endpoint]:
    return frozenset([endpoint]) if leaf.by is None else project(endpoint, leaf.by)


def _members(leaf: Comparison | Absent, key: Endpoint, places: Places) -> Iterator[int]:
    if leaf.by is None:
        series = Series(leaf.selector.metric, key)
        number = places.find(series)
        if number is not None and leaf.selector.accepts(series):
            yield number
        return
    for place, number in places.accepted(leaf.selector):
        if key in project(places.endpoints[place], leaf.by):
            yield number
