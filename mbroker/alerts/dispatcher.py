"""Where the deliveries to one receiver leave from, one at a time.

What waits is known here by the ids of its alerts, place by place; the notices stay in the outbox and are looked at
when there is news of their place, when time or a silence that ends may let them go, and when they leave. A look takes
a bounded number of them, whatever waits.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Container, Iterable, Sequence
from typing import TypeAlias

import attrs

from .alert import Notice
from .delivery import Common, Delivery, Manner, NotDelivered, Story, changed
from .rota import Rota
from .stages import Pace, Place, Sifted, back_off, group_of, place_of, sooner

__all__ = ["LOOK", "Dispatcher", "Failed", "Sift"]

LOOK = 250
"""Alerts that are looked at at once, or a few more: it takes some milliseconds."""

_AGAIN = 10_000  # milliseconds until it is looked for what was dropped: that may not have been written down

Sift: TypeAlias = Callable[[Iterable[Notice]], Sifted]
"""Says what may be told of the notices of one place."""


@attrs.frozen
class Failed:
    """What becomes of a delivery that failed; notices that are named nowhere are due still."""

    postponed: Notice | None = None
    """The one that counts the failures, for all."""
    due: int = 0
    """When it is tried again."""
    refused: tuple[Notice, ...] = ()
    """Those that are given up."""


@attrs.frozen
class _Flight:
    """A delivery that is being made, or is under way."""

    group: Common
    places: tuple[Place, ...]
    """What it tells of; under way, only those of which it tells all."""
    more: bool
    """Whether it is only the first part of what the group has to tell."""


@attrs.define
class Dispatcher:
    """What waits for *receiver*, and whether it may be told now."""

    receiver: str
    manner: Manner
    newest: int = attrs.field(init=False, default=0)
    """The highest number of a notice that is known here."""
    _behind: bool = attrs.field(init=False, default=False)
    """Whether there may be more news."""
    _rests_until: int = attrs.field(init=False, default=0)
    """The back-off after a failure, for the whole receiver."""
    _pace: Pace = attrs.field(init=False, factory=Pace)
    _flight: _Flight | None = attrs.field(init=False, default=None)
    _alerts: dict[Place, dict[str, None]] = attrs.field(init=False, factory=lambda: dict[Place, dict[str, None]]())
    """All places of which something may be to be told, and the alerts of them."""
    _fresh: dict[Place, None] = attrs.field(init=False, factory=lambda: dict[Place, None]())
    """Those that are to be looked at."""
    _held: dict[Place, int | None] = attrs.field(init=False, factory=lambda: dict[Place, int | None]())
    """Those that wait for a time or, None, for news."""
    _wakes: list[tuple[int, int, Place]] = attrs.field(init=False, factory=lambda: list[tuple[int, int, Place]]())
    """When those come that are held; what disagrees with :attr:`_held` is over."""
    _count: itertools.count[int] = attrs.field(init=False, factory=itertools.count)
    _rota: Rota = attrs.field(init=False)
    """Those that may be told."""
    _asked: dict[Place, list[str]] = attrs.field(init=False, factory=lambda: dict[Place, list[str]]())
    """Those that are looked at now, and the alerts of them."""
    _looks_first: bool = attrs.field(init=False, default=False)
    """Whether what is due leaves in the next step, because there is news."""
    _chosen: _Flight | None = attrs.field(init=False, default=None)
    """What leaves, if looking at it does not tell otherwise."""

    def __attrs_post_init__(self) -> None:
        """Make what needs the manner."""
        self._rota = Rota(self.manner)

    def __contains__(self, place: Place) -> bool:
        """Whether something may be to be told of *place*."""
        return place in self._alerts

    def is_idle(self, now: int) -> bool:
        """Whether it may be told something."""
        return self._flight is None and self._rests_until <= now

    def learn(self, news: Sequence[tuple[int, Notice]]) -> None:
        """Take note of notices and their numbers, all that are newer than :attr:`newest`, or the first of them."""
        for number, notice in news:
            self.newest = number
            place = place_of(notice.alert)
            self._alerts.setdefault(place, {})[notice.alert.id] = None
            self._look(place)
        self._behind = len(news) >= LOOK

    def learn_silences(self) -> None:
        """Take note that other silences hold now."""
        self._fresh.update(dict.fromkeys(self._held))
        self._held.clear()
        self._wakes.clear()

    def wanted(self, now: int) -> list[str]:
        """Return the ids of the alerts of which to hand all untold notices to :meth:`plan`."""
        for _ in range(LOOK):
            if (wake := self._wake()) is None or wake > now:
                break
            self._look(heapq.heappop(self._wakes)[2])
        self._asked, self._chosen = {}, None
        group, most = self._due(now), self.manner.most
        has_news = bool(self._fresh)
        self._looks_first = group is not None and has_news and not self._looks_first  # what is new may go along
        if group is not None and not self._looks_first:
            places = self._rota.portion(group, most + 1)
            self._ask(places[:most], max(most, LOOK))
            self._chosen = _Flight(group, tuple(self._asked), len(self._asked) < len(places))
        self._ask(self._fresh, LOOK)
        return [name for names in self._asked.values() for name in names]

    def plan(self, now: int, notices: Iterable[Notice], sift: Sift) -> tuple[Delivery | None, list[Notice]]:
        """Return the delivery that leaves now, if any, and what nobody needs to hear of.

        For the delivery, :meth:`delivered` or :meth:`failed` has to be called before there is another.
        """
        found = dict[Place, list[Notice]]()
        for notice in notices:
            found.setdefault(place_of(notice.alert), []).append(notice)
        asked, self._asked = self._asked, {}
        chosen, self._chosen = self._chosen, None
        go, dropped = dict[Place, list[Story]](), list[Notice]()
        for place, names in asked.items():
            sifted = self._see(place, names, found.get(place, []), now, sift)
            dropped += [notice for story in sifted.dropped for notice in story.settled]
            go[place] = sifted.go
        chosen = chosen or self._seen_already(go, now)
        leaving = [story for place in chosen.places for story in go[place]] if chosen else []
        if chosen is None or not leaving:
            return None, dropped
        leaving.sort(key=lambda story: (changed(story.alert), story.alert.id))
        most = self.manner.most
        later = {place_of(story.alert) for story in leaving[most:]}
        whole = dict.fromkeys(place_of(story.alert) for story in leaving).keys() - later
        self._flight = _Flight(chosen.group, tuple(whole), chosen.more or bool(later))
        self._pace.take(self.manner, now)
        return Delivery(self.receiver, chosen.group, tuple(leaving[:most])), dropped

    def wake(self, now: int) -> int | None:
        """Return when to plan again; None when only news or the end of the delivery under way can bring something."""
        if self._flight:
            return None
        if self._rests_until > now:
            return self._rests_until
        if self._fresh or self._behind:
            return now
        first = self._rota.first()
        return sooner(self._wake(), None if first is None else max(first[0], self._pace.ready(self.manner)))

    def delivered(self, delivery: Delivery, now: int) -> None:
        """Take note that *delivery* was told and written down."""
        assert self._flight is not None
        self._rota.told(self._flight.group, self._flight.places, now, more=self._flight.more)
        self._flight, self._rests_until = None, 0
        for story in delivery.stories:
            self._look(place_of(story.alert))  # something may be left

    def failed(self, delivery: Delivery, now: int, failure: NotDelivered) -> Failed:
        """Return what becomes of the notices of *delivery*, which was not told."""
        self._flight = None
        eldest = delivery.eldest
        wait = back_off(self.manner, eldest.alert.id, eldest.attempts)
        asked = round(min(failure.wait or 0.0, self.manner.retry_most) * 1000)
        self._rests_until = now + max(wait, asked)
        if failure.permanent:
            return Failed(refused=delivery.notices)
        if eldest.attempts + 1 >= self.manner.tries:
            return Failed(refused=(eldest,))
        return Failed(postponed=eldest, due=self._rests_until)

    def _due(self, now: int) -> Common | None:
        """Return the group that is to be told now, if any."""
        first = self._rota.first()
        return first[1] if first is not None and max(first[0], self._pace.ready(self.manner)) <= now else None

    def _seen_already(self, seen: Container[Place], now: int) -> _Flight | None:
        """Return what may leave without another look, as all of it was *seen*: mostly what is new and need not wait."""
        if (group := self._due(now)) is None:
            return None
        places, most = self._rota.portion(group, self.manner.most + 1), self.manner.most
        if not all(place in seen for place in places[:most]):
            return None
        return _Flight(group, tuple(places[:most]), len(places) > most)

    def _ask(self, places: Iterable[Place], most: int) -> None:
        """Look at the first of *places*, with about *most* alerts."""
        asked = 0
        for place in places:
            if asked >= most:
                break
            if place not in self._asked:
                self._asked[place] = list(itertools.islice(self._alerts[place], LOOK))
                asked += len(self._asked[place])

    def _see(self, place: Place, names: list[str], notices: list[Notice], now: int, sift: Sift) -> Sifted:
        """Put *place* where it belongs: all that is to be told of its alerts *names* are *notices*."""
        self._fresh.pop(place, None)
        alerts, there = self._alerts[place], {notice.alert.id for notice in notices}
        for name in names:
            if name not in there:
                del alerts[name]
        due = max((notice.due for notice in notices), default=now)
        sifted = sift(notices) if due <= now else Sifted(wake=due)
        if sifted.go:
            self._rota.enter(place, group_of(self.manner, sifted.go[0].alert), now)
            return sifted
        self._rota.leave(place)
        if not alerts:
            del self._alerts[place]
        elif not notices:
            self._look(place)
        else:
            self._hold(place, sooner(sifted.wake, now + _AGAIN if sifted.dropped else None))
        return sifted

    def _look(self, place: Place) -> None:
        self._held.pop(place, None)
        self._fresh[place] = None

    def _hold(self, place: Place, wake: int | None) -> None:
        self._held[place] = wake
        if wake is not None:
            heapq.heappush(self._wakes, (wake, next(self._count), place))

    def _wake(self) -> int | None:
        """Return when the first of those comes that are held."""
        while self._wakes and self._held.get(self._wakes[0][2]) != self._wakes[0][0]:
            heapq.heappop(self._wakes)
        return self._wakes[0][0] if self._wakes else None
