"""Keeps what was seen around the begin and the end of an alert (MAVIS, section IV, *selective storage*).

It is taken out of the history twice: at once, so that whoever is told can look, and when what followed is there too.
Sources, guests and hosts, take turns; when too much waits, it is the one with the most whose alerts have to do without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Protocol, TypeAlias

import attrs

from . import context
from .alert import Alert, State
from .delivery import changed
from .language import Subscription
from .selector import Endpoint, Selector, Series
from .tree import leaves
from .turns import Turns

__all__ = ["AROUND", "Due", "Keeper"]

AROUND = 600_000
"""Milliseconds before and after that are kept."""

_LATER = 60_000  # milliseconds until a disk that failed is tried again
_WAITING = 10_000  # alerts whose surroundings are to be kept; when there are more, nothing is kept of some


_Source: TypeAlias = frozenset[tuple[str, str]] | int
"""The labels that say whose alert it is; of one that is nobody's, as of all hosts together, its subscription."""


class _Book(Protocol):
    def keep(self, name: str, state: State, packed: bytes, through: int) -> None: ...
    def kept(self, name: str) -> dict[State, int]: ...


class Accepts(Protocol):
    """Says which series are wanted, as a selector does."""

    def accepts(self, series: Series, /) -> bool:
        """Whether *series* is."""
        ...


class _Past(Protocol):
    def columns(self, wanted: Accepts, begin: int, end: int) -> Iterator[context.Seen]: ...


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

    def is_first(self, series: Series) -> bool:
        """Whether *series* was named, rather than being of the same source."""
        return series.metric in self.metrics or any(selector.accepts(series) for selector in self.selectors)


@attrs.frozen(order=True)
class Due:
    """An alert around whose begin or end samples are to be kept."""

    at: int
    """From when."""
    id: str
    alert: Alert = attrs.field(order=False)
    wanted: _Wanted = attrs.field(order=False)


class Keeper:
    """Remembers around which alerts samples are still to be kept."""

    def __init__(self, book: _Book, past: _Past, subscription: Callable[[int], Subscription | None]) -> None:
        """Take samples from *past*; *subscription* returns what the enrolment of a number asks for."""
        self._book = book
        self._past = past
        self._subscription = subscription
        self._due: Turns[_Source, Due] = Turns(_WAITING)
        self._left_out: Counter[_Source] = Counter()

    def __len__(self) -> int:
        """Return around how many begins and ends samples are still to be kept."""
        return len(self._due)

    @property
    def problem(self) -> str:
        """How many begins and ends have to do without samples, in one line; empty once few wait."""
        if not self._left_out or self._has_room:
            return ""
        source, count = self._left_out.most_common(1)[0]
        who = f"subscription {source}" if isinstance(source, int) else " ".join(value for _, value in sorted(source))
        return f"too many alerts at once: {self._left_out.total()} times context is not kept, {count} of them of {who}"

    def add(self, alerts: Iterable[Alert], now: int) -> None:
        """Keep what is around *alerts*, which have just begun or ended."""
        for alert in alerts:
            at, wanted = changed(alert), self._wanted(alert)
            self._push(Due(now, alert.id, alert, wanted))
            if at + AROUND > now:
                self._push(Due(at + AROUND, alert.id, alert, wanted))

    def recall(self, alerts: Iterable[Alert], now: int) -> None:
        """Go on after a restart with those of *alerts* that changed lately and are lacking something."""
        lately = (alert for alert in alerts if changed(alert) > now - 2 * AROUND)
        self.add((alert for alert in lately if self._lacks(alert)), now)

    def due(self, now: int) -> Due | None:
        """Return what is to be kept next, and is not remembered any more; None when nothing is due."""
        return self._due.pop(now)

    def look(self, due: Due, now: int) -> bytes:
        """Return what to keep, packed; this takes its time, and may be done by another thread."""
        at = changed(due.alert)
        end = min(at + AROUND, now)
        first, others = list[context.Seen](), list[context.Seen]()
        for seen in self._past.columns(due.wanted, at - AROUND, end + 1):
            (first if due.wanted.is_first(seen[0]) else others).append(seen)
        return context.packed((*first, *others))

    def keep(self, due: Due, packed: bytes, now: int) -> None:
        """Keep it; when the book refuses, which is raised, it is due again later."""
        try:
            with suppress(LookupError):  # it was forgotten meanwhile
                self._book.keep(due.id, due.alert.state, packed, min(changed(due.alert) + AROUND, now))
        except OSError:
            self._push(attrs.evolve(due, at=now + _LATER))
            raise

    def _push(self, due: Due) -> None:
        if self._has_room:
            self._left_out.clear()
        loser = self._due.push(due.wanted.source or due.alert.enrolment, due)
        if loser is not None:
            self._left_out[loser] += 1

    @property
    def _has_room(self) -> bool:
        return len(self._due) < _WAITING // 2

    def _lacks(self, alert: Alert) -> bool:
        return self._book.kept(alert.id).get(alert.state, 0) < changed(alert) + AROUND

    def _wanted(self, alert: Alert) -> _Wanted:
        subscription = self._subscription(alert.enrolment)
        if subscription is None:
            return _Wanted(_source(alert.key), frozenset(), ())
        selectors = tuple(leaf.selector for leaf in leaves(subscription.rule.condition))
        return _Wanted(_source(alert.key), frozenset(subscription.handling.keep), selectors)


def _source(endpoint: Endpoint) -> frozenset[tuple[str, str]] | None:
    """Return the labels that say which domain or host *endpoint* is part of; None if none do."""
    domain = frozenset(pair for pair in endpoint if pair[0] == "domain")
    return domain or frozenset(pair for pair in endpoint if pair[0] == "host") or None
