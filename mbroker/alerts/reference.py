"""What subscriptions mean, executable: slow, and plain enough to be checked by reading.

Whatever matches faster must say what this says. Times are whole milliseconds: *at* is that of a sample at its
source (event time), *now* the clock of the broker. One :class:`Reference` follows one rule.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import TypeAlias

import attrs

from .functions import spatial, temporal
from .sample import SILENT, Sample
from .selector import Endpoint, Series, project
from .terms import Count, Function, Span
from .tree import Absent, And, Comparison, Condition, Instant, NoData, Not, Or, Rule, Spatial, Temporal, leaves

__all__ = ["Change", "History", "Kept", "Reference", "Truth", "kept"]


class Truth(Enum):
    """Whether a condition holds."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"
    """There are not enough samples yet."""
    NODATA = "nodata"
    """The samples stopped coming."""


@attrs.frozen
class Change:
    """An alert begins or ends."""

    key: Endpoint
    """The endpoint or, of a spatial rule, the values of its ``by`` labels."""
    firing: bool
    at: int


Kept: TypeAlias = tuple[Count | Span, bool]
"""What windows are told apart by: their length, and whether they make an ``ewma``."""


@attrs.define
class History:
    """All that is known of a series."""

    heard: int
    """When the last sample was accepted; before the first one, when the series became known."""
    samples: list[tuple[int, float]] = attrs.field(factory=list[tuple[int, float]])
    begins: dict[Kept, int] = attrs.field(factory=dict[Kept, int])
    """How many samples came before a window was kept; of any other window, :attr:`start`."""
    start: int = 0
    """How many samples came before the rule was added."""
    interval: int = 0
    """Milliseconds between two samples, if that is longer than usual."""
    is_hushed: bool = False
    """Whether it had been silent when its interval changed, and no sample came since."""

    def window(self, expression: Temporal) -> list[tuple[int, float]]:
        """Return the samples that the window of *expression* may hold."""
        return self.samples[self.begins.get(kept(expression), self.start) :]


def kept(expression: Temporal) -> Kept:
    """Return which window *expression* needs."""
    return expression.window, expression.function is Function.EWMA


@attrs.define
class _Alert:
    """What is known of an endpoint or group besides its samples."""

    firing: bool = False
    true_since: int | None = None
    at: int = 0
    """Newest event time of the samples that concern it."""
    waiting: bool = False
    """Whether samples came since it was last evaluated."""


class Reference:
    """Follows one rule from the moment it is added.

    Of what came before it knows what the broker keeps, *known*: the newest sample of each series, and the windows
    that other rules need already. Its other windows begin empty.
    """

    def __init__(
        self, rule: Rule, now: int = 0, *, interval: int = 10_000, known: Mapping[Series, History] | None = None
    ) -> None:
        self.irregular: Counter[str] = Counter()
        """How many samples were dropped as ``nan`` or ``late``, or are ``infinite`` and left out of arithmetic."""
        self._rule = rule
        self._hold = rule.hold.milliseconds if rule.hold else 0
        self._interval = interval
        self._now = now
        self._histories = {
            series: attrs.evolve(
                history, samples=[*history.samples], begins={**history.begins}, start=len(history.samples)
            )
            for series, history in (known or {}).items()
        }
        self._alerts: dict[Endpoint, _Alert] = {}
        self.register(*self._histories)

    # -- what happens

    def register(self, *series: Series) -> None:
        """Expect samples of *series*, from now on."""
        for one in series:
            self._histories.setdefault(one, History(self._now))
            for key in self._keys(one):
                if key not in self._alerts:
                    self._alerts[key] = _Alert(at=self._newest(key))

    def pace(self, series: Series, interval: int | None) -> None:
        """Expect samples of *series*, which is known, every *interval* milliseconds, if that is longer than usual."""
        history = self._histories[series]
        history.is_hushed = history.is_hushed or self._now - history.heard >= self._patience(history)
        history.interval = interval or 0

    def forget(self, *series: Series) -> None:
        """Know nothing of *series* any more; alerts that exist because of them alone end without an edge."""
        for one in series:
            del self._histories[one]
        stay = {key for one in self._histories for key in self._keys(one)}
        self._alerts = {key: alert for key, alert in self._alerts.items() if key in stay}

    def tick(self, now: int) -> list[Change]:
        """Return the edges that time itself makes until *now*, which never runs backwards, each at its own moment."""
        edges = self._evaluated(list(self._alerts))  # of what changed since the last tick
        while coming := [moment for moment in self._moments() if self._now < moment <= now]:
            self._now = min(coming)
            edges += self._evaluated(list(self._alerts))
        self._now = now
        return edges

    def batch(self, now: int, samples: Iterable[Sample]) -> list[Change]:
        """Return the edges of samples that arrive together, each alert's in the order of its event times.

        An alert is evaluated once for each event time: before a later sample of it, and when the batch ends.
        """
        edges = self.tick(now)
        for sample in samples:
            if not self._accepts(sample):
                continue
            edges += self._evaluated(
                key
                for key, alert in self._alerts.items()
                if alert.waiting and alert.at < sample.at and self._concerns(sample.series, key)
            )
            self.register(sample.series)
            history = self._histories[sample.series]
            history.heard, history.is_hushed = now, False
            history.samples.append((sample.at, sample.value))
            for key, alert in self._alerts.items():
                if self._concerns(sample.series, key):
                    alert.at = max(alert.at, sample.at)
                    alert.waiting = True
        return edges + self._evaluated(key for key, alert in self._alerts.items() if alert.waiting)

    def truth(self, key: Endpoint) -> Truth:
        """Return whether the condition holds now for the endpoint or group *key*."""
        return self._truth(self._rule.condition, key)

    def value(self, comparison: Comparison, key: Endpoint) -> float | None:
        """Return what *comparison*, a part of the rule, compares for *key*; None while that is not known."""
        value = self._value(comparison, key)
        return None if isinstance(value, Truth) else value

    def _accepts(self, sample: Sample) -> bool:
        history = self._histories.get(sample.series)
        if math.isnan(sample.value):
            self.irregular["nan"] += 1
            return False
        if history and history.samples and sample.at <= history.samples[-1][0]:
            self.irregular["late"] += 1
            return False
        self.irregular["infinite"] += math.isinf(sample.value)
        return True

    # -- alerts

    def _moments(self) -> Iterator[int]:
        """Yield when the clock alone may change something: when series fall silent, and when waiting ends."""
        for leaf in leaves(self._rule.condition):
            for series, history in self._histories.items():
                if leaf.selector.accepts(series):
                    yield history.heard + self._endured(leaf, history)
        yield from (alert.true_since + self._hold for alert in self._alerts.values() if alert.true_since is not None)

    def _endured(self, leaf: Comparison | Absent, history: History) -> int:
        """Return after how many milliseconds without a sample *leaf* takes a series to be silent."""
        if isinstance(leaf, Absent):
            return leaf.span.milliseconds
        expression = leaf.expression
        member = expression.member if isinstance(expression, Spatial) else expression
        return _window_span(member) or self._patience(history)

    def _keys(self, series: Series) -> Iterator[Endpoint]:
        """Yield the alerts that exist because *series* does: those of the finest leaves that read it."""
        for leaf in leaves(self._rule.condition):
            if leaf.selector.accepts(series):
                if leaf.by is None:
                    yield series.endpoint
                elif not self._rule.is_local and len(leaf.by) == len(self._rule.by):
                    yield from project(series.endpoint, leaf.by)

    def _newest(self, key: Endpoint) -> int:
        concerned = [history for series, history in self._histories.items() if self._concerns(series, key)]
        return max((history.samples[-1][0] for history in concerned if history.samples), default=0)

    def _concerns(self, series: Series, key: Endpoint) -> bool:
        return any(_reads(leaf, series, key) for leaf in leaves(self._rule.condition))

    def _members(self, leaf: Comparison | Absent, key: Endpoint) -> list[Series]:
        return [series for series in self._histories if _reads(leaf, series, key)]

    def _evaluated(self, keys: Iterable[Endpoint]) -> list[Change]:
        return [edge for key in keys for edge in self._evaluate(key, self._alerts[key])]

    def _evaluate(self, key: Endpoint, alert: _Alert) -> Iterator[Change]:
        alert.waiting = False
        rule = self._rule
        truth = self._truth(rule.condition, key)
        timed = truth is Truth.NODATA or any(isinstance(leaf, Absent) for leaf in leaves(rule.condition))
        at = self._now if timed else alert.at
        cleared = truth is Truth.FALSE if rule.clear is None else self._compare(rule.clear, key) is Truth.TRUE
        if truth is Truth.NODATA and rule.nodata is not NoData.KEEP:
            truth = Truth.TRUE if rule.nodata is NoData.FIRE else Truth.FALSE
            cleared = truth is Truth.FALSE
        if alert.firing:
            if cleared:
                alert.firing, alert.true_since = False, None
                yield Change(key, firing=False, at=at)
        elif truth is not Truth.TRUE:
            alert.true_since = None
        else:
            alert.true_since = at if alert.true_since is None else alert.true_since
            if at - alert.true_since >= self._hold:
                alert.firing = True
                yield Change(key, firing=True, at=at)

    # -- conditions

    def _truth(self, condition: Condition, key: Endpoint) -> Truth:
        """Kleene's logic; the missing NODATA says more than the missing UNKNOWN."""
        match condition:
            case Comparison():
                return self._compare(condition, key)
            case Absent():
                return self._absent(condition, key)
            case Not(inner):
                truth = self._truth(inner, key)
                return {Truth.TRUE: Truth.FALSE, Truth.FALSE: Truth.TRUE}.get(truth, truth)
            case And(parts):
                truths = {self._truth(part, key) for part in parts}
                return next(t for t in (Truth.FALSE, Truth.NODATA, Truth.UNKNOWN, Truth.TRUE) if t in truths)
            case Or(parts):
                truths = {self._truth(part, key) for part in parts}
                return next(t for t in (Truth.TRUE, Truth.NODATA, Truth.UNKNOWN, Truth.FALSE) if t in truths)

    def _absent(self, leaf: Absent, key: Endpoint) -> Truth:
        for series in self._members(leaf, key):
            history = self._histories[series]
            if self._now - history.heard >= leaf.span.milliseconds:
                return Truth.TRUE
            return Truth.FALSE if history.samples else Truth.UNKNOWN
        return Truth.UNKNOWN

    def _compare(self, comparison: Comparison, key: Endpoint) -> Truth:
        value = self._value(comparison, key)
        if isinstance(value, Truth):
            return value
        return Truth.TRUE if comparison.holds(value) else Truth.FALSE

    def _value(self, comparison: Comparison, key: Endpoint) -> float | Truth:
        members = self._members(comparison, key)
        expression = comparison.expression
        if not isinstance(expression, Spatial):
            return self._sampled(expression, members[0]) if members else Truth.UNKNOWN
        values = [self._sampled(expression.member, series) for series in members]
        known = [value for value in values if not isinstance(value, Truth)]
        if expression.function is Function.COUNT:
            return float(len(known)) if values and Truth.UNKNOWN not in values else Truth.UNKNOWN
        quorum = len(values) if expression.function in (Function.ALL, Function.ATLEAST) else 1
        if len(known) >= max(quorum, 1):
            condition = self._rule.condition  # says the direction of all, any and atleast, for clear too
            direction = condition.operator if isinstance(condition, Comparison) else comparison.operator
            return _or_unknown(spatial(expression, direction, known))
        return Truth.NODATA if values and all(value is Truth.NODATA for value in values) else Truth.UNKNOWN

    def _patience(self, history: History) -> int:
        return SILENT * max(history.interval, self._interval)

    def _sampled(self, expression: Instant | Temporal, series: Series) -> float | Truth:
        history, span = self._histories[series], _window_span(expression)
        if self._now - history.heard >= (span or self._patience(history)) or (history.is_hushed and not span):
            return Truth.NODATA
        if not history.samples:
            return Truth.UNKNOWN
        if isinstance(expression, Instant):
            return history.samples[-1][1]
        samples = history.window(expression)
        return _or_unknown(temporal(expression, samples)) if samples else Truth.UNKNOWN


def _reads(leaf: Comparison | Absent, series: Series, key: Endpoint) -> bool:
    """Whether *series* is what, or among what, *leaf* looks at for the alert *key*."""
    if not leaf.selector.accepts(series):
        return False
    return series.endpoint == key if leaf.by is None else project(key, leaf.by) <= project(series.endpoint, leaf.by)


def _window_span(expression: Instant | Temporal) -> int | None:
    """Return the length of a window by time, None when there is no such window."""
    if not isinstance(expression, Temporal) or expression.function is Function.EWMA:
        return None
    return expression.window.milliseconds if isinstance(expression.window, Span) else None


def _or_unknown(value: float | None) -> float | Truth:
    return Truth.UNKNOWN if value is None else value
