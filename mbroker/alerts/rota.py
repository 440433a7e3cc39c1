"""Whose turn it is to be told of: what waits for one receiver, by group and, inside of a group, by source.

Groups come round, and in each of them its sources: whoever has very much to say delays each other by one turn. What
this costs does not grow with what waits.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Collection
from typing import TypeAlias

import attrs

from .delivery import Common, Manner
from .stages import Place

__all__ = ["Rota"]

Source: TypeAlias = tuple[str, ...]
_SOURCE = ("host", "domain")  # labels that the broker gives, so that no guest can be many sources


@attrs.define
class _Group:
    sources: dict[Source, dict[Place, None]] = attrs.field(factory=lambda: dict[Source, dict[Place, None]]())
    """What waits, whose turn is next first."""
    turn: tuple[int, int] | None = None
    """When it may be told, and its place among those of that time; None when nothing waits."""
    told: int | None = None
    """When it was told last."""


@attrs.define
class Rota:
    """Places that have something to tell, and when their groups may be told."""

    _manner: Manner
    _groups: dict[Common, _Group] = attrs.field(init=False, factory=lambda: dict[Common, _Group]())
    _group_of: dict[Place, Common] = attrs.field(init=False, factory=lambda: dict[Place, Common]())
    _queue: list[tuple[int, int, Common]] = attrs.field(init=False, factory=lambda: list[tuple[int, int, Common]]())
    """When groups are ready, those of one time in turn; what disagrees with :attr:`_Group.turn` is over."""
    _count: itertools.count[int] = attrs.field(init=False, factory=itertools.count)
    _lately: deque[tuple[int, Common]] = attrs.field(init=False, factory=lambda: deque[tuple[int, Common]]())
    """Until when groups that were told are held back."""

    def enter(self, place: Place, group: Common, now: int) -> None:
        """Let *place* wait for its turn, unless it does."""
        if place in self._group_of:
            return
        self._forget(now)
        self._group_of[place] = group
        known = self._groups.setdefault(group, _Group())
        known.sources.setdefault(_source(place), {})[place] = None
        if known.turn is None:
            waited = now + round(self._manner.group_wait * 1000)
            self._put(group, known, waited if known.told is None else max(waited, self._held_back(known.told)))

    def leave(self, place: Place) -> None:
        """Let *place* wait no more, if it does."""
        group = self._group_of.pop(place, None)
        if group is None:
            return
        known, source = self._groups[group], _source(place)
        del known.sources[source][place]
        if not known.sources[source]:
            del known.sources[source]
        if not known.sources:
            known.turn = None
            if known.told is None:
                del self._groups[group]

    def first(self) -> tuple[int, Common] | None:
        """Return the group whose turn is next and when it is ready; None when nothing waits."""
        while self._queue:
            ready, count, group = self._queue[0]
            if group in self._groups and self._groups[group].turn == (ready, count):
                return ready, group
            heapq.heappop(self._queue)
        return None

    def portion(self, group: Common, most: int) -> list[Place]:
        """Return the first *most* places of *group*, one of each source in turn."""
        sources = itertools.islice(self._groups[group].sources.values(), most)
        turns, taken = deque(map(iter, sources)), list[Place]()
        while turns and len(taken) < most:
            source = turns.popleft()
            if (place := next(source, None)) is not None:
                taken.append(place)
                turns.append(source)
        return taken

    def told(self, group: Common, places: Collection[Place], now: int, *, more: bool) -> None:
        """Note that *group* was told of *places*. If there is *more*, that comes after all groups that are ready."""
        known = self._groups[group]
        for source in dict.fromkeys(map(_source, places)):
            known.sources[source] = known.sources.pop(source)
        if not more:
            known.told = now
            self._lately.append((self._held_back(now), group))
        else:
            self._put(group, known, now)
        for place in places:
            self.leave(place)

    def _put(self, group: Common, known: _Group, ready: int) -> None:
        known.turn = ready, next(self._count)
        heapq.heappush(self._queue, (*known.turn, group))

    def _held_back(self, told: int) -> int:
        return told + round(self._manner.group_interval * 1000)

    def _forget(self, now: int) -> None:
        """Let go of groups that the interval does not hold back any more."""
        while self._lately and self._lately[0][0] <= now:
            _, group = self._lately.popleft()
            known = self._groups.get(group)
            if known and not known.sources and known.told is not None and self._held_back(known.told) <= now:
                del self._groups[group]


def _source(place: Place) -> Source:
    """Return who is to be blamed when very much happens at *place*: a domain of a host, or a host."""
    labels = dict(place[1])
    return tuple(labels.get(name, "") for name in _SOURCE)
