"""The stages that notices pass on their way to a receiver: each small, pure, and given the time.

What a stage does not let go waits in the outbox; nothing is kept here that a restart must not lose.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import attrs

from .alert import Alert, Notice, State
from .delivery import Common, Manner, Remark, Story, changed
from .selector import Endpoint
from .silence import Silence

__all__ = [
    "Damping",
    "Pace",
    "Place",
    "Sifted",
    "back_off",
    "escalate",
    "group_of",
    "mute",
    "pair",
    "place_of",
    "sooner",
]


_FORGOTTEN = 100  # places whose time may be over that are looked at at once


@attrs.frozen
class Sifted:
    """What becomes of stories: they go on, they are dropped, or, in neither list, they wait."""

    go: list[Story] = attrs.field(factory=list[Story])
    dropped: list[Story] = attrs.field(factory=list[Story])
    wake: int | None = None
    """When those that wait may go on, as far as time alone decides."""


def sooner(*times: int | None) -> int | None:
    """Return the first of *times* that there are."""
    return min((time for time in times if time is not None), default=None)


# -- deduplicate


def pair(notices: Iterable[Notice]) -> list[Story]:
    """Return what the *notices* of one receiver tell, alert by alert, in the order of what happened.

    A notice that is there twice counts once. An alert whose begin and end both wait is one story: the
    receiver was away, and is told once, as ended.
    """
    pairs: dict[str, dict[State, Notice]] = {}
    for notice in notices:
        pairs.setdefault(notice.alert.id, {}).setdefault(notice.alert.state, notice)
    stories = [Story(tuple(both[state] for state in State if state in both)) for both in pairs.values()]
    return sorted(stories, key=lambda story: (changed(story.alert), story.alert.id))


# -- mute


def mute(silences: Sequence[Silence], now: int, stories: Iterable[Story]) -> Sifted:
    """Hold begins that are silenced or acknowledged; an alert that ends meanwhile is told of neither way.

    The end of an alert whose begin was told is told, silence or not: whoever worries may stop.
    """
    go, dropped, wake = list[Story](), list[Story](), None
    present = [silence for silence in silences if silence.since <= now < silence.until]
    for story in stories:
        begins, key, until = story.begins, story.alert.key, None
        if begins and present:
            until = max((silence.until for silence in present if silence.mutes(key, now)), default=None)
        if not begins or not (story.alert.acknowledged or until):
            go.append(story)
        elif story.ends:
            dropped.append(story)
        else:
            wake = sooner(wake, until)
    return Sifted(go, dropped, wake)


# -- escalate


def escalate(after: float, now: int, stories: Iterable[Story]) -> Sifted:
    """Hold begins until they are *after* seconds old; an alert that did not last so long is told of neither way."""
    go, dropped, wake = list[Story](), list[Story](), None
    for story in stories:
        ripe = story.alert.since + round(after * 1000)
        lasted = now if story.alert.until is None else story.alert.until
        if not after or not story.begins or lasted >= ripe:
            go.append(story)
        elif story.ends:
            dropped.append(story)
        else:
            wake = sooner(wake, ripe)
    return Sifted(go, dropped, wake)


# -- damp flapping

Place: TypeAlias = tuple[int, Endpoint]
"""Where alerts begin and end: the number of an enrolment, and an endpoint or group."""


def place_of(alert: Alert) -> Place:
    """Return where *alert* began."""
    return alert.enrolment, alert.key


@attrs.define
class _Spell:
    """How one place changed of late."""

    recent: deque[int]
    """The last changes, at most one more than are tolerated."""
    entered: int | None = None
    """The change that made it flap; None if it never did."""
    ended: int | None = None
    """The last change of the flapping that is over."""


@attrs.define
class Damping:
    """Recognizes flapping: more than :attr:`changes` begins and ends of one place within :attr:`within` seconds.

    The change that passes the limit is told and marked as flapping. Those that follow wait until there was none
    for :attr:`within`; then the last one is told, marked as calmed, and stands for all of them.
    """

    changes: int = attrs.field(default=6, validator=attrs.validators.ge(1))
    within: float = attrs.field(default=600.0, validator=[attrs.validators.gt(0), attrs.validators.le(86400)])
    _spells: dict[Place, _Spell] = attrs.field(init=False, factory=lambda: dict[Place, _Spell]())
    """What changed last is last."""

    def see(self, alerts: Iterable[Alert]) -> None:
        """Learn of changes; those that are not newer than known ones of the same place are known."""
        for alert in sorted(alerts, key=changed):
            place, at = place_of(alert), changed(alert)
            spell = self._spells.pop(place, None) or _Spell(deque(maxlen=self.changes + 1))
            self._spells[place] = spell
            last = spell.recent[-1] if spell.recent else None
            if last is not None and at <= last:
                continue
            if last is not None and at - last >= self._span:
                spell.recent.clear()
                if spell.entered is not None and spell.ended is None:
                    spell.ended = last
            spell.recent.append(at)
            crowded = len(spell.recent) > self.changes and at - spell.recent[0] < self._span
            if crowded and (spell.entered is None or spell.ended is not None):
                spell.entered, spell.ended = at, None

    def forget(self, now: int, is_waiting: Callable[[Place], bool]) -> None:
        """Let go of what changed long ago, unless it *is_waiting* to be told of: of some of it at each call."""
        old = now - 2 * self._span
        for place in list(itertools.islice(self._spells, _FORGOTTEN)):
            spell = self._spells[place]
            if spell.recent[-1] >= old:
                break
            del self._spells[place]
            if is_waiting(place):
                self._spells[place] = spell  # as the last to be looked at again

    def damp(self, now: int, stories: Iterable[Story]) -> Sifted:
        """Mark what begins to flap, hold what flaps, and tell once of what calmed."""
        go, wake = list[Story](), None
        calmed: dict[Place, list[Story]] = {}
        for story in stories:
            place = place_of(story.alert)
            spell = self._spells.get(place)
            if spell is None or spell.entered is None or not _within(spell, changed(story.alert)):
                go.append(story)
            elif any(changed(notice.alert) == spell.entered for notice in story.notices):
                go.append(attrs.evolve(story, remark=Remark.FLAPPING))
            elif now >= (calm := spell.recent[-1] + self._span) or spell.ended is not None:
                calmed.setdefault(place, []).append(story)
            else:
                wake = sooner(wake, calm)
        go += [story for of_place in calmed.values() for story in _summed(of_place)]
        return Sifted(go, wake=wake)

    @property
    def _span(self) -> int:
        return round(self.within * 1000)


def _within(spell: _Spell, at: int) -> bool:
    assert spell.entered is not None
    return spell.entered <= at and (spell.ended is None or at <= spell.ended)


def _summed(stories: list[Story]) -> list[Story]:
    """Return the last story, and those that end what the receiver believes to go on; the last covers the others."""
    *others, last = stories
    covered = tuple(notice for story in others if story.begins for notice in story.settled)
    ends = [attrs.evolve(story, remark=Remark.CALMED) for story in others if not story.begins]
    return [*ends, attrs.evolve(last, remark=Remark.CALMED, covered=covered)]


# -- group


def group_of(manner: Manner, alert: Alert) -> Common:
    """Return what *alert* has in common with those that it is told together with."""
    return tuple((name, _common(name, alert)) for name in manner.group_by)


def _common(name: str, alert: Alert) -> str:
    match name:
        case "subscription":
            return str(alert.enrolment)
        case "severity":
            return alert.severity.value
        case _:
            return ",".join(sorted(value for label, value in alert.key if label == name))


# -- limit the rate


@attrs.define
class Pace:
    """Lets *rate* deliveries a second go in the long run, and *burst* at once (the generic cell rate algorithm)."""

    _spent: float = 0.0
    """Until when, in milliseconds, the rate is used up by what went."""

    def ready(self, manner: Manner) -> int:
        """Return when the next delivery may go."""
        return math.ceil(self._spent - (manner.burst - 1) * 1000 / manner.rate)

    def take(self, manner: Manner, now: int) -> None:
        """Count a delivery that goes now."""
        self._spent = max(self._spent, now) + 1000 / manner.rate


# -- retry


def back_off(manner: Manner, delivery_id: str, attempts: int) -> int:
    """Return for how many milliseconds to wait after *attempts* failures.

    Doubled each time, up to a bound; spread so that receivers of one broken service do not come back at once. The
    dice are a digest, so that the same failure waits as long whenever it is computed.
    """
    longest = min(manner.retry_first * 2.0 ** min(attempts, 64), manner.retry_most)
    digest = hashlib.blake2b(f"{delivery_id} {attempts}".encode(), digest_size=4).digest()
    return round(1000 * longest * (0.5 + int.from_bytes(digest) / 2**33))
