"""Keeps what was seen around the begin and the end of an alert (MAVIS, section IV, *selective storage*).

It is taken out of the history twice: at once, so that whoever is told can look, and when what followed is there too.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Protocol

import attrs

from .alert import Alert, State
from .language import Subscription
from .places import Places
from .reference import Sample
from .selector import Endpoint, Label, Relation, Selector
from .tree import leaves

__all__ = ["AROUND", "Keeper"]

AROUND = 600_000
"""Milliseconds before and after that are kept."""

_SERIES = 1000  # whose samples are kept around one alert, at most
_MOST = 20_000  # samples of each metric
_LATER = 60_000  # milliseconds until a disk that failed is tried again
_WAITING = 10_000  # alerts whose surroundings are to be kept; the first of them go when there are more


class _Book(Protocol):
    def keep(self, id: str, samples: Iterable[Sample], state: State, through: int) -> None: ...  # noqa: A002
    def kept(self, id: str) -> dict[State, int]: ...  # noqa: A002


class _Past(Protocol):
    def read(self, selector: Selector, begin: int, end: int) -> Iterator[Sample]: ...


@attrs.frozen(order=True)
class _Due:
    at: int
    id: str
    state: State = attrs.field(order=False)
    alert: Alert = attrs.field(order=False)


class Keeper:
    """Remembers around which alerts samples are still to be kept."""

    def __init__(
        self, book: _Book, past: _Past, places: Callable[[], Places], subscription: Callable[[int], Subscription | None]
    ) -> None:
        """Take samples from *past*; *subscription* returns what the enrolment of a number asks for."""
        self._book = book
        self._past = past
        self._places = places
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
        samples = itertools.chain.from_iterable(
            itertools.islice(self._past.read(selector, at - AROUND, end), _MOST) for selector in self._around(due.alert)
        )
        try:
            with suppress(LookupError):  # it was forgotten meanwhile
                self._book.keep(due.id, samples, due.state, end)
        except OSError:
            self._push(attrs.evolve(due, at=now + _LATER))
            raise
        return True

    def _push(self, due: _Due) -> None:
        if len(self._due) < _WAITING:
            heapq.heappush(self._due, due)

    def _lacks(self, alert: Alert) -> bool:
        return self._book.kept(alert.id).get(alert.state, 0) < _changed(alert) + AROUND

    def _around(self, alert: Alert) -> Iterator[Selector]:
        """Yield what to look for: all metrics of the alert's source, and what the subscription keeps besides."""
        places, found = self._places(), 0
        subscription = self._subscription(alert.enrolment)
        labels = _source(alert.key)
        wanted: dict[Selector, None] = {}
        if subscription is not None:
            wanted |= {leaf.selector: None for leaf in leaves(subscription.rule.condition) if not labels}
            wanted |= {Selector(metric): None for metric in subscription.handling.keep}
        wanted |= {Selector(metric, labels): None for metric in sorted(places.metrics) if labels}
        for selector in wanted:
            found += sum(1 for _ in places.accepted(selector))
            if found > _SERIES:
                return
            yield selector


def _changed(alert: Alert) -> int:
    return alert.since if alert.until is None else alert.until


def _source(key: Endpoint) -> tuple[Label, ...]:
    """Return what the series of the domain or host that *key* names have in common; none if it names none."""
    names: Mapping[str, str] = dict(key)
    if domain := names.get("domain"):
        return (Label("domain", Relation.IS, domain),)
    if host := names.get("host"):
        return (Label("host", Relation.IS, host), Label("domain", Relation.IS, ""))
    return ()
