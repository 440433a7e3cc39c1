"""What a subscription would find among the series that there are, before anybody makes it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator

from .language import Subscription
from .places import Places
from .selector import GROUP, Relation, Selector
from .terms import Count
from .tree import Absent, Spatial, Temporal, leaves

__all__ = ["NoSuchGroup", "TooBroad", "check_windows", "review", "unknown"]

_SHOWN = 10  # groups that an error names


class TooBroad(Exception):
    """It asks for more series, or a longer window, than one subscription may; nothing was changed."""


class NoSuchGroup(Exception):
    """A selector asks for a group that nobody has made; nothing was changed."""


def review(subscription: Subscription, places: Places, groups: Collection[str], broadest: int) -> tuple[str, ...]:
    """Return what whoever subscribes should know: of what is asked for, what is not there yet.

    *groups* are those that were configured, besides those of *places*; *broadest*: series that one comparison may
    find. Raises :exc:`TooBroad` and :exc:`NoSuchGroup`.
    """
    warnings = dict.fromkeys(unknown(metric, places) for metric in subscription.handling.keep)
    for leaf in leaves(subscription.rule.condition):
        _check_groups(leaf.selector, {*groups, *places.values(GROUP)})
        found = sum(1 for _ in places.accepted(leaf.selector))
        if found > broadest:
            raise TooBroad(
                f"{leaf.selector.metric} with these labels is {found} series, and one comparison may follow "
                f'{broadest}; ask for fewer by labels, such as {{domain="web1"}}'
            )
        missing = unknown(leaf.selector.metric, places)
        none = "" if found else f"no series of {leaf.selector.metric} has these labels yet"
        warnings[missing or none] = None
    return tuple(filter(None, warnings))


def check_windows(subscription: Subscription, longest: int) -> None:
    """Raise :exc:`TooBroad` for a window of more than *longest* samples."""
    for leaf in leaves(subscription.rule.condition):
        expression = None if isinstance(leaf, Absent) else leaf.expression
        member = expression.member if isinstance(expression, Spatial) else expression
        if isinstance(member, Temporal) and isinstance(member.window, Count) and member.window.count > longest:
            raise TooBroad(
                f"a window of {leaf.selector.metric} has {member.window.count} samples, and a window may have {longest}"
            )


def unknown(metric: str, places: Places) -> str:
    """Return a line that says that nothing is called *metric*, and what it may have meant; empty when it is known."""
    if metric in places.metrics:
        return ""
    near = difflib.get_close_matches(metric, places.metrics, 3)
    return f"no metric is called {metric} yet" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _check_groups(selector: Selector, groups: Collection[str]) -> None:
    for wanted in _named_groups(selector):
        if wanted not in groups:
            near = difflib.get_close_matches(wanted, groups, 1) or sorted(groups)[:_SHOWN]
            hint = f"there is {', '.join(near)}" if near else "name its members in [alerts.groups]"
            raise NoSuchGroup(f"there is no group {wanted}; {hint}")


def _named_groups(selector: Selector) -> Iterator[str]:
    for label in selector.labels:
        if label.name == GROUP and label.relation is Relation.IS and label.value:
            yield label.value
