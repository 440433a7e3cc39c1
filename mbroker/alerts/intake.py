"""What publishers send, made the engine's own: numbers translated, identities attached, all of it bounded.

Who speaks is known from the channel: a guest's series carry its name as ``domain``, a host's as ``host``, and only
a host may speak of domains and groups. What a publisher may not say is dropped, counted, and told once a minute.
Nothing here reads a clock; times are milliseconds of the Unix clock.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import Enum

import attrs

from mchannel.samples import MOST_SERIES, Declared, Named, Samples

from .selector import GROUP, Endpoint, Series

__all__ = ["Arrived", "Bounds", "Intake", "Refusal"]

DOMAIN, HOST = "domain", "host"
"""Labels that the channel's identity decides."""

_HELD = 100_000  # samples of one source that wait for their declaration, such as after a restart of the broker
_BATCHES = 256  # of them
_RUNS = 8  # of one source: its publishers, each with the numbers of its present life
_PATIENCE = 5_000  # between two wishes for a new declaration
_MINUTE = 60_000
_BURST = 10  # seconds' worth of new series that may come at once: all of a publisher that has just begun
_BACKLOG = 15  # seconds' worth of samples that may come at once: all that waited while the broker was away
_IN_STEP = 1000  # by which clocks may differ and nobody is told


@attrs.frozen
class Bounds:
    """What one source, a guest or a host, may ask of the broker."""

    series: int = attrs.field(default=20_000, validator=[attrs.validators.ge(1), attrs.validators.le(MOST_SERIES)])
    """Most series."""
    new_series: int = attrs.field(default=2_000, validator=attrs.validators.ge(1))
    """New series a second, in the long run; ten times as many at once."""
    samples: int = attrs.field(default=20_000, validator=attrs.validators.ge(1))
    """Samples a second, in the long run; fifteen times as many at once, after the broker was away.

    The default is for as many series as there may be, once a second; a host with 1,000 of them needs 1,000. With
    ``late`` this also bounds what waits in memory: those of ``late`` + 15 seconds, about 20 bytes each.
    """
    ahead: float = attrs.field(default=60.0, validator=attrs.validators.ge(0))
    """Seconds by which the time of a sample may be in the future.

    Such a sample counts as of now, and those of its series that came with it as so much earlier; who is ahead by more
    than a second is told of. So no clock but the broker's decides when the alerts of others begin and end.
    """
    behind: float = attrs.field(default=86_400.0, validator=attrs.validators.gt(0))
    """Seconds by which it may be in the past, as when the broker was away."""


class Refusal(Enum):
    """Why something was dropped; the values are what the operator is told."""

    IMPERSONATION = "series named after another host, domain or group"
    SERIES = "series above the limit of series"
    HASTE = "series that came faster than new ones may; they are asked for again"
    UNKNOWN = "samples of series that were not declared"
    RATE = "samples above the limit a second"
    FUTURE = "samples from the future; is its clock right?"
    PAST = "samples that are too old"


@attrs.frozen(eq=False)
class Arrived:
    """Samples as the engine takes them, in the order in which they came."""

    numbers: array[int]
    values: array[float]
    times: array[int]

    @classmethod
    def none(cls) -> Arrived:
        """Return no samples."""
        return cls(array("I"), array("d"), array("q"))

    def __len__(self) -> int:
        """Return how many they are."""
        return len(self.numbers)

    def extend(self, others: Arrived) -> None:
        """Let *others* come after these."""
        self.numbers.extend(others.numbers)
        self.values.extend(others.values)
        self.times.extend(others.times)

    def kept(self, keep: Iterable[object]) -> Arrived:
        """Return those for which *keep* is true."""
        chosen = list(keep)
        return Arrived(
            array("I", itertools.compress(self.numbers, chosen)),
            array("d", itertools.compress(self.values, chosen)),
            array("q", itertools.compress(self.times, chosen)),
        )


@attrs.define
class _Allowance:
    """So many a second, and *burst* at once."""

    rate: int
    burst: int
    left: float
    at: int

    def take(self, wanted: int, now: int) -> int:
        """Return how many of the *wanted* may be had now."""
        self.left = min(self.burst, self.left + max(now - self.at, 0) * self.rate / 1000)
        self.at = max(self.at, now)
        granted = min(wanted, int(self.left))
        self.left -= granted
        return granted


_COLUMNS = ("numbers", "values", "times")
_UNKNOWN, _BANNED = -1, -2
"""In place of an engine's number: not declared (yet), and not to be declared again."""


@attrs.define(eq=False)
class _Source:
    """A guest or a host, and what it has declared."""

    fresh: _Allowance
    samples: _Allowance
    known: dict[Series, int] = attrs.field(factory=dict[Series, int])
    runs: OrderedDict[int, list[int]] = attrs.field(factory=OrderedDict[int, list[int]])
    """For each run the engine's number of each of its numbers."""
    held: deque[Samples] = attrs.field(factory=deque[Samples])
    """What came of runs of which nothing was declared yet."""
    lacks: bool = False
    """Whether samples came of series that are not declared."""
    asked: int | None = None
    """When it was last asked to declare them."""

    def table(self, run: int) -> list[int]:
        """Return the numbers of *run*; the run that was quiet for longest makes room for a new one."""
        found = self.runs.get(run)
        if found is None:
            found = self.runs[run] = []
            if len(self.runs) > _RUNS:
                self.runs.popitem(last=False)
        self.runs.move_to_end(run)
        return found


class Intake:
    """Knows what every source declared, and lets through what it may say."""

    def __init__(
        self,
        hosts: Collection[str],
        number: Callable[[Series], int],
        pace: Callable[[int, int | None], None],
        *,
        groups: Mapping[str, Collection[str]] | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        """Take sources that are among *hosts* for hosts, others for domains; *number* and *pace* are the engine's.

        *groups* names, for each group, its members among the sources.
        """
        self.bounds = bounds or Bounds()
        self._hosts = frozenset(hosts)
        self._groups = {name: frozenset(members) for name, members in (groups or {}).items()}
        self._number = number
        self._pace = pace
        self._sources: dict[str, _Source] = {}
        self._refused: Counter[tuple[str, Refusal]] = Counter()
        self._early: Counter[str] = Counter()
        self._total = 0
        self._told = 0

    @property
    def refused(self) -> int:
        """How many series and samples were dropped so far."""
        return self._total

    def declare(self, source: str, declared: Declared, now: int) -> list[Arrived]:
        """Note which series the publisher's numbers are; those that may not be stay unknown.

        Returns what waited for it.
        """
        origin = self._source(source, now)
        table, most = origin.table(declared.run), self.bounds.series
        names = [self._series(source, named) for named in declared.series[: max(most - declared.first, 0)]]
        refused = Counter({Refusal.SERIES: len(declared.series) - len(names)})
        fresh = {series for series in names if series is not None and series not in origin.known}
        granted = origin.fresh.take(min(len(fresh), most - len(origin.known)), now)
        table.extend([_UNKNOWN] * (min(declared.first + len(names), most) - len(table)))
        for at, series in enumerate(names, declared.first):
            if series is None:
                table[at] = _BANNED
                refused[Refusal.IMPERSONATION] += 1
            elif (known := origin.known.get(series)) is not None:
                table[at] = known
                self._pace(known, declared.interval)
            elif granted:
                granted -= 1
                table[at] = origin.known[series] = self._number(series)
                self._pace(table[at], declared.interval)
            elif len(origin.known) >= most:
                table[at] = _BANNED
                refused[Refusal.SERIES] += 1
            else:
                table[at] = _UNKNOWN
                refused[Refusal.HASTE] += 1
        self._refuse(source, refused)
        held, origin.held = origin.held, deque(each for each in origin.held if each.run != declared.run)
        return [self._translated(source, origin, each, now) for each in held if each.run == declared.run]

    def forget(self, numbers: Collection[int]) -> None:
        """Know no longer the series that had these *numbers* of the engine's; they may be declared again."""
        gone = frozenset(numbers)
        for origin in self._sources.values() if gone else ():
            origin.known = {series: number for series, number in origin.known.items() if number not in gone}
            for table in origin.runs.values():
                table[:] = [_UNKNOWN if number in gone else number for number in table]

    def columns(self, source: str, samples: Samples, now: int) -> Arrived:
        """Return what the engine is to match of *samples*; before its declaration a run has to wait for it."""
        origin = self._source(source, now)
        granted = origin.samples.take(len(samples), now)
        if granted < len(samples):
            self._refuse(source, {Refusal.RATE: len(samples) - granted})
            samples = attrs.evolve(samples, **{name: getattr(samples, name)[:granted] for name in _COLUMNS})
        if samples.run not in origin.runs:
            self._hold(source, origin, samples)
            return Arrived.none()
        return self._translated(source, origin, samples, now)

    def _hold(self, source: str, origin: _Source, samples: Samples) -> None:
        origin.lacks = True
        origin.held.append(samples)
        while len(origin.held) > _BATCHES or sum(map(len, origin.held)) > _HELD:
            self._refuse(source, {Refusal.UNKNOWN: len(origin.held.popleft())})

    def _translated(self, source: str, origin: _Source, samples: Samples, now: int) -> Arrived:
        offered = self._timely(source, Arrived(samples.numbers, samples.values, samples.times), now)
        table = origin.table(samples.run)
        try:  # the numbers of all samples in C; what cannot be translated, rarely, one by one
            numbers = array("I", map(table.__getitem__, offered.numbers))
        except (IndexError, OverflowError):
            size, most = len(table), self.bounds.series
            found = [table[at] if at < size else _UNKNOWN if at < most else _BANNED for at in offered.numbers]
            origin.lacks = origin.lacks or _UNKNOWN in found
            known = [number >= 0 for number in found]
            self._refuse(source, {Refusal.UNKNOWN: known.count(False)})
            offered = offered.kept(known)
            numbers = array("I", (number for number in found if number >= 0))
        return Arrived(numbers, offered.values, offered.times)

    def asks_again(self, source: str, now: int) -> bool:
        """Tell whether the source should declare its series anew, as samples came of others; seldom twice."""
        origin = self._source(source, now)
        if not origin.lacks or (origin.asked is not None and now - origin.asked < _PATIENCE):
            return False
        origin.lacks, origin.asked = False, now
        return True

    def declared(self, source: str, run: int) -> dict[int, Series]:
        """Return what the numbers of a run stand for, as far as they were let through."""
        origin = self._sources.get(source)
        if origin is None:
            return {}
        names = {number: series for series, number in origin.known.items()}
        return {at: names[number] for at, number in enumerate(origin.runs.get(run, ())) if number in names}

    def complaints(self, now: int) -> Iterator[str]:
        """Yield what was refused since the last time, which is a minute ago at least."""
        if not (self._refused or self._early) or now - self._told < _MINUTE:
            return
        self._told = now
        refused, self._refused = self._refused, Counter()
        early, self._early = self._early, Counter()
        for (source, reason), count in sorted(refused.items(), key=lambda item: (item[0][0], item[0][1].name)):
            yield f"{source}: refused {count} {reason.value}"
        for source, count in sorted(early.items()):
            yield f"{source}: took {count} samples from the future as of now; is its clock right?"

    def _source(self, name: str, now: int) -> _Source:
        origin = self._sources.get(name)
        if origin is None:
            fresh, samples = self.bounds.new_series, self.bounds.samples
            origin = self._sources[name] = _Source(
                _Allowance(fresh, _BURST * fresh, _BURST * fresh, now),
                _Allowance(samples, _BACKLOG * samples, _BACKLOG * samples, now),
            )
        return origin

    def _series(self, source: str, named: Named) -> Series | None:
        """Return the series with the labels that its source has; None when it says that it has others."""
        is_host = source in self._hosts
        own = (HOST, source) if is_host else (DOMAIN, source)
        for label in named.labels:
            if label[0] in (HOST, DOMAIN, GROUP) and label != own and not (is_host and label[0] != HOST):
                return None
        member = dict(named.labels).get(DOMAIN, source)
        groups = ((GROUP, name) for name, members in self._groups.items() if member in members)
        return Series(named.metric, Endpoint((*named.labels, own, *groups)))

    def _timely(self, source: str, offered: Arrived, now: int) -> Arrived:
        if not offered:
            return offered
        latest, earliest = now + int(self.bounds.ahead * 1000), now - int(self.bounds.behind * 1000)
        moments = sorted(offered.times)  # they come in order, or nearly, which takes less than to look for two of them
        first, last = moments[0], moments[-1]
        if last > latest or first < earliest:
            ahead = sum(at > latest for at in offered.times)
            behind = sum(at < earliest for at in offered.times)
            self._refuse(source, {Refusal.FUTURE: ahead, Refusal.PAST: behind})
            offered = offered.kept(earliest <= at <= latest for at in offered.times)
        if last <= now:
            return offered
        if last > now + _IN_STEP:
            self._early[source] += sum(at > now + _IN_STEP for at in offered.times)
        return attrs.evolve(offered, times=_until(now, offered))

    def _refuse(self, source: str, refused: Mapping[Refusal, int]) -> None:
        for reason, count in refused.items():
            if count:
                self._refused[source, reason] += count
                self._total += count


def _until(now: int, offered: Arrived) -> array[int]:
    """Return the times of what is *offered*, each series as much earlier as it takes for none to be after *now*."""
    newest = dict[int, int]()
    for number, at in zip(offered.numbers, offered.times, strict=True):
        if at > newest.get(number, now):
            newest[number] = at
    moved = (at + now - newest.get(number, now) for number, at in zip(offered.numbers, offered.times, strict=True))
    return array("q", moved)
