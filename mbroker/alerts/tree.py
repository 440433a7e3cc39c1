"""What a subscription says, as a tree of values. A :class:`Rule` that exists is valid, whoever made it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from enum import Enum
from typing import Any, TypeAlias, cast

import attrs

from mbroker.action import Severity

from .selector import GROUP, Selector, name, sequence
from .terms import (
    DAY,
    PAIRWISE,
    Count,
    Function,
    Operator,
    Span,
    Window,
    check_least,
    check_quantile,
    check_window,
    finite,
    number,
)

__all__ = [
    "Absent",
    "And",
    "Comparison",
    "Condition",
    "Expression",
    "Handling",
    "Instant",
    "NoData",
    "Not",
    "Or",
    "Rule",
    "Spatial",
    "Temporal",
    "leaves",
]

DEEPEST = 32
MOST_LEAVES = 64

_instance = attrs.validators.instance_of


def _check_unique(_: object, attribute: attrs.Attribute[Any], names: tuple[str, ...]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"{attribute.name} must have each name once")


@attrs.frozen
class Instant:
    """The newest sample of a series."""

    selector: Selector = attrs.field(validator=_instance(Selector))


@attrs.frozen
class Temporal:
    """A function of the samples in a window of one series."""

    function: Function = attrs.field(validator=_instance(Function))
    selector: Selector = attrs.field(validator=_instance(Selector))
    window: Window = attrs.field(validator=_instance(Count | Span))
    """The samples that count or, of :attr:`Function.EWMA`, its time constant."""
    quantile: float | None = attrs.field(default=None, converter=number)
    """Which order statistic :attr:`Function.QUANTILE` picks: from 0, the least, to 1, the greatest."""

    def __attrs_post_init__(self) -> None:
        """Refuse what has no meaning."""
        word = self.function.value
        if not self.function.is_temporal:
            raise ValueError(f"{word} compares endpoints and takes no window; put a function around the window")
        check_window(self.window)
        if self.function is Function.EWMA and not isinstance(self.window, Span):
            raise ValueError("ewma needs a duration, its time constant: ewma(30s, load)")
        if self.function in PAIRWISE and self.window == Count(1):
            raise ValueError(f"{word} needs a window of at least 2 samples")
        if (self.function is Function.QUANTILE) != (self.quantile is not None):
            raise ValueError("quantile, and nothing else, says which: quantile(0.95, metric[5m])")
        check_quantile(self.quantile)


@attrs.frozen
class Spatial:
    """A function of what many endpoints have in common at one moment."""

    function: Function = attrs.field(validator=_instance(Function))
    member: Instant | Temporal = attrs.field(validator=_instance(Instant | Temporal))
    """What each endpoint contributes."""
    by: tuple[str, ...] = attrs.field(
        default=(), validator=[sequence(str, 8), attrs.validators.deep_iterable(name), _check_unique]
    )
    """Labels: there is one group, and one alert, for each combination of their values."""
    least: int | None = None
    """How many members :attr:`Function.ATLEAST` asks for."""
    quantile: float | None = attrs.field(default=None, converter=number)

    def __attrs_post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not self.function.is_spatial:
            raise ValueError(f"{self.function.value} needs a window: {self.function.value}(metric[5m])")
        if (self.function is Function.ATLEAST) != (self.least is not None):
            raise ValueError("atleast, and nothing else, says how many: atleast(3, load)")
        check_least(self.least)
        if (self.function is Function.QUANTILE) != (self.quantile is not None):
            raise ValueError("quantile, and nothing else, says which: quantile(0.95, metric[5m])")
        check_quantile(self.quantile)


Expression: TypeAlias = Instant | Temporal | Spatial


@attrs.frozen
class Comparison:
    """An expression compared with a threshold."""

    expression: Expression = attrs.field(validator=_instance(Instant | Temporal | Spatial))
    operator: Operator = attrs.field(validator=_instance(Operator))
    threshold: float = attrs.field(validator=finite, converter=number)

    def __attrs_post_init__(self) -> None:
        """Refuse what has no meaning."""
        function = self.expression.function if isinstance(self.expression, Spatial) else None
        if function is not None and function.is_quantifier and self.operator in (Operator.EQUAL, Operator.UNEQUAL):
            raise ValueError(f"{function.value} needs > >= < or <=; min and max can be compared with == and !=")

    @property
    def selector(self) -> Selector:
        """The series that it is about."""
        expression = self.expression
        return (expression.member if isinstance(expression, Spatial) else expression).selector

    @property
    def by(self) -> tuple[str, ...] | None:
        """The labels that its groups are known by; None when it is about single endpoints."""
        return self.expression.by if isinstance(self.expression, Spatial) else None

    def holds(self, value: float) -> bool:
        """Whether *value* of the expression satisfies the comparison."""
        return self.operator.holds(value, self.threshold)


@attrs.frozen
class Absent:
    """No sample of a series arrived for a time, by the clock of the broker."""

    selector: Selector = attrs.field(validator=_instance(Selector))
    span: Span = attrs.field(validator=[_instance(Span), lambda _, __, span: check_window(span)])

    @property
    def by(self) -> None:
        """None: it is about single endpoints."""
        return


def _several(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or len(cast("tuple[object, ...]", value)) < 2:
        raise ValueError(f"{attribute.name} must be a tuple of at least two conditions")


@attrs.frozen
class Not:
    """The opposite; of what is unknown, unknown."""

    condition: Condition


@attrs.frozen
class And:
    """All of them."""

    conditions: tuple[Condition, ...] = attrs.field(validator=_several)


@attrs.frozen
class Or:
    """At least one of them."""

    conditions: tuple[Condition, ...] = attrs.field(validator=_several)


Condition: TypeAlias = Comparison | Absent | Not | And | Or


def leaves(condition: Condition, depth: int = 0) -> Iterator[Comparison | Absent]:
    """Yield the comparisons and absences of *condition*, from left to right; raise ValueError if it is no condition."""
    if depth > DEEPEST:
        raise ValueError(f"conditions may be nested at most {DEEPEST} deep")
    match condition:
        case Comparison() | Absent():
            yield condition
        case Not(inner):
            yield from leaves(inner, depth + 1)
        case And(parts) | Or(parts):
            for part in parts:
                yield from leaves(part, depth + 1)
        case _:  # pyright: ignore[reportUnnecessaryComparison]
            raise ValueError(f"must be a condition, not {condition!r:.60}")


class NoData(Enum):
    """What becomes of an alert when its series fall silent."""

    KEEP = "keep"
    """It stays as it is."""
    CLEAR = "clear"
    """Silence counts as all being well."""
    FIRE = "fire"
    """Silence counts as the condition being true."""


@attrs.frozen
class Rule:
    """What is matched. Equal rules share their work, whoever subscribed (see :func:`.canonical.canonical`)."""

    condition: Condition
    clear: Comparison | None = None
    """When given, an alert clears when this holds, and not when the condition ceases to."""
    hold: Span | None = attrs.field(default=None, validator=attrs.validators.optional(_instance(Span)))
    """How long the condition must be true without interruption before an alert fires (``for``)."""
    nodata: NoData = attrs.field(default=NoData.KEEP, validator=_instance(NoData))

    def __attrs_post_init__(self) -> None:
        """Refuse what has no meaning."""
        if len(tuple(itertools.islice(leaves(self.condition), MOST_LEAVES + 1))) > MOST_LEAVES:
            raise ValueError(f"a condition may have at most {MOST_LEAVES} comparisons")
        _check_instances(self.condition)
        if self.clear is not None:
            _check_clear(self.condition, self.clear)

    @property
    def is_local(self) -> bool:
        """Whether there is one alert for each endpoint; else one for each group of :attr:`by`."""
        return any(leaf.by is None for leaf in leaves(self.condition))

    @property
    def by(self) -> tuple[str, ...]:
        """The labels that tell the alerts of a spatial rule apart, sorted."""
        return max((tuple(sorted(leaf.by or ())) for leaf in leaves(self.condition)), key=len)


def _check_instances(condition: Condition) -> None:
    """Refuse comparisons that have no common alert: each alert must find one value of each comparison."""
    groupings = [leaf.by for leaf in leaves(condition)]
    spatial = sorted(
        {frozenset(labels) for labels in groupings if labels is not None},
        key=lambda labels: (len(labels), sorted(labels)),
    )
    for fewer, more in itertools.pairwise(spatial):
        if not fewer <= more:
            one, two = (", ".join(sorted(labels)) for labels in (fewer, more))
            raise ValueError(f"by ({one}) and by ({two}) have no alert in common; write two subscriptions")
    if None in groupings and any(GROUP in labels for labels in spatial):
        raise ValueError("by (group) does not go with a condition on single endpoints, which may be in many groups")


def _check_clear(condition: Condition, clear: Comparison) -> None:
    if not isinstance(condition, Comparison) or clear.expression != condition.expression:
        raise ValueError("clear needs a condition that is one comparison")
    # Between two neighbouring doubles of these nothing changes, so that they stand for all numbers.
    points = {
        math.nextafter(edge, way)
        for edge in (condition.threshold, clear.threshold)
        for way in (-math.inf, edge, math.inf)
    }
    if any(condition.holds(point) and clear.holds(point) for point in points):
        raise ValueError(
            f"clear {clear.operator.value} {clear.threshold} is also true where the alert fires; "
            f"leave a gap below or above {condition.threshold}"
        )


@attrs.frozen
class Handling:
    """What becomes of an alert; it plays no part in matching."""

    severity: Severity = attrs.field(default=Severity.WARNING, validator=_instance(Severity))
    keep: tuple[str, ...] = attrs.field(
        default=(), validator=[sequence(str, 32), attrs.validators.deep_iterable(name), _check_unique]
    )
    """Metrics to store around an alert, besides those of its own source."""
    expire: Span = attrs.field(default=Span(DAY), validator=_instance(Span))
    """How long what was stored is kept (MAVIS, section IV, *selective storage*: 24 hours)."""
