"""From readings to what travels: series are numbered and declared, samples wait in columns until they are sent."""

from __future__ import annotations

import itertools
import secrets
from array import array
from collections.abc import Iterable
from typing import NamedTuple

import attrs

from mchannel import samples
from mchannel.agents.offload import Sieve
from mchannel.errors import CodecError
from mchannel.event import Event
from mchannel.samples import MOST_CUTS, Again, Declared, Named, Offload, Offloaded, Samples, declarations

__all__ = ["Publisher", "Reading"]

_LEAST_ROOM = 1024  # bytes; no channel is so narrow
_NEVER = -(1 << 62)
_IDLE = 600_000  # milliseconds without a reading after which a series may be gone
_CLUTTER = 1000  # series that are gone, which nobody minds


class Reading(NamedTuple):
    """One value of one series."""

    series: Named
    value: float
    at: int | None = None
    """Milliseconds of the Unix clock, when the value itself says when it was taken."""


@attrs.define(eq=False)
class Publisher:
    """Holds what was read until the channel has taken it, and no more than it may.

    An event is forgotten only after :meth:`pop`, that is when the channel has taken it. No I/O, no clock.
    """

    room: int = 60_000
    """Bytes of the longest event."""
    most: int = 1 << 18
    """Samples that may wait, at twenty bytes each; more, and the oldest are thrown away."""
    most_series: int = 1 << 16
    most_cuts: int = MOST_CUTS
    """Thresholds that it compares samples with for the broker, at most."""
    run: int = attrs.field(factory=lambda: secrets.randbits(62), init=False)
    dropped: int = attrs.field(default=0, init=False)
    """Samples that were thrown away; the broker is told of those of this run."""
    withheld: int = attrs.field(default=0, init=False)
    """Samples that were not sent, as the broker has no use for them."""
    refused: int = attrs.field(default=0, init=False)
    """Readings of series that have no valid name, or are too many."""
    _numbers: dict[Named, int] = attrs.field(factory=dict[Named, int], init=False)
    _told: int = attrs.field(default=0, init=False)
    """Series that were declared: those with lower numbers,"""
    _changed: set[int] = attrs.field(factory=set[int], init=False)
    """but for these, which have another interval since."""
    _intervals: array[int] = attrs.field(factory=lambda: array("q"), init=False)
    """Of each series, in milliseconds; 0 while it is not known."""
    _dropped_before: int = attrs.field(default=0, init=False)
    """How many had been dropped when this run began."""
    _read: array[int] = attrs.field(factory=lambda: array("q"), init=False)
    """When each series was read last."""
    _looked: int = attrs.field(default=_NEVER, init=False)
    """When it was looked for series that are gone."""
    _is_full: bool = attrs.field(default=False, init=False)
    _columns: tuple[array[int], array[float], array[int]] = attrs.field(
        factory=lambda: (array("I"), array("d"), array("q")), init=False
    )
    _newest: int = attrs.field(default=_NEVER, init=False)
    """Greatest time of all samples so far."""
    _sieve: Sieve | None = attrs.field(default=None, init=False)
    _is_strained: bool = attrs.field(default=False, init=False)
    _answer: Event | None = attrs.field(default=None, init=False)
    _leaving: tuple[Event, range, int] | None = attrs.field(default=None, init=False)
    """The event that is being sent, and which series are declared and how many samples are gone with it."""

    def __len__(self) -> int:
        """Return how many samples wait."""
        return len(self._columns[0])

    @property
    def series(self) -> int:
        """How many series have a number."""
        return len(self._numbers)

    def take(self, readings: Iterable[Reading], now: int, interval: int | None = None) -> None:
        """Take what was read at *now*, in milliseconds; the oldest samples give way to it.

        *interval*: milliseconds until it will be read again, if that is known.
        """
        if now - self._looked >= _IDLE or (self._is_full and now - min(self._read) >= _IDLE):
            self._look(now)
        known, sieve, last, intervals = self._numbers.get, self._sieve, self._read, self._intervals
        for series, value, said in readings:
            number = known(series)
            if number is None and (number := self._number(series)) is None:
                self.refused += 1
                continue
            last[number] = now
            if interval is not None and intervals[number] != interval:
                self._pace(number, interval)
            at = now if said is None else said
            self._newest = max(self._newest, at)
            if sieve is None or number not in sieve:
                self._append(number, value, at)
                continue
            rows = sieve.sift(number, value, at)
            self.withheld += not rows
            for row in rows:
                self._append(number, *row)
        if (excess := len(self) - self.most) > 0:
            self._drop(excess)

    def _append(self, number: int, value: float, at: int) -> None:
        numbers, values, times = self._columns
        numbers.append(number)
        values.append(value)
        times.append(at)

    def _drop(self, excess: int) -> None:
        kept = self._leaving[2] if self._leaving else 0  # may be with the broker already
        rows = slice(kept, kept + excess)
        numbers, _, times = self._columns
        if self._sieve is not None:
            for number, at in zip(numbers[rows], times[rows], strict=True):
                self._sieve.lost(number, at)
        for column in self._columns:
            del column[rows]
        self.dropped += excess

    def _number(self, series: Named) -> int | None:
        try:
            series.check()
        except ValueError:
            return None
        if len(self._numbers) >= self.most_series:
            self._is_full = True
            return None
        self._read.append(_NEVER)
        self._intervals.append(0)
        return self._numbers.setdefault(series, len(self._numbers))

    def _pace(self, number: int, interval: int) -> None:
        """Declare a series with another interval."""
        self._intervals[number] = interval
        if number < self._told:
            self._changed.add(number)
        if self._leaving is not None and number in self._leaving[1]:
            self._leaving = None

    def _look(self, now: int) -> None:
        """Begin a new run when series that are gone take up room: the broker has a bound for them, too."""
        self._looked = now
        idle = sum(now - read >= max(_IDLE, 2 * rest) for read, rest in zip(self._read, self._intervals, strict=True))
        if idle and (self._is_full or (idle > _CLUTTER and 2 * idle > len(self._read))):
            self._begin()

    def _begin(self) -> None:
        """Begin a new run without the series that are gone, once nothing waits that speaks of them by number."""
        self._give_back()
        if len(self):
            return
        self.run = secrets.randbits(62)
        self._numbers.clear()
        self._changed.clear()
        del self._read[:], self._intervals[:]
        self._told, self._dropped_before, self._is_full, self._leaving = 0, self.dropped, False, None
        self._answer = None

    def again(self) -> None:
        """Declare all series again: somebody listens who does not know them, nor what others asked for."""
        self._told = 0
        self._changed.clear()
        self._leaving = self._answer = None
        self._sift(None)

    def heard(self, event: Event) -> None:
        """Do what the broker asks; raises CodecError when it is malformed."""
        match event.topic:
            case samples.AGAIN:
                if Again.from_event(event).run == self.run:
                    self.again()
            case samples.OFFLOAD:
                offer = Offload.from_event(event)
                if offer.run == self.run:
                    is_taken = offer.cuts and len(offer.cuts) <= self.most_cuts and not self._is_strained
                    self._sift(Sieve(offer, self._newest) if is_taken else None)
                    self._tell_sifting()
            case _:
                raise CodecError(f"a publisher knows nothing of {event.topic[:64]!r}")

    def strain(self, is_strained: bool) -> None:
        """Say whether this process is too busy to compare samples with thresholds for the broker."""
        self._is_strained = is_strained
        if is_strained:
            self._give_back()

    def _give_back(self) -> None:
        """Compare nothing for the broker from now on, and tell it so."""
        if self._sieve is not None:
            self._sift(None)
            self._tell_sifting()

    def _sift(self, sieve: Sieve | None) -> None:
        """Go over to another sieve, after the broker was given what the one before held back."""
        for row in self._sieve.rest() if self._sieve is not None else ():
            self._append(*row)
        self._sieve = sieve

    def _tell_sifting(self) -> None:
        self._answer = Offloaded(self.run, self._sieve.cuts if self._sieve is not None else 0).to_event()

    def first(self) -> Event | None:
        """Return what is to be sent next, the same until :meth:`pop`; None when there is nothing."""
        if self._leaving is None:
            answer = (self._answer, range(0), 0) if self._answer is not None else None
            self._leaving = self._declaration() or answer or self._samples()
        return self._leaving[0] if self._leaving else None

    def pop(self) -> None:
        """Forget what :meth:`first` returned."""
        if self._leaving is not None:
            event, series, rows = self._leaving
            self._told = max(self._told, series.stop)
            self._changed.difference_update(series)
            for column in self._columns:
                del column[:rows]
            if event is self._answer:
                self._answer = None
            self._leaving = None

    def narrow(self) -> bool:
        """Make events half as long, as the channel takes no long ones; False when they are as short as can be."""
        self.room, was = max(_LEAST_ROOM, self.room // 2), self.room
        self._leaving = None
        return self.room < was

    def _declaration(self) -> tuple[Event, range, int] | None:
        first = min(self._changed, default=self._told)
        if first == len(self._numbers):
            return None
        untold = self._changed if first < self._told else range(first, len(self._numbers))
        interval, end = self._intervals[first], first + 1
        while end in untold and self._intervals[end] == interval:
            end += 1
        series = list(itertools.islice(self._numbers, first, end))
        declared: Declared = next(declarations(self.run, first, series, self.room, interval or None))
        return declared.to_event(), range(first, first + len(declared.series)), 0

    def _samples(self) -> tuple[Event, range, int] | None:
        if not self._columns[0]:
            return None
        rows = slice(Samples.most_in(self.room))
        numbers, values, times = self._columns
        sent = Samples(self.run, numbers[rows], values[rows], times[rows], self.dropped - self._dropped_before)
        return sent.to_event(sent.times[-1] / 1000), range(0), len(sent)
