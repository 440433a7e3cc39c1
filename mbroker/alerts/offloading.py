"""Which thresholds publishers compare with themselves, so that samples which change nothing need not travel.

A publisher that knows the thresholds of a series sends only samples on another side of one of them than the sample
before (:class:`mchannel.samples.Offload`). A rule may be offloaded when such samples are all that it needs: one
comparison of the newest sample of single endpoints, without ``for`` and ``nodata``. (MAVIS, section IV.)
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping

import attrs

from mchannel.samples import MOST_CUTS, Offload, Samples

from .places import Readers
from .selector import Series
from .terms import Operator
from .tree import Comparison, Instant, NoData, Rule, leaves

__all__ = ["Cost", "Cuts", "Offloading", "choose", "cuts"]

Cuts = frozenset[float]
"""Where what rules say of a value changes: all that matters is above which of them it is."""

_RUNS = 8  # of one source that are remembered: its publishers
_MOST_SERIES = 1 << 16  # of one publisher that are counted
_WORTH, _STILL_WORTH = 0.5, 0.25  # shares of the samples that must be saved, to begin and to go on
_VAIN = 60  # periods until a series that did not pay is tried again


def cuts(rule: Rule) -> Cuts | None:
    """Return the cuts of *rule*; None when it needs more than those, and cannot be offloaded."""
    condition = rule.condition
    if not isinstance(condition, Comparison) or not isinstance(condition.expression, Instant):
        return None
    if rule.hold is not None or rule.nodata is not NoData.KEEP:
        return None
    comparisons = (condition,) if rule.clear is None else (condition, rule.clear)
    return frozenset(cut for each in comparisons for cut in _cuts(each.operator, each.threshold))


def _cuts(operator: Operator, threshold: float) -> tuple[float, ...]:
    below = math.nextafter(threshold, -math.inf)
    match operator:
        case Operator.ABOVE | Operator.AT_MOST:
            return (threshold,)
        case Operator.AT_LEAST | Operator.BELOW:
            return (below,)
        case Operator.EQUAL | Operator.UNEQUAL:
            return (below, threshold)


@attrs.frozen
class Cost:
    """What a series costs, measured over some time."""

    series: int
    """The publisher's number."""
    samples: int
    """Samples that came or, of a series that is offloaded, had come in such a time before it was."""
    crossings: int
    """How many of them were on another side of a threshold than the one before, or still come."""
    cuts: int
    """Thresholds that its rules compare with."""

    @property
    def saved(self) -> int:
        """Samples that need not come."""
        return self.samples - self.crossings

    def pays(self, share: float) -> bool:
        """Whether more than this share of the samples is saved."""
        return self.saved > share * self.samples


def choose(costs: Iterable[Cost], most: int, held: frozenset[int] = frozenset()) -> frozenset[int]:
    """Return the series to offload to a publisher that compares with *most* thresholds at the most.

    Those that save most samples for each threshold come first, and those that are *held*, offloaded already, before
    others that save as much: what is taken back and given again costs more than it saves.
    """
    worth: list[tuple[float, bool, int, int]] = []
    for cost in costs:
        is_held = cost.series in held
        if cost.cuts and cost.pays(_STILL_WORTH if is_held else _WORTH):
            worth.append((cost.saved / cost.cuts * (2 if is_held else 1), is_held, -cost.series, cost.cuts))
    chosen: set[int] = set()
    for _, _, series, size in sorted(worth, reverse=True):
        if size <= most:
            chosen.add(-series)
            most -= size
    return frozenset(chosen)


@attrs.define
class _Publisher:
    """What is known of one run of a publisher."""

    began: int
    """When counting began."""
    counts: Counter[int] = attrs.field(factory=Counter[int])
    """Samples of each series since then."""
    newest: int = 0
    is_due: bool = False
    offered: Mapping[int, Cuts] = attrs.field(factory=dict[int, Cuts])
    """What it compares with now, as far as is known."""
    before: dict[int, float] = attrs.field(factory=dict[int, float])
    """Samples a second of each series that is offloaded, from before it was."""
    vain: dict[int, int] = attrs.field(factory=dict[int, int])
    """Series that were taken back as they change too often, and when."""

    def cost(self, number: int, size: int, seconds: float | None) -> Cost:
        """Return what a series costs by what came in so many *seconds*; None when that is too short to say."""
        came, before = self.counts[number], self.before.get(number)
        if before is None:
            return Cost(number, came, 0, size)  # how often it changes is seen when it is tried
        if seconds is None:
            return Cost(number, round(before * 60) or 1, 0, size)
        return Cost(number, round(before * seconds), came, size)


class Offloading:
    """Decides what each publisher compares itself, by what it was seen to send. No I/O; times in milliseconds."""

    def __init__(self, refresh: int, *, most: int = MOST_CUTS, period: int = 60_000, ahead: int = 60_000) -> None:
        """Decide once a *period*; at most *most* thresholds a publisher, and a sample of each series per *refresh*.

        No sample is believed to be further *ahead* of the broker's clock: such a one is refused.
        """
        self._refresh = refresh
        self._most = min(most, MOST_CUTS)
        self._period = period
        self._ahead = ahead
        self._sources: dict[str, OrderedDict[int, _Publisher]] = {}
        self._readers = Readers()
        self._cuts: dict[int, Cuts | None] = {}

    @property
    def counted(self) -> int:
        """How many series are being measured."""
        return sum(len(publisher.counts) for runs in self._sources.values() for publisher in runs.values())

    def follow(self, number: int, rule: Rule) -> None:
        """Take note of a rule; what is offloaded of series that it reads is looked at again with their next samples."""
        self._cuts[number] = cuts(rule)
        for leaf in leaves(rule.condition):
            self._readers.file(leaf.selector, number)
        self._changed()

    def leave(self, number: int, rule: Rule) -> None:
        """Take note that a rule is gone."""
        del self._cuts[number]
        for leaf in leaves(rule.condition):
            self._readers.drop(leaf.selector, number)
        self._changed()

    def _changed(self) -> None:
        for runs in self._sources.values():
            for publisher in runs.values():
                publisher.is_due = True

    def shared(self, series: Series) -> Cuts | None:
        """Return the cuts of all rules that read *series*; None when none does, or one cannot be offloaded."""
        found: set[float] = set()
        for number in self._readers.of(series):
            own = self._cuts[number]
            if own is None:
                return None
            found |= own
        return frozenset(found) or None

    def count(self, source: str, samples: Samples, now: int) -> bool:
        """Take note of *samples*; tell whether it is time for :meth:`offer`."""
        runs = self._sources.setdefault(source, OrderedDict())
        publisher = runs.setdefault(samples.run, _Publisher(now))
        runs.move_to_end(samples.run)
        if len(runs) > _RUNS:
            runs.popitem(last=False)
        if len(publisher.counts) < _MOST_SERIES:
            publisher.counts.update(samples.numbers)
        publisher.newest = max(publisher.newest, min(max(samples.times, default=0), now + self._ahead))
        return publisher.is_due or now - publisher.began >= self._period

    def given_back(self, source: str, run: int) -> None:
        """Take note that the publisher compares nothing: what it was asked for is measured anew, and asked again."""
        runs = self._sources.get(source, OrderedDict())
        if run in runs and runs[run].offered:
            del runs[run]

    def offer(self, source: str, run: int, now: int, declared: Mapping[int, Series]) -> Offload | None:
        """Return what to ask of the publisher, which *declared* these series, if that is another thing than before."""
        publisher = self._sources[source][run]
        is_over, held = now - publisher.began >= self._period, publisher.offered.keys()
        seconds = max(now - publisher.began, 1) / 1000
        possible = {
            number: found
            for number, series in declared.items()
            if number not in publisher.vain and (found := self.shared(series))
        }
        costs = [
            publisher.cost(number, len(found), seconds if is_over else None)
            for number, found in possible.items()
            if is_over or number in held
        ]
        chosen = choose(costs, self._most, frozenset(held))
        publisher.before = {n: publisher.before.get(n, publisher.counts[n] / seconds) for n in chosen}
        if is_over:
            publisher.vain = {number: at for number, at in publisher.vain.items() if now - at < _VAIN * self._period}
            publisher.vain |= {
                each.series: now for each in costs if each.series in held and not each.pays(_STILL_WORTH)
            }
            publisher.began = now
            publisher.counts.clear()
        publisher.is_due = False
        wanted = {number: possible[number] for number in sorted(chosen)}
        if wanted == publisher.offered:
            return None
        publisher.offered = wanted
        pairs = [(number, cut) for number, found in wanted.items() for cut in sorted(found)]
        numbers, thresholds = array("I", [number for number, _ in pairs]), array("d", [cut for _, cut in pairs])
        return Offload(run, publisher.newest, self._refresh, numbers, thresholds)
