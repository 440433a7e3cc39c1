"""Which series that are silent for long must stay: those that an alert needs, and those that a rule waits for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

from . import past
from .followed import keys
from .places import Places
from .sample import SILENT
from .selector import Endpoint, Series, project
from .tree import Absent, Comparison, Rule, leaves

__all__ = ["Waiting", "is_needed"]


class Waiting:
    """How long rules wait for series that are silent: what counts their silence in days must see it to the end."""

    def __init__(self, forget: int, interval: int) -> None:
        """Wait *forget* milliseconds at least; *interval* is that of most series."""
        self._forget = forget
        self._interval = interval
        self._paces: dict[int, int] = {}
        self._spans: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._unheard: dict[int, int] = {}  # since when, at the earliest, which series were known to be gone

    @property
    def spans(self) -> dict[str, int]:
        """For each metric that rules read how many milliseconds of its past matter to them."""
        return {metric: max(spans) for metric, spans in self._spans.items()}

    def follow(self, rule: Rule) -> None:
        """Wait for what *rule* reads."""
        span = past.span(rule, self._interval)
        for metric in _metrics(rule):
            self._spans[metric][span] += 1

    def leave(self, rule: Rule) -> None:
        """Wait for *rule* no longer."""
        span = past.span(rule, self._interval)
        for metric in _metrics(rule):
            spans = self._spans[metric]
            spans[span] -= 1
            if not spans[span]:
                del spans[span]
            if not spans:
                del self._spans[metric]

    def pace(self, number: int, interval: int | None) -> None:
        """Expect samples of the series of that *number* every *interval* milliseconds; None: as often as usual."""
        if interval is None or interval <= self._interval:
            self._paces.pop(number, None)
        else:
            self._paces[number] = interval

    def hear(self, numbers: Iterable[int]) -> None:
        """Take note that there are samples of these series."""
        if self._unheard and not self._unheard.keys().isdisjoint(numbers):
            for number in numbers:
                self._unheard.pop(number, None)

    def over(self, unheard: Iterable[int], find: Callable[[int], Series | None], now: int) -> list[int]:
        """Return those of *unheard* that no rule waits for; all are series that were silent for *forget* or longer."""
        found: list[int] = []
        for number in unheard:
            series = find(number)
            if series is None:
                continue
            longest = max(self._spans.get(series.metric, ()), default=0) + SILENT * self._paces.get(number, 0)
            since = self._unheard.setdefault(number, now) if longest > self._forget else now
            if now - since >= longest - self._forget:
                found.append(number)
        return found

    def drop(self, numbers: Iterable[int]) -> None:
        """Let go of series that are forgotten: their numbers may be those of others."""
        for number in numbers:
            self._paces.pop(number, None)
            self._unheard.pop(number, None)


def _metrics(rule: Rule) -> set[str]:
    return {leaf.selector.metric for leaf in leaves(rule.condition)}


def is_needed(series: Series, rule: Rule, firing: set[Endpoint], going: set[int], places: Places) -> bool:
    """Tell whether an alert of *rule* needs *series* though all of *going* go, which are numbers of *places*.

    An alert that fires needs one series of its endpoint or group; one of an endpoint that looks at several needs all
    or none of them.
    """
    leading = [leaf for leaf in leaves(rule.condition) if _is_leading(rule, leaf)]
    for key in set(keys(rule, series)):
        if not rule.is_local and key not in firing:
            continue
        others = any(number not in going for leaf in leading for number in _members(leaf, key, places))
        if rule.is_local if others else key in firing:
            return True
    return False


def _is_leading(rule: Rule, leaf: Comparison | Absent) -> bool:
    """Whether alerts of *rule* exist because of what *leaf* reads, not merely look at it."""
    return leaf.by is None if rule.is_local else len(leaf.by or ()) == len(rule.by)


def _members(leaf: Comparison | Absent, key: Endpoint, places: Places) -> Iterator[int]:
    if leaf.by is None:
        series = Series(leaf.selector.metric, key)
        number = places.find(series)
        if number is not None and leaf.selector.accepts(series):
            yield number
        return
    labelled = [(name, value) for name, value in key if value]  # of a label that is missing the value is empty
    for place, number in places.accepted(leaf.selector, labelled):
        if key in project(places.endpoints[place], leaf.by):
            yield number
