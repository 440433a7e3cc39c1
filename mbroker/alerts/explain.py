"""A subscription tried on the stored past: what it would have fired on, what it costs, and where it will be matched."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from enum import Enum
from itertools import groupby
from typing import Protocol

import attrs

from .alert import Alert, alert_id
from .engine import Engine, Fired
from .history import Accepts
from .language import Subscription
from .offloading import cuts
from .past import span
from .sample import Sample
from .selector import Endpoint, Selector, Series
from .terms import Function
from .tree import Absent, Comparison, Instant, Rule, Spatial, Temporal, leaves

__all__ = ["CostClass", "Explanation", "Past", "Place", "cost", "explain"]

_BEAT = 1000  # milliseconds between two looks at the clock
_MOST = 1000  # alerts that are told


class CostClass(Enum):
    """What a sample costs: that of the dearest comparison. Rules that compare the same share it."""

    NEWEST = "newest value"
    """Next to nothing, until a value crosses the threshold."""
    RUNNING = "running sums"
    """A few additions: means, rates and the like are kept up to date."""
    ORDERED = "ordered window"
    """As the newest value, where a window has few that are near the threshold; else the logarithm of its length."""


class Place(Enum):
    """Where a rule is matched."""

    PUBLISHER = "publisher"
    """By who measures, if that saves samples: only what crosses a threshold then travels."""
    BROKER = "broker"
    """By the broker itself."""
    ENGINES = "engines"
    """By processes or machines beside the broker, among which endpoints and groups are shared out."""


class Past(Protocol):
    """What has stored samples: a :class:`.history.History`."""

    def read(self, wanted: Accepts, begin: int, end: int) -> Iterator[Sample]:
        """Yield samples in time order."""
        ...

    def intervals(self, wanted: Accepts) -> dict[Series, int]:
        """Return how often series are read that are not read as often as usual."""
        ...


@attrs.frozen
class Explanation:
    """What became of a subscription on the stored past."""

    alerts: tuple[Alert, ...]
    """The first that it would have begun, each with the value that began it; one that fires at the end has no end."""
    more: int
    """How many it would have begun besides."""
    series: int
    """How many it read."""
    samples: int
    """How many of their samples there were."""
    oldest: int | None
    """The time of the first of them; None if there is none. Of what was before nothing is known."""
    cost: CostClass
    place: Place


@attrs.frozen
class _Wanted:
    """What a rule reads."""

    selectors: tuple[Selector, ...]

    def accepts(self, series: Series) -> bool:
        return any(selector.accepts(series) for selector in self.selectors)


def explain(
    subscription: Subscription,
    past: Past,
    begin: int,
    end: int,
    *,
    interval: int = 10_000,
    most: int = _MOST,
    offload: bool = False,
    home: Place = Place.BROKER,
) -> Generator[float, None, Explanation]:
    """Try *subscription* on what is stored from *begin* to before *end*; yield now and then how much is done, 0 to 1.

    Windows are filled from what came before *begin*, and what fires already then is told as if it began there.
    *interval* is that of samples, of which three may miss, where series have no longer one; *most* alerts are told.
    While nothing was stored, as when the broker was down, its series were silent. *offload*: publishers are asked to
    compare; what they cannot is matched at *home*. Raises :exc:`.engine.TooMuchError`.
    """
    rule = subscription.rule
    trial = _Trial(subscription, begin, most)
    place = Place.PUBLISHER if offload and cuts(rule) is not None else home
    intervals = past.intervals(trial.wanted)
    start = begin - span(rule, max([interval, *intervals.values()]))
    engine: Engine | None = None
    clock = start
    for beat, batch in groupby(past.read(trial.wanted, start, end), lambda sample: sample.at // _BEAT):
        if engine is None:  # what was not known yet is not missed
            clock = beat * _BEAT
            engine = Engine(clock, interval=interval)
            engine.add(rule)
        for quiet in range(clock + _BEAT, (beat + 1) * _BEAT, _BEAT):
            trial.take(engine.tick(quiet))
        clock = (beat + 1) * _BEAT
        samples = list(batch)
        for series in trial.count(samples):
            engine.pace(engine.number(series), intervals.get(series))
        trial.take(engine.batch(clock, samples))
        yield min(max((clock - start) / (end - start), 0.0), 1.0)
    if engine is not None:
        for quiet in range(clock + _BEAT, end + 1, _BEAT):
            trial.take(engine.tick(quiet))
    return trial.result(place)


class _Trial:
    """Collects what a rule does."""

    def __init__(self, subscription: Subscription, begin: int, most: int) -> None:
        self._rule = subscription.rule
        self._severity = subscription.handling.severity
        self.wanted = _Wanted(tuple(leaf.selector for leaf in leaves(self._rule.condition)))
        self._begin = begin
        self._most = most
        self._firing: dict[Endpoint, Alert] = {}
        self._alerts: list[Alert] = []
        self._more = 0
        self._series: set[Series] = set()
        self._samples = 0
        self._oldest: int | None = None

    def count(self, samples: list[Sample]) -> set[Series]:
        """Note what came, and return the series that are new."""
        self._samples += len(samples)
        self._oldest = samples[0].at if self._oldest is None else self._oldest
        new = {sample.series for sample in samples} - self._series
        self._series |= new
        return new

    def take(self, edges: list[Fired]) -> None:
        for edge in edges:
            if edge.firing:
                name = alert_id(0, edge.key, edge.at)
                since = max(edge.at, self._begin)
                self._firing[edge.key] = Alert(name, 0, edge.key, self._severity, since, None, edge.value)
            elif edge.key in self._firing:
                alert = self._firing.pop(edge.key)
                if edge.at >= self._begin:
                    self._tell(attrs.evolve(alert, until=max(edge.at, alert.since)))

    def _tell(self, alert: Alert) -> None:
        if len(self._alerts) < self._most:
            self._alerts.append(alert)
        else:
            self._more += 1

    def result(self, place: Place) -> Explanation:
        for alert in self._firing.values():
            self._tell(alert)
        alerts = tuple(sorted(self._alerts, key=lambda alert: (alert.since, alert.id)))
        return Explanation(alerts, self._more, len(self._series), self._samples, self._oldest, cost(self._rule), place)


def cost(rule: Rule) -> CostClass:
    """Return what a sample of what *rule* reads costs."""
    found = {_cost(leaf) for leaf in leaves(rule.condition)}
    return next(one for one in (CostClass.ORDERED, CostClass.RUNNING, CostClass.NEWEST) if one in found)


def _cost(leaf: Comparison | Absent) -> CostClass:
    functions: list[Function] = []
    expression = Instant(leaf.selector) if isinstance(leaf, Absent) else leaf.expression
    if isinstance(expression, Spatial):
        functions.append(expression.function)
        expression = expression.member
    if isinstance(expression, Temporal):
        functions.append(expression.function)
    if any(function.is_order or function.is_quantifier for function in functions):
        return CostClass.ORDERED
    return CostClass.RUNNING if functions else CostClass.NEWEST
