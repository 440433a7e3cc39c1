"""Keeps what was seen around the begin and the end of an alert (MAVIS, section IV, *selective storage*).

It is taken out of the history twice: at once, so that whoever is told can look, and when what followed is there too.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Protocol

import attrs

from .alert import Alert, State
from .language import Subscription
from .reference import Sample
from .selector import Endpoint, Selector, Series
from .tree import leaves

__all__ = ["AROUND", "Keeper"]

AROUND = 600_000
"""Milliseconds before and after that are kept."""

_MOST = 200_000  # samples around one begin or end
_LATER = 60_000  # milliseconds until a disk that failed is tried again
_WAITING = 10_000  # alerts whose surroundings are to be kept; the first of them go when there are more


class _Book(Protocol):
    def keep(self, name: str, state: State, samples: Iterable[Sample], through: int) -> None: ...
    def kept(self, name: str) -> dict[State, int]: ...


class Accepts(Protocol):
    """Says which series are wanted, as a selector does."""

    def accepts(self, series: Series, /) -> bool:
        """Whether *series* is."""
        ...


class _Past(Protocol):
    def read(self, wanted: Accepts, begin: int, end: int) -> Iterator[Sample]: ...


@attrs.frozen(order=True)
class _Due:
    at: int
    id: str
    state: State = attrs.field(order=False)
    alert: Alert = attrs.field(order=False)


class Keeper:
    """Remembers around which alerts samples are still to be kept."""

    def __init__(self, book: _Book, past: _Past, subscription: Callable[[int], Subscription | None]) -> None:
        """Take samples from *past*; *subscription* returns what the enrolment of a number asks for."""
        self._book = book
        self._past = past
        self._subscription = subscription
        self._due: list[_Due] = []

    def __len__(self) -> int:
        """Return around how many begins and ends samples are still to be kept."""
        return len(self._due)

    def add(self, alerts: Iterable[Alert], now: int) -> None:
        """Keep what is around *alerts*, which have just begun or ended."""
        for alert in alerts:
            at = _changed(alert)
            self._push(_Due(now, alert.id, alert.state, alert))
            if at + AROUND > now:
                self._push(_Due(at + AROUND, alert.id, alert.state, alert))

    def recall(self, alerts: Iterable[Alert], now: int) -> None:
        """Go on after a restart with those of *alerts* that are lacking something."""
        self.add((alert for alert in alerts if self._lacks(alert)), now)

    def step(self, now: int) -> bool:
        """Keep what is around one alert, if one is due; tell whether there was one. Raises what the book raises."""
        if not self._due or self._due[0].at > now:
            return False
        due = heapq.heappop(self._due)
        at = _changed(due.alert)
        end = min(at + AROUND, now)
        samples = itertools.islice(self._past.read(self._wanted(due.alert), at - AROUND, end + 1), _MOST)
        try:
            with suppress(LookupError):  # it was forgotten meanwhile
                self._book.keep(due.id, due.state, samples, end)
        except OSError:
            self._push(attrs.evolve(due, at=now + _LATER))
            raise
        return True

    def _push(self, due: _Due) -> None:
        if len(self._due) < _WAITING:
            heapq.heappush(self._due, due)

    def _lacks(self, alert: Alert) -> bool:
        return self._book.kept(alert.id).get(alert.state, 0) < _changed(alert) + AROUND

    def _wanted(self, alert: Alert) -> _Wanted:
        subscription = self._subscription(alert.enrolment)
        if subscription is None:
            return _Wanted(_source(alert.key), frozenset(), ())
        selectors = tuple(leaf.selector for leaf in leaves(subscription.rule.condition))
        return _Wanted(_source(alert.key), frozenset(subscription.handling.keep), selectors)


@attrs.frozen
class _Wanted:
    """All metrics of an alert's source, of which an alert of a group has none; what it is about, and what to keep."""

    source: frozenset[tuple[str, str]] | None
    metrics: frozenset[str]
    selectors: tuple[Selector, ...]

    def accepts(self, series: Series) -> bool:
        """Whether *series* is wanted."""
        if series.metric in self.metrics:
            return True
        if self.source is None:
            return any(selector.accepts(series) for selector in self.selectors)
        return self.source == _source(series.endpoint)


def _changed(alert: Alert) -> int:
    return alert.since if alert.until is None else alert.until


def _source(endpoint: Endpoint) -> frozenset[tuple[str, str]] | None:
    """Return the labels that say which domain or host *endpoint* is part of; None if none do."""
    domain = frozenset(pair for pair in endpoint if pair[0] == "domain")
    return domain or frozenset(pair for pair in endpoint if pair[0] == "host") or None
